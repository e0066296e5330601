"""The server from outside: the protocol, the doors, sessions that cannot harm each other, and the shutdown."""

from __future__ import annotations

import json
import logging
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from fake_policy import CHUNK, SIZE, WIDTH, FakePolicy, Talk, observation, running
from websockets.exceptions import InvalidStatus

from wamkit.errors import WamkitError
from wamkit.serving.config import ServerConfig, ServerError
from wamkit.serving.logs import LOGGER, JsonLines
from wamkit.serving.wire import encode_jpeg, pack


@pytest.fixture(scope="module")
def shared():
    """A server for the tests that leave it as it was."""
    with running() as server:
        yield server


def get(server, path: str, token: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(f"http://localhost:{server.port}{path}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# The protocol


def test_the_first_frame_says_what_the_policy_takes_and_gives(shared):
    with Talk(shared) as talk:
        said = talk.metadata
    assert said["observation"]["observation/images/front"] == {"shape": [*SIZE, 3], "dtype": "uint8", "jpeg": True}
    assert said["action"]["shape"] == [CHUNK, WIDTH]
    assert said["action"]["normalised"] is False
    assert said["rate_hz"] == 10.0
    assert said["chunk"]["length"] == CHUNK
    assert "un-normalised on the server" in said["conventions"]["actions"]
    assert said["max_message_bytes"] == (1 << 20) + 2 * (6 * 8 * 3 + 2 * 8 + 4 * 4096)


def test_a_reply_holds_actions_their_times_and_what_they_took(shared):
    with Talk(shared) as talk:
        first = talk.ask(observation(3.0, 20.0, gray=9) | {"echo": 5, "seed": 11})
        second = talk.ask(observation(3.0, 21.0))
    assert first["actions"].dtype == np.float32
    np.testing.assert_allclose(first["actions"], np.tile([3.002, 9, 11], (CHUNK, 1)), rtol=1e-6)
    np.testing.assert_allclose(first["times"], np.arange(CHUNK) / 10, rtol=1e-6)
    assert first["echo"] == 5
    assert first["server_timing"].keys() == {"queue_ms", "infer_ms", "total_ms", "batch"}
    assert second["server_timing"]["prev_total_ms"] == pytest.approx(first["server_timing"]["total_ms"])
    assert "echo" not in second


def test_pictures_may_cross_as_jpeg(shared):
    with Talk(shared) as talk:
        reply = talk.ask(observation() | {"observation/images/front": encode_jpeg(np.full((*SIZE, 3), 60, np.uint8))})
    assert abs(reply["actions"][0, 1] - 60) < 3


def test_pipelined_requests_are_answered_in_order(shared):
    with Talk(shared) as talk:
        for count in range(30):
            talk.send(observation(1.0, count) | {"echo": count})
        assert [talk.receive()["echo"] for _ in range(30)] == list(range(30))


def test_a_plan_to_go_on_from_reaches_the_policy(shared):
    with Talk(shared) as talk:
        reply = talk.ask(observation() | {"previous": np.ones((2, WIDTH), np.float32), "delay": 2})
    assert reply["actions"][0, 0] == 2 * WIDTH + 2000


def test_what_is_sampled_depends_on_session_and_request_alone():
    def seeds():
        with running(seed=3) as server, Talk(server) as one, Talk(server) as other:
            return [int(talk.ask(observation())["actions"][0, 2]) for talk in (one, other, one)]

    drawn = seeds()
    assert len(set(drawn)) == 3
    assert seeds() == drawn


# Sessions


def test_each_session_has_its_own_memory_and_reset_clears_it(shared):
    with Talk(shared) as one, Talk(shared) as other:
        assert [one.ask(observation(task="remember"))["actions"][0, 0] for _ in range(3)] == [1, 2, 3]
        assert other.ask(observation(task="remember"))["actions"][0, 0] == 1
        assert one.ask(observation(task="remember") | {"reset": True})["actions"][0, 0] == 1
        assert one.ask(observation(task="remember"))["actions"][0, 0] == 2


@pytest.mark.parametrize(
    ("message", "said", "reason"),
    [
        (b"", "no msgpack", "malformed"),
        (b"\xc1", "no msgpack", "malformed"),
        (pack(observation())[:-3], "no msgpack", "malformed"),
        ("hello", "binary frame", "malformed"),
        (pack([1, 2]), "a request is a dictionary", "malformed"),
        (pack(observation(np.nan)), "not finite in who", "malformed"),
        (pack(observation() | {"observation/state": np.zeros(5)}), r"got float64 [5]", "malformed"),
        (pack(observation() | {"observation/images/front": b"\xff\xd8\xff"}), "no JPEG", "malformed"),
        (pack(observation() | {"robot": {"rate_hz": 20.0}}), "does not fit the policy: rate", "contract"),
        (pack(observation(task="nan")), "not finite for this observation", "inference"),
        (pack(observation(task="explode")), "ZeroDivisionError: the policy's own fault", "internal"),
    ],
)
def test_a_bad_request_gets_words_and_harms_nobody_else(shared, message, said, reason):
    before = shared.server.metrics.refused.values.get(reason, 0)
    with Talk(shared) as good, Talk(shared) as bad:
        good.send(observation(4.0, 1.0))
        answer = bad.ask(message)
        assert isinstance(answer, str)
        assert said in answer
        assert "Traceback" not in answer
        assert bad.closed() == 1011
        assert good.receive()["actions"][0, 0] == pytest.approx(4.0001)
        assert good.ask(observation(5.0))["actions"][0, 0] == 5.0
    assert shared.server.metrics.refused.values[reason] == before + 1


def test_a_failure_in_the_middle_of_a_batch_is_one_sessions_alone():
    served = FakePolicy(seconds=0.05)
    with running(served) as server:
        talks = [Talk(server) for _ in range(5)]
        for round_ in range(2):  # the first fills the queue while the policy is busy
            for number, talk in enumerate(talks):
                if not (round_ and number == 2):
                    talk.send(observation(number, task="explode" if number == 2 else "go"))
            for number, talk in enumerate(talks):
                if number != 2:
                    assert talk.receive()["actions"][0, 0] == number
                elif not round_:
                    assert "ZeroDivisionError" in talk.receive()
        for talk in talks:
            talk.connection.close()
    assert max(served.batches) > 1


def test_an_oversized_message_is_told_so():
    with running(max_message_bytes=2000) as server, Talk(server) as good, Talk(server) as bad:
        assert "larger than the 2000 bytes" in bad.ask(b"\0" * 2001)
        assert bad.closed() == 1009
        assert good.ask(observation(2.0))["actions"][0, 0] == 2.0
        deadline = time.monotonic() + 5
        while not server.server.metrics.refused.values.get("oversized") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.server.metrics.refused.values == {"oversized": 1}
        assert server.counted("accepted") == 1


def test_a_client_that_vanishes_leaves_the_others_alone():
    with running(FakePolicy(seconds=0.05)) as server, Talk(server) as good:
        gone = Talk(server)
        for count in range(4):
            gone.send(observation(1.0, count))
        gone.connection.socket.close()
        assert good.ask(observation(2.0))["actions"][0, 0] == 2.0
        deadline = time.monotonic() + 10
        while len(server.server._sessions) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.accounts()["accepted"] >= 1
        assert len(server.server._sessions) == 1


def test_requests_of_several_sessions_share_a_batch():
    served = FakePolicy(seconds=0.05)
    with running(served, max_batch=4) as server:
        talks = [Talk(server) for _ in range(6)]
        for number, talk in enumerate(talks):
            talk.send(observation(number))
        replies = [talk.receive() for talk in talks]
        for talk in talks:
            talk.connection.close()
    assert [reply["actions"][0, 0] for reply in replies] == list(range(6))
    assert sum(served.batches) == 6
    assert 1 < max(served.batches) <= 4


# Doors


def test_health_and_metrics(shared):
    assert get(shared, "/healthz") == (200, "OK\n")
    with Talk(shared) as talk:
        talk.ask(observation())
        status, text = get(shared, "/metrics")
    assert status == 200
    rows = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(rows["wamkit_sessions"]) >= 1
    assert float(rows["wamkit_requests_answered_total"]) >= 1
    assert float(rows["process_resident_memory_bytes"]) > 1e6
    assert rows['wamkit_infer_seconds_bucket{le="+Inf"}'] == rows["wamkit_infer_seconds_count"]
    assert float(rows['wamkit_batch_size_bucket{le="1"}']) >= 1


def test_a_token_is_asked_for():
    with running(token="s3cret") as server:
        for headers in (None, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            with pytest.raises(InvalidStatus) as refused:
                Talk(server, additional_headers=headers)
            assert refused.value.response.status_code == 401
        for scheme in ("Bearer", "Api-Key"):  # openpi's client says the second
            with Talk(server, additional_headers={"Authorization": f"{scheme} s3cret"}) as talk:
                assert talk.ask(observation())["actions"].shape == (CHUNK, WIDTH)
        assert get(server, "/metrics")[0] == 401
        assert get(server, "/metrics", "s3cret")[0] == 200
        assert get(server, "/healthz") == (200, "OK\n")
        assert server.server.metrics.rejected.values == {"token": 4}


def test_no_more_sessions_than_allowed():
    with running(max_sessions=1) as server:
        with Talk(server), pytest.raises(InvalidStatus) as refused:
            Talk(server)
        assert refused.value.response.status_code == 503
        deadline = time.monotonic() + 5
        while server.server._sessions and time.monotonic() < deadline:
            time.sleep(0.01)
        with Talk(server) as talk:
            assert talk.metadata["server"] == "wamkit"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "certificate.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-x509", "-days", "2"]
    subprocess.run(
        ["openssl", "req", *curve, *names, "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True
    )
    return pem, key


def test_tls(certificate):
    from wamkit.client import PolicyClient, Unreachable

    pem, key = certificate
    with running(certificate=pem, key=key) as server:
        with Talk(server, ssl=ssl.create_default_context(cafile=pem)) as talk:
            assert talk.ask(observation(6.0))["actions"][0, 0] == 6.0
        with PolicyClient(server.address, certificate=pem) as client:
            assert client.act(observation(7.0))[0, 0] == 7.0
        with pytest.raises(Unreachable, match="cannot be used"):
            PolicyClient(server.address, connect_timeout_s=5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"certificate": "x.pem"}, "both a certificate and its key"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"token": " "}, "the token is empty"),
    ],
)
def test_a_config_that_cannot_be_is_refused(options, said):
    with pytest.raises(ServerError, match=said):
        ServerConfig(**options)


def test_a_server_that_cannot_start_says_why(shared, tmp_path):
    with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1:{shared.port}"), running(port=shared.port):
        pass
    (tmp_path / "no.pem").write_text("nothing")
    options = {"certificate": tmp_path / "no.pem", "key": tmp_path / "no.pem"}
    with pytest.raises(ServerError, match="cannot be used with its key"), running(**options):
        pass


# Shutdown


def test_what_has_arrived_is_answered_before_the_end():
    with running(FakePolicy(seconds=0.1)) as server:
        one, other = Talk(server), Talk(server)
        one.ask(observation())
        for count in range(4):
            one.send(observation(1.0, count) | {"echo": count})
        other.send(observation(2.0) | {"echo": "other"})
        time.sleep(0.05)  # arrived, and not answered: the policy is busy with the first
        server.server.stop()
        time.sleep(0.05)
        with pytest.raises((OSError, InvalidStatus)):
            Talk(server, open_timeout=2)
        assert [one.receive()["echo"] for _ in range(4)] == [0, 1, 2, 3]
        assert other.receive()["echo"] == "other"
        assert one.closed() == other.closed() == 1001
    assert server.counted("accepted") == server.counted("answered") == 6


def test_an_idle_session_does_not_hold_up_the_shutdown():
    with running() as server:
        idle = Talk(server)
        began = time.monotonic()
        server.server.stop()
        assert idle.closed() == 1001
        server.thread.join(5)
        assert time.monotonic() - began < 3


def test_a_policy_that_hangs_does_not_hold_up_the_shutdown_for_ever():
    with running(FakePolicy(seconds=2.0), drain_timeout_s=0.2) as server:
        talk = Talk(server)
        talk.send(observation())
        time.sleep(0.1)
        began = time.monotonic()
        server.server.stop()
        server.thread.join(5)
        assert time.monotonic() - began < 1.9
    assert server.counted("undelivered") == 1


# Logs


def test_events_are_json_lines():
    lines: list[dict] = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(json.loads(self.format(record)))

    handler = Keep()
    handler.setFormatter(JsonLines())
    LOGGER.addHandler(handler)
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    try:
        with (
            running(token="s3cret") as server,
            Talk(server, additional_headers={"Authorization": "Bearer s3cret"}) as t,
        ):
            t.ask(observation())
            t.ask(observation(task="explode"))
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
    events = [line["event"] for line in lines]
    assert events[:2] == ["listening", "session_opened"]
    assert events[-2:] == ["draining", "stopped"] or events[-1] == "stopped"
    failed = next(line for line in lines if line["event"] == "request_failed")
    assert failed["level"] == "error"
    assert "ZeroDivisionError" in failed["traceback"]
    refused = next(line for line in lines if line["event"] == "request_refused")
    assert failed["mark"] in refused["said"]
    stopped = lines[-1]
    assert (stopped["accepted"], stopped["answered"], stopped["refused"], stopped["undelivered"]) == (2, 1, 1, 0)
    assert "s3cret" not in json.dumps(lines)
    assert issubclass(ServerError, WamkitError)
