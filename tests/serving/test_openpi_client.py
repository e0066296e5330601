"""openpi's published client, unmodified, against this server.

The package is installed without its dependencies' pins, because it asks for a numpy older than wamkit's; its code is as
published (`make install` does so; elsewhere: pip install --no-deps openpi-client dm-tree).
"""

from __future__ import annotations

import numpy as np
import pytest
from fake_policy import CHUNK, WIDTH, observation, running

pytest.importorskip("openpi_client", reason="openpi-client is not installed: pip install --no-deps openpi-client")

from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from wamkit.serving.wire import pack, unpack


def test_it_gets_metadata_and_actions():
    with running() as server:
        client = WebsocketClientPolicy("localhost", server.port)
        metadata = client.get_server_metadata()
        assert metadata["observation"]["observation/state"]["shape"] == [2]
        for count in range(5):
            reply = client.infer(observation(2.0, count))
            assert reply["actions"].shape == (CHUNK, WIDTH)
            assert reply["actions"][0, 0] == pytest.approx(2.0 + count / 1e4)
            assert reply["server_timing"]["infer_ms"] >= 0
        client.reset()


def test_its_key_opens_a_server_with_a_token():
    with running(token="s3cret") as server:
        client = WebsocketClientPolicy(f"ws://localhost:{server.port}", api_key="s3cret")
        assert client.infer(observation(1.0))["actions"][0, 0] == 1.0


def test_an_error_is_the_error_that_it_knows():
    with running() as server:
        client = WebsocketClientPolicy("localhost", server.port)
        with pytest.raises(RuntimeError, match=r"Error in inference server:\n.*not finite in who"):
            client.infer(observation(np.nan))


def test_its_chunk_broker_hands_out_a_chunk_action_by_action():
    broker_module = pytest.importorskip("openpi_client.action_chunk_broker", reason="its broker needs dm-tree")
    with running() as server:
        broker = broker_module.ActionChunkBroker(WebsocketClientPolicy("localhost", server.port), CHUNK)
        replies = [broker.infer(observation(float(who))) for who in range(CHUNK + 1)]
        assert [reply["actions"][0] for reply in replies] == [0.0] * CHUNK + [CHUNK]
        assert [float(reply["times"]) for reply in replies[:3]] == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("dtype", ["?", "u1", "i4", "f2", "f4", "f8"])
def test_both_write_the_same_bytes(dtype):
    content = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.dtype(dtype).type(1), "c": "text", "d": [1, 2.5]}
    assert pack(content) == msgpack_numpy.packb(content)
    theirs = unpack(msgpack_numpy.packb(content))
    assert theirs["a"].dtype == dtype
    np.testing.assert_array_equal(theirs["a"], content["a"])
