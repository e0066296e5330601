"""The live page over a real socket: what it is told is what was imagined and seen, and it disturbs nobody."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest
from fake_policy import Running, running
from micro_policy import SIDE, micro_policy, seen
from PIL import Image
from remembering import remembering_policy

from wamkit.client import PolicyClient
from wamkit.inference.monitor import Imagined, Monitor, PolicyImagination
from wamkit.inference.monitor_calibration import Calibration, MonitorError, Scale
from wamkit.serving.batching import Item
from wamkit.serving.live import LiveImagination, View
from wamkit.serving.live_pictures import pixel_panels
from wamkit.serving.served import ServedPolicy

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8)


def get(server: Running, path: str, **headers: str) -> tuple[int, Any, bytes]:
    request = urllib.request.Request(f"http://localhost:{server.port}{path}", headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def state(server: Running, query: str = "") -> dict[str, Any]:
    return json.loads(get(server, f"/monitor/state{query}")[2])


@pytest.fixture(scope="module")
def policy():
    return micro_policy()


def drive(server: Running, task: str = "open the door", episodes: int = 1) -> None:
    with PolicyClient(server.address, timeout_s=60.0) as client:
        assert client.metadata["takes"] == ["timestamp"]
        for _ in range(episodes):
            client.reset()
            for number, at in enumerate(TIMES):
                client.infer(seen(number, task) | {"timestamp": at}, seed=1)


def test_the_page_is_told_what_was_imagined_and_what_came(policy):
    served = ServedPolicy(policy)
    with running(served, live=served.watch()) as server:
        empty = state(server)
        assert empty["episodes"] == []
        assert empty["version"] == ""
        drive(server)
        told = state(server)
        again = state(server, f"?known={told['version']}")
        status, headers, page = get(server, "/monitor")
    monitor, imagination = Monitor(), PolicyImagination(policy)
    for number, at in enumerate(TIMES):
        monitor.observe(at, imagination(seen(number)))
    assert [point[0] for point in told["episode"]["points"]] == pytest.approx(TIMES[2:])
    expected = [(surprise.error, surprise.change) for surprise in monitor.history]
    np.testing.assert_allclose([point[1:3] for point in told["episode"]["points"]], expected, rtol=1e-4)
    assert told["episode"]["task"] == "open the door"
    assert told["episodes"] == [{"number": 1, "task": "open the door", "looks": 5, "alarms": 0}]
    assert "threshold" not in told
    captions = [panel["caption"] for panel in told["episode"]["panels"]]
    assert captions[0] == "seen now"
    assert captions[1].startswith("change imagined 0.4 s ago")
    assert len(captions) == 5
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(panel["src"].partition(",")[2]))))
        for panel in told["episode"]["panels"]
    ]
    shown = np.asarray(Image.fromarray(pictures[0]).resize((SIDE, SIDE), Image.Resampling.BOX)).astype(float)
    newest = seen(len(TIMES) - 1)["observation.images.front"].astype(float)
    assert np.corrcoef(shown.ravel(), newest.ravel())[0, 1] > 0.9
    assert np.abs(pictures[1].astype(int) - pictures[2]).max() > 30  # another picture under another map
    assert "episode" not in again
    assert again["version"] == told["version"]
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"/monitor/state" in page
    assert b"http://" not in page.replace(b"http://www.w3.org/2000/svg", b""), "the page needs nothing from elsewhere"


def test_a_calibration_draws_the_threshold_and_counts_alarms(policy):
    calibration = Calibration(Scale("copy_present", {"400": 1e-3}), 1e-6, 0.05, memory=1, episodes=20)
    served = ServedPolicy(policy)
    with running(served, live=served.watch(calibration)) as server:
        drive(server, episodes=2)
        told = state(server)
        earlier = state(server, "?episode=1")
    assert (told["threshold"], told["false_alarm_rate"]) == (1e-6, 0.05)
    assert [entry["alarms"] for entry in told["episodes"]] == [3, 3]
    assert told["episode"]["number"] == told["episodes"][-1]["number"] > earlier["episode"]["number"]
    for _, error, change, score in told["episode"]["points"]:
        assert score == pytest.approx(error / (change + 1e-3))
    other = Calibration(Scale("copy_present", {"200": 1e-3}), 1.0, 0.05, memory=1, episodes=20)
    with pytest.raises(MonitorError, match=r"horizons of 200 ms and this policy imagines 400 ms"):
        served.watch(other)
    silent = ServedPolicy(remembering_policy())
    with pytest.raises(MonitorError, match="imagines nothing"):
        silent.watch()


def test_the_page_wants_the_token_that_clients_send(policy):
    served = ServedPolicy(policy)

    def basic(password: str) -> str:
        return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()

    with running(served, live=served.watch(), token="s3:cret") as server:
        for path in ("/monitor", "/monitor/", "/monitor/state?episode=1"):
            status, headers, body = get(server, path)
            assert status == 401
            assert headers["WWW-Authenticate"].startswith("Basic realm=")
            assert b"token" in body
            assert get(server, path, Authorization=basic("s3:cret"))[0] == 200
            assert get(server, path, Authorization="Bearer s3:cret")[0] == 200
            for wrong in (basic("s3"), basic(""), "Basic !!", "Basic", "Bearer s3"):
                assert get(server, path, Authorization=wrong)[0] == 401
        assert get(server, "/metrics")[1]["WWW-Authenticate"] == "Bearer"


def test_without_the_flag_there_is_no_page(policy):
    with running(ServedPolicy(policy)) as server:
        status, _, body = get(server, "/monitor")
    assert status == 404
    assert b"wam serve --monitor" in body


def test_a_look_costs_no_pass_of_the_trunk_and_its_failure_no_action(policy, caplog):
    served = ServedPolicy(policy)
    plain = served.act([Item(observation=seen(), seed=3)])[0]

    def broken(number, episode, picture):
        raise OSError("no room on the disk")

    live = served.watch(sinks=[broken])
    passes = []
    hook = policy.model.vlm.register_forward_hook(lambda *_: passes.append(1))
    memory = served.remember()
    with caplog.at_level("ERROR", logger="wamkit.serving"):
        for at in TIMES:
            (actions,) = served.act([Item(observation=seen(), seed=3, memory=memory, at=at)])
            np.testing.assert_array_equal(actions, plain)
    hook.remove()
    assert len(passes) == len(TIMES)
    assert live.state()["episodes"][0]["looks"] == len(TIMES)
    assert "monitor_failed" in caplog.text


def test_a_clock_that_begins_anew_begins_the_curve_anew(policy):
    served = ServedPolicy(policy)
    live = served.watch()
    memory = served.remember()
    for at in (*TIMES, 0.0, 0.2, 0.4):
        served.act([Item(observation=seen(), seed=3, memory=memory, at=at)])
    told = live.state()["episode"]
    assert [point[0] for point in told["points"]] == [0.4]
    assert told["at"] == 0.4


def test_pictures_of_a_model_that_imagines_pixels():
    rng = np.random.default_rng(0)
    view = View(space="pixels", grid=None, horizons_s=(0.1, 0.2))
    live = LiveImagination(view)
    episode = live.episode()
    for step in range(4):
        now, later = rng.uniform(size=(3, 8, 12)), rng.uniform(size=(2, 3, 8, 12))
        episode.look(0.1 * step, "go", np.zeros((8, 12, 3), np.uint8), Imagined(now, later, np.array([0.1, 0.2])))
    told = live.state()["episode"]
    captions = [panel["caption"] for panel in told["panels"]]
    assert captions == [
        "seen now",
        "imagined 0.2 s ago for now",
        "where it is not as imagined",
        "imagined for 0.2 s from now",
    ]
    assert len(told["points"]) == 3 + 2
    assert episode.comparison is not None
    assert episode.imagined is not None
    same = pixel_panels(episode.imagined, episode.comparison)
    assert same == told["panels"]
