"""A contract fits what it was made from, and each convention that differs is one line that says how to mend it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from wamkit.configuration import from_dict, to_dict
from wamkit.data.cache import FrameStore
from wamkit.data.contract import Contract, check, describe_mixture
from wamkit.data.mixture import Mixture, fit_normalizer
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.data.windows import MixtureEntry, WindowSpec


@dataclass(frozen=True, kw_only=True)
class Env:
    """As `wamkit.envs.base.EnvSpec`."""

    cameras: dict
    state_names: tuple = ("state_0", "state_1", "state_2", "state_3")
    action_names: tuple = ("action_0", "action_1")
    action_low: tuple = (-1.0, -1.0)
    action_high: tuple = (1.0, 1.0)
    rate_hz: float = 20.0
    embodiment: str = "metaworld"


ENV = Env(cameras={"front": (64, 64), "other": (32, 32)})


@pytest.fixture(scope="module")
def contract(arm, tmp_path_factory):
    entry = MixtureEntry(source=arm, frame_store=FrameStore.build(arm, tmp_path_factory.mktemp("c"), resolution=64))
    spec = WindowSpec(frame_offsets_s=(0.0, 0.4), chunk_s=0.8, resolution=64)
    return describe_mixture(Mixture([entry], spec, fit_normalizer([entry])))


def lines(violations):
    told = [str(violation) for violation in violations]
    assert all("\n" not in line for line in told)
    return told


def only(violations):
    told = lines(violations)
    assert len(told) == 1, told
    return told[0]


def test_it_fits_where_it_came_from(contract, arm):
    assert lines(check(contract, arm)) == []
    assert lines(check(contract, ENV)) == []


def test_it_travels_as_json(contract):
    assert from_dict(Contract, json.loads(json.dumps(to_dict(contract)))) == contract
    assert dict(contract.cameras) == {"front": (64, 64)}
    assert contract.horizon_s == 0.8
    assert len(contract.statistics_hash) == 64


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"embodiment": "droid"}, "this is 'droid' and the policy was trained on metaworld"),
        ({"rate_hz": 80.0}, "acts at 20 Hz and this environment has 80 Hz: run it at 20 Hz"),
        (
            {"cameras": {"frnt": (64, 64)}},
            "camera 'front': it is missing; this environment has frnt. Did you mean 'frnt'",
        ),
        ({"cameras": {"front": (128, 96)}}, "128x96 here and were 64x64 in training: render or record 64x64"),
        ({"state_names": ("a", "b")}, "state: 2 dimensions here (a, b) and 4 in training"),
        ({"state_names": ()}, "state: this environment has none; give the 4 dimensions"),
        ({"action_names": ("action_1", "action_0")}, "action: the order differs ('action_1' stands where"),
        ({"action_names": ("dx", "action_1")}, "action: the names differ ('dx' stands where training had 'action_0')"),
        ({"action_low": (-0.001, -1.0), "action_high": (0.001, 1.0)}, "action 'action_0': it lay in"),
    ],
)
def test_each_difference_is_one_line(contract, change, told):
    assert told in only(check(contract, replace(ENV, **change)))


def test_flipped_pictures_are_seen(contract, arm):
    seen = arm.decode("front", 0, np.arange(4) / 20)
    assert check(contract, ENV, {"front": seen}) == []
    assert "upside down" in only(check(contract, ENV, {"front": seen[:, ::-1]}))
    assert "turned by 180" in only(check(contract, ENV, {"front": seen[:, ::-1, ::-1]}))


@pytest.fixture(scope="module")
def two_cameras(slow_video, tmp_path_factory):
    """A contract of two cameras, in the order ``exterior``, ``wrist``."""
    store = FrameStore.build(slow_video, tmp_path_factory.mktemp("two"), resolution=64)
    entry = MixtureEntry(source=slow_video, frame_store=store)
    contract = describe_mixture(Mixture([entry], WindowSpec(resolution=64), fit_normalizer([entry])))
    assert [name for name, _ in contract.cameras] == ["exterior", "wrist"]
    return contract


def environment_of(source, cameras):
    return Env(
        cameras=cameras,
        state_names=source.state_names,
        action_names=source.action_names,
        action_low=(-1.0,) * len(source.action_names),
        action_high=(1.0,) * len(source.action_names),
        rate_hz=source.fps,
        embodiment=source.embodiment,
    )


def test_exchanged_cameras_are_seen_in_their_pictures(two_cameras, slow_video):
    size = slow_video.resolution("exterior")
    env = environment_of(slow_video, {"exterior": size, "wrist": size})
    exterior, wrist = (slow_video.decode(camera, 0, np.arange(6) / 5) for camera in ("exterior", "wrist"))
    assert check(two_cameras, env, {"exterior": exterior, "wrist": wrist}) == []
    told = lines(check(two_cameras, env, {"exterior": wrist, "wrist": exterior}))
    assert len(told) == 2
    assert "camera 'exterior': its pictures look like those of camera 'wrist'" in told[0]
    assert "camera 'wrist': its pictures look like those of camera 'exterior'" in told[1]


def test_cameras_are_found_by_name_whatever_their_order(two_cameras, slow_video):
    size = slow_video.resolution("exterior")
    seen = {camera: slow_video.decode(camera, 0, np.arange(6) / 5) for camera in ("wrist", "exterior")}
    assert check(two_cameras, environment_of(slow_video, dict.fromkeys(seen, size)), seen) == []


def test_exchanged_cameras_of_a_data_set_are_seen(two_cameras, slow_video, tmp_path):
    """The same files under each other's names, as after a mistake in a recorder's settings."""
    root, opened = copied(slow_video, tmp_path)
    videos = root / "videos"
    one, other = (videos / f"observation.images.{camera}" for camera in ("exterior", "wrist"))
    one.rename(videos / "aside")
    other.rename(one)
    (videos / "aside").rename(other)
    told = lines(check(two_cameras, opened()))
    assert ["those of camera 'wrist'" in told[0], "those of camera 'exterior'" in told[1]] == [True, True]


def with_gripper(contract, low, high, **changes):
    body = contract.bodies[0]
    action = replace(body.action, names=("action_0", "gripper"), low=(-0.05, low), high=(0.05, high))
    return replace(contract, bodies=(replace(body, action=replace(action, **changes.pop("action", {})), **changes),))


GRIPPER = replace(ENV, action_names=("action_0", "gripper"))


def test_a_gripper_in_zero_to_one_is_told_where_the_environment_has_a_negative_half(contract):
    assert "action 'gripper': it lay in [0, 1] in training and this environment takes [-1, 1]" in only(
        check(with_gripper(contract, 0.0, 1.0), GRIPPER)
    )
    assert check(with_gripper(contract, -1.0, 1.0), GRIPPER) == []
    assert check(with_gripper(contract, 0.0, 0.0), GRIPPER) == []  # never used: nothing to tell
    assert check(with_gripper(contract, 0.0, 1.0, from_simulator=True), GRIPPER) == []
    assert "lay in [0, 255]" in only(check(with_gripper(contract, 0.0, 255.0), GRIPPER))


def test_declared_bounds_decide(contract):
    declared = {"action": {"bounds": ((-1.0, 1.0), (0.0, 1.0))}, "from_simulator": True}
    assert "[0, 1] in training" in only(check(with_gripper(contract, 0.2, 0.8, **declared), GRIPPER))
    declared = {"action": {"bounds": ((-1.0, 1.0), (-1.0, 1.0))}}
    assert check(with_gripper(contract, 0.0, 1.0, **declared), GRIPPER) == []


# Data sets


def copied(arm, tmp_path):
    import shutil

    from wamkit.data.lerobot import LeRobotSource

    shutil.copytree(arm.root, tmp_path / "copy")
    return tmp_path / "copy", lambda: LeRobotSource(tmp_path / "copy")


def test_other_units_are_seen_in_the_statistics(contract, arm, tmp_path):
    root, opened = copied(arm, tmp_path)
    stats = json.loads((root / "meta/stats.json").read_text())
    action = stats["action"]
    for name in ("mean", "std", "min", "max"):
        action[name] = [action[name][0] * 57.3, action[name][1]]
    (root / "meta/stats.json").write_text(json.dumps(stats))
    assert "statistics of action: 'action_0' is" in only(check(contract, opened()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda stats: stats.pop("action"), "statistics of action: meta/stats.json lacks mean, std, min, max"),
        (lambda stats: stats["observation.state"].pop("std"), "statistics of state: meta/stats.json lacks std"),
        (lambda stats: stats["action"].update(std=[float("nan"), 1.0]), "they are not finite for action_0"),
        (lambda stats: stats["action"].update(std=[1.0]), "other dimensions than the rows"),
    ],
)
def test_statistics_that_are_missing_or_broken(contract, arm, tmp_path, change, told):
    root, opened = copied(arm, tmp_path)
    stats = json.loads((root / "meta/stats.json").read_text())
    change(stats)
    (root / "meta/stats.json").write_text(json.dumps(stats))
    assert told in only(check(contract, opened()))


def test_a_missing_video_is_told(contract, arm, tmp_path):
    root, opened = copied(arm, tmp_path)
    video = next(root.glob("videos/**/*.mp4"))
    video.unlink()
    assert video.name in only(check(contract, opened()))


def test_another_recording_gets_every_difference(contract, tmp_path):
    other = make_synthetic_dataset(
        tmp_path / "other",
        episodes=1,
        length=8,
        fps=10,
        cameras=("fron",),
        resolution=(48, 64),
        embodiment="droid",
        state_dim=3,
    )
    told = lines(check(contract, other))
    assert [line.split(":")[0] for line in told[:4]] == ["embodiment", "camera 'front'", "rate", "state"]


def test_a_renamed_camera_is_found_in_the_recording_by_its_own_name(arm, tmp_path):
    store = FrameStore.build(arm, tmp_path, resolution=64)
    entry = MixtureEntry(source=arm, frame_store=store, camera_map={"image": "front"})
    contract = describe_mixture(Mixture([entry], WindowSpec(resolution=64), fit_normalizer([entry])))
    assert lines(check(contract, arm)) == []
    assert "camera 'image': it is missing" in only(check(contract, ENV))


def test_a_mixture_keeps_each_bodys_own_terms(arm, slow_video, tmp_path):
    entries = [
        MixtureEntry(
            source=source, frame_store=FrameStore.build(source, tmp_path, resolution=64), camera_map={"image": own}
        )
        for source, own in ((arm, "front"), (slow_video, "exterior"))
    ]
    strided = replace(entries[0], stride=2, combine="sum")
    mixture = Mixture([*entries, strided], WindowSpec(resolution=64, chunk_s=0.4), fit_normalizer([*entries, strided]))
    contract = describe_mixture(mixture)
    assert {body.statistics: body.rate_hz for body in contract.bodies} == {
        "metaworld": 20.0,
        "droid": 15.0,
        "metaworld@10Hz": 10.0,
    }
    assert lines(check(contract, arm)) == []
    assert lines(check(contract, slow_video)) == []
    slower = replace(ENV, cameras={"image": (64, 64)}, rate_hz=10.0)
    assert lines(check(contract, slower)) == []
