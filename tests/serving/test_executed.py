"""What a robot really executed reaches a model that remembers: over the wire, in physical units, session by session."""

from __future__ import annotations

import numpy as np
import pytest
from fake_policy import WIDTH, FakePolicy, Talk, observation, running
from remembering import CHUNK, RATE, STD, Watching, expected, remembering_policy, seen

from wamkit.client import ChunkSource, PolicyClient
from wamkit.inference.execution import ExecutionError, Hold, Synchronous
from wamkit.inference.execution_loop import Blocking, ControlLoop
from wamkit.inference.execution_policy import PolicySource
from wamkit.serving.batching import Item
from wamkit.serving.served import ServedPolicy, SessionMemory


@pytest.fixture(scope="module")
def shared():
    with running(ServedPolicy(remembering_policy())) as server:
        yield server


def client_of(server) -> PolicyClient:
    return PolicyClient(server.address, timeout_s=30.0)


def test_a_loop_through_the_server_is_a_loop_in_the_process(shared):
    """Two robots at once, one of them with a safety layer that changes what is executed; each has its own past."""
    local = PolicySource(remembering_policy())
    with client_of(shared) as one, client_of(shared) as other:
        assert one.metadata["takes"] == ["executed"]
        hold = Hold((0.0, 0.0))

        def loop_of(source) -> ControlLoop:
            return ControlLoop(source, Synchronous(hold, 3), rate_hz=RATE, thinking=Blocking())

        loops = [loop_of(one.chunk_source()), loop_of(other.chunk_source()), loop_of(local)]
        done: list[list[np.ndarray]] = [[], [], []]
        for loop in loops:
            loop.reset()
        for tick in range(9):
            for number, loop in enumerate(loops):
                action = loop.act(seen(), at=tick / RATE)
                if number != 1:  # robot 0 and the local one are stopped at 2, robot 1 is not
                    action = np.minimum(action, 2.0)
                    loop.executed(action)
                done[number].append(action)
        np.testing.assert_allclose(done[0], done[2], rtol=1e-5)
        for number in (0, 1):
            told = np.array(done[number])
            planned = expected(told[:6], looks=3)[:3]
            np.testing.assert_allclose(told[6:], np.minimum(planned, 2.0) if number == 0 else planned, rtol=1e-4)
        assert np.abs(np.array(done[0]) - done[1]).max() > 1


def test_an_episode_begins_without_a_past(shared):
    with client_of(shared) as client:
        source = client.chunk_source()
        source(seen())
        rows = np.array([[3.0, 1.0], [2.0, 0.0]], np.float32)
        source.executed(rows[:1])
        source.executed(rows[1:])
        np.testing.assert_allclose(source(seen()), expected(rows, looks=2), rtol=1e-5)
        np.testing.assert_allclose(source(seen()), expected(rows, looks=3), rtol=1e-5)  # told once
        source.executed(rows)
        source.reset()
        np.testing.assert_allclose(source(seen()), expected(rows[:0], looks=1), rtol=1e-5)


def test_what_a_failed_request_carried_goes_with_the_next(shared):
    class Faulty(PolicyClient):
        broken = False

        def infer(self, *arguments, **words):
            if self.broken:
                raise TimeoutError
            return super().infer(*arguments, **words)

    with Faulty(shared.address, timeout_s=30.0) as client:
        source = client.chunk_source()
        source(seen())
        rows = np.array([[3.0, 1.0]], np.float32)
        source.executed(rows)
        client.broken = True
        with pytest.raises(TimeoutError):
            source(seen())
        client.broken = False
        source.executed(2 * rows)
        np.testing.assert_allclose(source(seen()), expected(np.concatenate([rows, 2 * rows]), looks=2), rtol=1e-5)


def test_a_lost_connection_is_a_lost_memory(shared):
    with client_of(shared) as client:
        source = client.chunk_source()
        source(seen())
        assert client._connection is not None
        client._connection.socket.close()
        source.executed(np.ones((3, 2)))
        np.testing.assert_allclose(source(seen()), expected(np.zeros((0, 2)), looks=1), rtol=1e-5)
        assert client.connections == 2


@pytest.mark.parametrize("jpeg_quality", [None, 95])
def test_a_model_that_must_see_every_moment_is_shown_it(jpeg_quality):
    """Pictures between two requests: through the server as in the process, and not after somebody else acted."""
    with running(ServedPolicy(remembering_policy(Watching))) as server:
        with PolicyClient(server.address, timeout_s=30.0, jpeg_quality=jpeg_quality) as client:
            assert client.metadata["takes"] == ["executed", "observed"]
            assert client.metadata["picture_interval_s"] == 0.1
            sources = [client.chunk_source(), PolicySource(remembering_policy(Watching))]
            hold = Hold((0.0, 0.0))
            loops = [ControlLoop(s, Synchronous(hold, 3), rate_hz=RATE, thinking=Blocking()) for s in sources]
            done: list[list[np.ndarray]] = [[], []]
            for number, loop in enumerate(loops):
                loop.reset()
                done[number] = [loop.act(lambda tick=tick: seen(gray=8 * tick)) for tick in range(6)]
            np.testing.assert_allclose(done[0], done[1], rtol=1e-4)
            # Between the looks at 0 and 3 it was shown 1 and 2; the one that it acts on is not among them.
            pictures = (8 * 1 + 16 * 2) * STD
            np.testing.assert_allclose(done[0][3], expected(np.array(done[0][:3]), looks=2)[0] + pictures, rtol=1e-4)
            loops[0].override(np.zeros(2))
            begun = loops[0].act(lambda: seen(gray=99))
            np.testing.assert_allclose(begun, expected(np.zeros((0, 2)), looks=1)[0], rtol=1e-4)
        with pytest.raises(
            ExecutionError, match=r"a picture every 0.1 s, .* at 15 Hz: control it at a multiple of 10 Hz"
        ):
            ControlLoop(sources[1], Synchronous(hold, 3), rate_hz=15.0)
        picture = np.zeros((8, 8, 3), np.uint8)
        for observed, said in (
            ({"observation/images/side": [picture]}, "'observed' must hold observation/images/front"),
            ({"observation/images/front": []}, "1 to 16 pictures"),
            ({"observation/images/front": np.zeros((17, 8, 8, 3), np.uint8)}, "1 to 16 pictures"),
            ({"observation/images/front": [picture[:4]]}, "must be uint8 [8, 8, 3]"),
            ({"observation/images/front": 3}, "1 to 16 pictures"),
        ):
            with Talk(server) as talk:
                talk.ask({"observation/images/front": picture, "prompt": "go"})
                answer = talk.ask({"observation/images/front": picture, "prompt": "go", "observed": observed})
                assert isinstance(answer, str)
                assert said in answer


def test_openpis_client_tells_nothing_and_is_served(shared):
    with Talk(shared) as talk:
        for looks in (1, 2):
            reply = talk.ask({"observation/images/front": np.zeros((8, 8, 3), np.uint8), "prompt": "go"})
            np.testing.assert_allclose(reply["actions"], expected(np.zeros((0, 2)), looks), rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"executed": np.zeros((2, 3), np.float32)}, r"'executed' must be float32 [n, 2] with 1 to 4096 rows"),
        ({"executed": np.zeros((0, 2), np.float32)}, "got float32 [0, 2]"),
        ({"executed": np.zeros((2, 2), np.int64)}, "got int64"),
        ({"executed": np.full((2, 2), np.nan, np.float32)}, "'executed' is not finite"),
        ({"executed": [[1.0, 2.0]]}, "'executed' must not be a list"),
        ({"executed": np.zeros((2, 2), np.float32), "reset": True}, "leave it out at the start of one"),
        ({"observed": {"observation/images/front": [1]}}, "takes no 'observed' pictures"),
        ({"timestamp": -1.0}, "'timestamp' must be seconds"),
        ({"timestamp": float("nan")}, "'timestamp' must be seconds"),
    ],
)
def test_what_is_told_wrongly_gets_words(shared, words, said):
    with Talk(shared) as talk:
        plain = {"observation/images/front": np.zeros((8, 8, 3), np.uint8), "prompt": "go"}
        talk.ask(plain)
        answer = talk.ask(plain | words)
        assert isinstance(answer, str)
        assert said in answer
        assert talk.closed() == 1011


def test_sessions_of_a_model_that_remembers_share_a_batch():
    """And each goes on from its own past; a batch that failed is run again from the pasts that it came with."""
    served = ServedPolicy(remembering_policy())
    memories = [SessionMemory(), SessionMemory(), SessionMemory()]
    rows = np.arange(4, dtype=np.float32).reshape(2, 2)

    def item(number: int, executed: np.ndarray | None, task: str = "go") -> Item:
        return Item(observation=seen(task), seed=0, memory=memories[number], executed=executed)

    np.testing.assert_allclose(served.act([item(0, None)])[0], expected(rows[:0], looks=1), rtol=1e-5)
    before = memories[0].held
    with pytest.raises(ZeroDivisionError):
        served.act([item(0, rows), item(1, None, "explode")])
    assert memories[0].held is before
    assert memories[1].held is None
    first, second = served.act([item(0, rows), item(1, None)])
    np.testing.assert_allclose(first, expected(rows, looks=2), rtol=1e-5)
    np.testing.assert_allclose(second, expected(rows[:0], looks=1), rtol=1e-5)
    passes = []
    hook = served._policy.model.act
    served._policy.model.act = lambda *a, **k: passes.append(1) or hook(*a, **k)  # type: ignore[method-assign]
    all_three = served.act([item(2, None), item(1, 2 * rows), item(0, None)])
    assert len(passes) == 1
    for actions, told, looks in zip(all_three, (rows[:0], 2 * rows, rows), (1, 2, 3), strict=True):
        np.testing.assert_allclose(actions, expected(told, looks), rtol=1e-5)


def test_nothing_was_executed_before_an_episodes_first_observation(shared):
    plain = {"observation/images/front": np.zeros((8, 8, 3), np.uint8), "prompt": "go"}
    with Talk(shared) as talk:
        answer = talk.ask(plain | {"executed": np.zeros((2, 2), np.float32)})
        assert "this episode's first is still to come" in answer
        assert talk.closed() == 1011


def test_a_policy_without_a_memory_is_told_nothing():
    """The client keeps it to itself; a client that sends it all the same is not turned away."""
    served = FakePolicy()
    told: list[object] = []
    act = served.act
    served.act = lambda items: told.extend(item.executed for item in items) or act(items)  # type: ignore[method-assign]
    with running(served) as server, client_of(server) as client, Talk(server) as talk:
        source = client.chunk_source()
        assert isinstance(source, ChunkSource)
        source(observation(1.0))
        source.executed(np.ones((CHUNK, WIDTH)))
        source(observation(1.0))
        assert told == [None, None]
        talk.ask(observation(2.0))
        assert talk.ask(observation(3.0) | {"executed": np.ones((2, WIDTH), np.float32)})["actions"][0, 0] == 3.0
