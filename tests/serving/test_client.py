"""The client: light to import, finds a lost server again, gives up in time, and never takes one reply for another."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from fake_policy import CHUNK, SIZE, WIDTH, FakePolicy, observation, running
from websockets.sync.server import serve

from wamkit.client import ChunkSource, ClientError, InpaintingChunkSource, NoReply, PolicyClient, Refused, Unreachable
from wamkit.serving.wire import pack, unpack


def test_a_robot_needs_numpy_msgpack_and_websockets_alone():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names | {"wamkit", "numpy", "msgpack", "websockets"}:
            raise ModuleNotFoundError(f"refused: {name}", name=name)
sys.meta_path.insert(0, Refuse())
import wamkit.client
import wamkit.inference.execution_loop
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def client_of(address: str, **options) -> PolicyClient:
    """Patient, because the machine may be busy."""
    return PolicyClient(address, **{"timeout_s": 30.0} | options)


@pytest.fixture(scope="module")
def shared():
    with running() as server:
        yield server


def lerobot(who: float, task: str = "go") -> dict:
    theirs = observation(who, task=task)
    return {
        "observation.images.front": theirs["observation/images/front"],
        "observation.images.other": np.zeros((4, 4, 3), np.uint8),
        "observation.state": theirs["observation/state"],
        "task": task,
    }


def test_it_sends_what_the_policy_takes_under_either_spelling(shared):
    with client_of(f"localhost:{shared.port}") as client:
        assert client.metadata["chunk"]["length"] == CHUNK
        assert client.act(lerobot(2.0)).shape == (CHUNK, WIDTH)
        assert client.act(observation(3.0))[0, 0] == 3.0
        reply = client.infer(lerobot(4.0), seed=17)
        assert reply["actions"][0].tolist() == [4.0, 7.0, 17.0]
        np.testing.assert_allclose(reply["times"], np.arange(CHUNK) / 10, rtol=1e-6)
        assert "echo" not in reply


def test_what_is_missing_is_said_before_it_is_sent(shared):
    accepted = shared.counted("accepted")
    with client_of(shared.address) as client:
        with pytest.raises(ClientError, match=r"needs 'observation.state'. Did you mean 'observation.stat'"):
            client.act({"observation.images.front": np.zeros((*SIZE, 3), np.uint8), "observation.stat": 1, "task": ""})
        with pytest.raises(ClientError, match="must be uint8"):
            client.act(lerobot(1.0) | {"observation.images.front": np.zeros((*SIZE, 3))})
        assert client.act(lerobot(1.0))[0, 0] == 1.0
    assert shared.counted("accepted") == accepted + 1


def test_jpeg_saves_bytes():
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 255, (2, 2, 3), np.uint8), 3, 0), 4, 1)
    with running() as server, client_of(server.address, jpeg_quality=95) as client:
        actions = client.act(observation() | {"observation/images/front": smooth})
    assert abs(actions[0, 1] - smooth.mean()) < 3


def test_a_refusal_is_raised_and_the_next_request_goes_through(shared):
    with client_of(shared.address) as client:
        with pytest.raises(Refused, match="not finite in who"):
            client.act(lerobot(np.nan))
        assert client.act(lerobot(1.0))[0, 0] == 1.0
        assert client.connections == 2


def test_what_the_robot_is_like_is_told_once_a_session(shared):
    with client_of(shared.address, robot={"rate_hz": 10.0}) as client:
        client.act(lerobot(1.0))
    with client_of(shared.address, robot={"rate_hz": 30.0}) as client, pytest.raises(Refused, match="10 Hz"):
        client.act(lerobot(1.0))


def test_reset_begins_an_episode(shared):
    with client_of(shared.address) as client:
        counts = [client.act(lerobot(1.0, "remember"))[0, 0] for _ in range(2)]
        client.reset()
        counts += [client.act(lerobot(1.0, "remember"))[0, 0] for _ in range(2)]
    assert counts == [1, 2, 1, 2]


def test_a_server_that_restarts_is_found_again():
    with running() as first:
        client = client_of(first.address, timeout_s=20)
        assert client.act(lerobot(1.0))[0, 0] == 1.0
        port = first.port
    answers: list[float] = []
    asking = threading.Thread(target=lambda: answers.append(float(client.act(lerobot(2.0))[0, 0])))
    asking.start()
    time.sleep(0.2)
    with running(port=port):
        asking.join(15)
        assert answers == [2.0]
        assert client.connections == 2
        client.close()


def test_a_server_that_comes_back_with_another_policy_is_refused():
    class Other(FakePolicy):
        def metadata(self):
            return super().metadata() | {"rate_hz": 20.0}

    with running() as first:
        client = client_of(first.address)
        port = first.port
    with running(Other(), port=port), pytest.raises(ClientError, match=r"another policy \(rate_hz differs\)"):
        client.act(lerobot(1.0))


def test_no_server_is_said_in_time():
    began = time.monotonic()
    with pytest.raises(Unreachable, match="no policy server at ws://localhost:1"):
        client_of("localhost:1", connect_timeout_s=0.3)
    assert time.monotonic() - began < 3


def test_a_wrong_token_is_not_tried_again():
    with running(token="right") as server:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="wants another token"):
            client_of(server.address, token="wrong", connect_timeout_s=30)
        assert time.monotonic() - began < 5
        with client_of(server.address, token="right") as client:
            assert client.act(lerobot(1.0))[0, 0] == 1.0


def test_a_late_reply_is_given_up_and_never_taken_for_the_next():
    served = FakePolicy(seconds=0.3)
    with running(served) as server, client_of(server.address, timeout_s=0.1) as client:
        with pytest.raises(NoReply, match="within 0.1 s"):
            client.act(lerobot(1.0))
        assert client.infer(lerobot(2.0), timeout_s=10)["actions"][0, 0] == 2.0
        assert client.connections == 2


@contextmanager
def strange_server(greeting, reply):
    """A websocket server that says what it is told to."""

    def handler(connection):
        connection.send(greeting)
        for message in connection:
            connection.send(reply(unpack(message)))

    with serve(handler, "localhost", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://localhost:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(5)


def test_an_openpi_server_without_metadata_gets_the_observation_as_it_is():
    seen = []

    def reply(message):
        seen.append(message)
        return pack({"actions": np.ones((3, 2), np.float32)})

    with strange_server(pack({}), reply) as address, client_of(address) as client:
        assert client.act(observation(1.0)).shape == (3, 2)
        assert seen[0].keys() == observation().keys()
        with pytest.raises(ClientError, match="takes no seed"):
            client.act(observation(1.0), seed=3)
        with pytest.raises(ClientError, match="rate_hz"):
            client.chunk_source()


def test_a_reply_to_another_request_is_noticed():
    greeting = pack({"server": "wamkit", "observation": {"prompt": {}}})
    actions = np.ones((1, 1), np.float32)
    for reply, said in (({"actions": actions, "echo": 99}, "answered another request"), ([1], "without actions")):
        with (
            strange_server(greeting, lambda message, reply=reply: pack(reply)) as address,
            client_of(address) as client,
            pytest.raises(ClientError, match=said),
        ):
            client.act({"task": ""})
    with (
        strange_server("hello", lambda message: b"") as address,
        pytest.raises(ClientError, match="did not begin with its metadata"),
    ):
        client_of(address)


def test_threads_may_share_a_client(shared):
    with client_of(shared.address) as client:
        wrong: list[float] = []

        def ask(who: float) -> None:
            wrong.extend(who for _ in range(25) if client.act(lerobot(who))[0, 0] != who)

        threads = [threading.Thread(target=ask, args=(float(who),)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert wrong == []
        assert client.connections == 1


def test_executors_take_a_client_as_their_source():
    from wamkit.inference.execution import Asynchronous, Hold, RealTimeChunking
    from wamkit.inference.execution_loop import Blocking, ControlLoop

    hold = Hold((0.0,) * WIDTH)
    with running() as server, client_of(server.address) as client:
        source = client.chunk_source()
        assert isinstance(source, InpaintingChunkSource)
        assert source.rate_hz == 10.0
        loop = ControlLoop(source, Asynchronous(hold, 3), rate_hz=source.rate_hz, thinking=Blocking())
        steps = [loop.act(lambda: lerobot(8.0), at=tick / 10) for tick in range(4)]
        assert len(steps) == 4
        plan = np.ones((2, WIDTH), np.float32)
        assert source.inpaint(lerobot(1.0), plan, 1)[0, 0] == 2 * WIDTH + 1000
        ControlLoop(source, RealTimeChunking(hold, 3), rate_hz=10.0, thinking=Blocking())

    class Plain(FakePolicy):
        def metadata(self):
            return super().metadata() | {"chunk": {"length": CHUNK, "seconds": 0.5, "inpaints": False}}

    with running(Plain()) as server, client_of(server.address) as client:
        assert type(client.chunk_source()) is ChunkSource
