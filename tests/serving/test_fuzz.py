"""Whatever arrives, its sender gets a reply or words, and a witness on the same server gets its own answer."""

from __future__ import annotations

import numpy as np
import pytest
from fake_policy import CHUNK, WIDTH, Talk, observation, running
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wamkit.serving.wire import pack

WORDS = (
    "observation.state",
    "task",
    "seed",
    "reset",
    "echo",
    "robot",
    "previous",
    "delay",
    "executed",
    "observed",
    "timestamp",
)
KEYS = st.sampled_from([*observation(), *WORDS])
ARRAYS = arrays.arrays(
    st.sampled_from(["u1", "f4", "f8", "i8", "b1"]), arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=8)
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=30) | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | KEYS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed_requests(draw) -> bytes:
    """A good request with a key replaced, added or left out."""
    task = draw(st.sampled_from(["go", "nan", "explode"]))
    message = observation(draw(st.floats(width=32)), draw(st.floats(width=32)), task=task)
    for key, value in draw(st.dictionaries(KEYS | st.text(max_size=8), VALUES, max_size=2)).items():
        message[key] = value
    for key in draw(st.sets(st.sampled_from(sorted(message)), max_size=1)):
        del message[key]
    return pack(message)


@st.composite
def damaged_requests(draw) -> bytes:
    """A good request, some bytes of which were lost, changed or added on the way."""
    message = bytearray(pack(observation()))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(message) - 1))
        kind = draw(st.sampled_from(["change", "cut", "lose", "add"]))
        if kind == "change":
            message[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del message[max(1, place) :]
        elif kind == "lose":
            del message[place : place + draw(st.integers(1, 20))]
        else:
            message[place:place] = draw(st.binary(max_size=20))
        if not message:
            break
    return bytes(message)


MESSAGES = st.one_of(
    changed_requests(), damaged_requests(), st.binary(max_size=300), VALUES.map(pack), st.text(max_size=50)
)


@pytest.fixture(scope="module")
def server():
    with running(max_message_bytes=4096) as fuzzed:
        yield fuzzed


@pytest.fixture(scope="module")
def witness(server):
    with Talk(server) as talk:
        yield talk


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(message=MESSAGES, who=st.integers(0, 1000))
def test_any_message_is_answered_and_harms_nobody(server, witness, message, who):
    with Talk(server) as talk:
        witness.send(observation(who))
        answer = talk.ask(message)
        if isinstance(answer, str):
            assert answer
            assert "Traceback" not in answer
            assert talk.closed() in (1009, 1011)
        else:
            assert np.isfinite(answer["actions"]).all()
            assert answer["actions"].shape == (CHUNK, WIDTH)
    reply = witness.receive()
    assert not isinstance(reply, str), reply
    assert reply["actions"][0, 0] == who


def test_nothing_was_lost_on_the_way(server, witness):
    """After all of it: every accepted request was answered or refused."""
    assert witness.ask(observation(3.0))["actions"][0, 0] == 3.0
    counts = server.accounts()
    assert counts["undelivered"] == 0
    assert counts["accepted"] > 0
