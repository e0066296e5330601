"""What a client may ask, and what it is told when it asks otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from fake_policy import SIZE, FakePolicy, observation

from wamkit.serving.requests import RequestFormat
from wamkit.serving.wire import WireError, encode_jpeg

FORMAT = FakePolicy().request_format


def test_the_metadata_names_every_key():
    assert FORMAT.metadata() == {
        "observation/images/front": {"shape": [*SIZE, 3], "dtype": "uint8", "jpeg": True},
        "observation/state": {"shape": [2], "dtype": "float32", "names": ["who", "count"]},
        "prompt": {"shape": [], "dtype": "str"},
    }
    assert RequestFormat(cameras={}, action_dim=1).metadata().keys() == {"prompt"}


def test_openpi_and_lerobot_names_mean_the_same():
    theirs = observation(2.0, 3.0)
    ours = {
        "observation.images.front": theirs["observation/images/front"],
        "observation.state": theirs["observation/state"],
        "task": theirs["prompt"],
    }
    for message in (theirs, ours):
        read = FORMAT.read(message).observation
        assert read.keys() == ours.keys()
        assert read["observation.state"].tolist() == [2.0, 3.0]
        assert read["task"] == "go"
    with pytest.raises(WireError, match="given twice"):
        FORMAT.read(theirs | ours)


def test_a_camera_may_have_a_dot_in_its_name():
    dotted = RequestFormat(cameras={"left.wrist": SIZE}, action_dim=1)
    picture = np.zeros((*SIZE, 3), np.uint8)
    assert (
        "observation.images.left.wrist"
        in dotted.read({"observation.images.left.wrist": picture, "task": ""}).observation
    )


def test_a_picture_may_be_a_jpeg():
    read = FORMAT.read(observation() | {"observation/images/front": encode_jpeg(np.full((*SIZE, 3), 99, np.uint8))})
    assert np.abs(read.observation["observation.images.front"].astype(int) - 99).max() < 4


@pytest.mark.parametrize("state", [[1.0, 2], np.array([1, 2]), np.array([1.0, 2.0])])
def test_a_state_may_be_any_numbers(state):
    read = FORMAT.read(observation() | {"observation/state": state}).observation["observation.state"]
    assert read.dtype == np.float32
    assert read.tolist() == [1.0, 2.0]


def test_words_beside_the_observation():
    plan = np.ones((4, 3), np.float64)
    words = {"reset": True, "seed": np.int64(7), "echo": "x1", "robot": {"rate_hz": 5}, "previous": plan, "delay": 2}
    request = FORMAT.read(observation() | words)
    assert (request.reset, request.seed, request.echo, request.delay) == (True, 7, "x1", 2)
    assert request.robot == {"rate_hz": 5}
    assert request.previous is not None
    assert request.previous.dtype == np.float32
    bare = FORMAT.read(observation())
    assert (bare.reset, bare.seed, bare.echo, bare.previous, bare.robot) == (False, None, None, None, None)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (7, "a request is a dictionary, not a int"),
        ({b"prompt": ""}, "a key of a request is a string"),
        ({"prompt": ""}, "missing observation/images/front, observation/state"),
        (observation() | {"observation/stat": 1}, "takes no 'observation/stat'. Did you mean 'observation/state'"),
        (observation() | {"observation/state": np.zeros(3)}, r"float32 \[2\] \(who, count\), got float64 \[3\]"),
        (observation() | {"observation/state": "left"}, "got str"),
        (observation() | {"observation/state": ["1", "2"]}, "must hold numbers"),
        (observation() | {"observation/state": np.array([np.nan, 1.0])}, "not finite in who"),
        (observation() | {"observation/state": np.array([0.0, 1e300])}, "not finite in count"),
        (observation() | {"observation/state": np.array([True, False])}, "got bool"),
        (observation() | {"observation/images/front": np.zeros((*SIZE, 3))}, "got float64"),
        (observation() | {"observation/images/front": np.zeros((3, *SIZE), np.uint8)}, r"got uint8 \[3, 6, 8\]"),
        (observation() | {"observation/images/front": b"\xff\xd8"}, "camera 'front': these bytes are no JPEG"),
        (observation() | {"observation/images/front": [1, 2]}, "not list"),
        (observation() | {"prompt": 3}, "prompt must be a string"),
        (observation() | {"prompt": "a" * 5000}, "at most 4096"),
        (observation() | {"seed": -1}, "'seed' must be a whole number"),
        (observation() | {"seed": 1 << 63}, "'seed' must be a whole number"),
        (observation() | {"seed": True}, "'seed' must not be a bool"),
        (observation() | {"reset": 1}, "'reset' must not be a int"),
        (observation() | {"echo": [1]}, "'echo' must not be a list"),
        (observation() | {"echo": "a" * 300}, "at most 256"),
        (observation() | {"robot": "arm"}, "'robot' must not be a str"),
        (observation() | {"delay": 1}, "'delay' belongs to 'previous'"),
        (observation() | {"previous": np.zeros((2, 4), np.float32)}, r"must be float32 \[n, 3\]"),
        (observation() | {"previous": np.zeros((0, 3), np.float32)}, r"must be float32 \[n, 3\]"),
        (observation() | {"previous": np.zeros((2, 3), np.float32), "delay": 3}, "must lie in 0..2"),
        (observation() | {"previous": np.full((2, 3), np.inf)}, "'previous' is not finite"),
    ],
)
def test_what_is_wrong_is_said(message, said):
    with pytest.raises(WireError, match=said):
        FORMAT.read(message)


def test_a_policy_that_cannot_go_on_from_a_plan_says_so():
    plain = RequestFormat(cameras={"front": SIZE}, state_names=("who", "count"), action_dim=3)
    with pytest.raises(WireError, match="cannot go on from"):
        plain.read(observation() | {"previous": np.zeros((2, 3), np.float32)})
