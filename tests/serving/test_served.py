"""A real policy, random weights: what clients are told of it, the contract check, and `wam serve` as a process."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wamkit.cli import main
from wamkit.client import PolicyClient, Refused
from wamkit.configuration import to_dict
from wamkit.data.contract_terms import BodyContract, CameraContract, Contract, VectorContract
from wamkit.data.normalize import ACTION, STATE, Normalizer
from wamkit.data.orientation import thumbnail
from wamkit.encoders.byte_text import InstructionTooLong
from wamkit.errors import WamkitError
from wamkit.evaluation.provenance import checkpoint_record
from wamkit.inference.monitor_calibration import Calibration, Scale
from wamkit.inference.policy import Policy, load
from wamkit.json_files import write_json
from wamkit.models import registry
from wamkit.serving.batching import Item
from wamkit.serving.logs import LOGGER
from wamkit.serving.served import ServedPolicy
from wamkit.training.checkpoint import WEIGHTS, save_weights

CAMERA, SIZE = "corner2_near", (128, 128)
SCENE = np.broadcast_to(np.linspace(20, 230, 128)[:, None, None], (*SIZE, 3)).astype(np.uint8)
"""Dark above, bright below: upside down is another picture."""


def vector(names: tuple[str, ...], low: float, high: float) -> tuple[VectorContract, dict[str, np.ndarray]]:
    middle, spread = (low + high) / 2, (high - low) / 4
    count = len(names)
    terms = {"mean": middle, "std": spread, "low": low, "high": high}
    statistics = {"mean": middle, "std": spread, "min": low, "max": high, "q01": low, "q99": high}
    return (
        VectorContract(
            names=names, bounds=((low, high),) * count, **{key: (value,) * count for key, value in terms.items()}
        ),
        {key: np.full(count, value) for key, value in statistics.items()},
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny LaWAM that has learned nothing, as a training run would have left it."""
    folder = tmp_path_factory.mktemp("served") / "pretrained_model"
    torch.manual_seed(0)
    chosen = registry.model_class("lawam")
    model = chosen(chosen.preset("tiny"))
    state, state_statistics = vector(("x", "y", "z", "grip"), 0.0, 1.0)
    action, action_statistics = vector(("dx", "dy", "dz", "effort"), -1.0, 1.0)
    normalizer = Normalizer({"metaworld": {STATE: state_statistics, ACTION: action_statistics}})
    camera = CameraContract(name=CAMERA, recorded_as=CAMERA, size=SIZE, thumbnail=thumbnail(SCENE[None]))
    contract = Contract(
        cameras=((CAMERA, SIZE),),
        resolution=SIZE,
        resize="stretch",
        horizon_s=0.2,
        bodies=(
            BodyContract(
                embodiment="metaworld",
                statistics="metaworld",
                rate_hz=80.0,
                cameras=(camera,),
                state=state,
                action=action,
            ),
        ),
        statistics_hash=normalizer.statistics_hash(),
    )
    normalizer.save(folder)
    save_weights(model.state_dict(), folder / WEIGHTS)
    described = {"type": "lawam", "stage": "policy", **to_dict(model.config), "contract": to_dict(contract)}
    write_json(folder / "config.json", described)
    return folder


@pytest.fixture(scope="module")
def policy(checkpoint) -> Policy:
    return load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def served(policy) -> ServedPolicy:
    return ServedPolicy(policy)


def observation(seed: int = 0) -> dict:
    noise = np.random.default_rng(seed)
    return {
        f"observation.images.{CAMERA}": SCENE // 2 + noise.integers(0, 60, SCENE.shape, np.uint8),
        "observation.state": noise.uniform(0, 1, 4).astype(np.float32),
        "task": "open the faucet",
    }


def test_clients_are_told_what_the_policy_takes_and_gives(served):
    assert served.request_format.metadata()[f"observation/images/{CAMERA}"]["shape"] == [128, 128, 3]
    said = served.metadata()
    assert said["model"] == "lawam"
    assert said["embodiment"] == "metaworld"
    assert said["action"]["shape"] == [16, 4]
    assert said["action"]["names"] == ["dx", "dy", "dz", "effort"]
    assert said["action"]["low"] == [-1.0] * 4
    assert said["rate_hz"] == 80.0
    assert said["chunk"] == {"length": 16, "seconds": 0.2, "inpaints": said["chunk"]["inpaints"]}


def test_a_batch_gives_each_item_what_it_would_get_alone(served, policy):
    items = [Item(observation=observation(seed), seed=seed) for seed in range(3)]
    together = served.act(items)
    for item, actions in zip(items, together, strict=True):
        alone = policy.act(item.observation, seeds=[item.seed]).actions[0].numpy()
        np.testing.assert_allclose(actions, alone, atol=2e-2)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_a_plan_is_gone_on_from_in_the_same_batch(served):
    if not served.request_format.inpaints:
        pytest.skip("this model cannot go on from a plan")
    plan = np.linspace(-0.5, 0.5, 32, dtype=np.float32).reshape(8, 4)
    items = [
        Item(observation=observation(0), seed=0, previous=plan, delay=4),
        Item(observation=observation(1), seed=1),
    ]
    going_on, fresh = served.act(items)
    np.testing.assert_allclose(going_on[:4], plan[:4], atol=1e-4)
    np.testing.assert_allclose(fresh, served.act(items[1:])[0], atol=2e-2)


@pytest.mark.parametrize(
    ("robot", "said"),
    [
        ({}, None),
        ({"rate_hz": 80.0, "embodiment": "metaworld", "state_names": ["x", "y", "z", "grip"]}, None),
        ({"rate_hz": 20.0}, "the policy acts at 80 Hz"),
        ({"embodiment": "droid"}, "this is 'droid'"),
        ({"state_names": ["y", "x", "z", "grip"]}, "the order differs"),
        ({"action_names": ["dx", "dy", "dz"]}, "3 dimensions here"),
        ({"action_low": [0.0] * 4, "action_high": [1.0] * 4}, "takes [0, 1]"),
    ],
)
def test_the_contract_check(served, robot, said):
    seen = observation() | {f"observation.images.{CAMERA}": SCENE}
    found = served.violations(seen, robot)
    assert (said is None and not found) or any(said in line for line in found)


def test_a_camera_that_hangs_upside_down_is_seen(served):
    found = served.violations(observation() | {f"observation.images.{CAMERA}": SCENE[::-1]}, {})
    assert len(found) == 1
    assert "upside down" in found[0] or "turned by 180 degrees" in found[0]


@pytest.mark.parametrize(
    "robot",
    [
        {"rate": 5},
        {"rate_hz": "fast"},
        {"rate_hz": -1.0},
        {"state_names": "xyz"},
        {"action_low": [1.0]},
        {"embodiment": 3},
    ],
)
def test_a_robot_described_wrongly_is_refused(served, robot):
    with pytest.raises(WamkitError, match="'robot'"):
        served.violations(observation(), robot)


def test_a_policy_without_actions_cannot_be_served(policy):
    from dataclasses import replace

    body = replace(policy.contract.bodies[0], action=None)
    blind = Policy(policy.model, policy.normalizer, replace(policy.contract, bodies=(body,)))
    with pytest.raises(WamkitError, match="without actions"):
        ServedPolicy(blind)


@pytest.fixture
def log_as_before():
    """`wam serve` sends the server's log to standard error as JSON lines, for good."""
    handlers, level, propagate = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    yield
    LOGGER.handlers[:], LOGGER.propagate = handlers, propagate
    LOGGER.setLevel(level)
    logging.captureWarnings(False)
    logging.getLogger("py.warnings").handlers.clear()


@pytest.mark.usefixtures("log_as_before")
def test_wam_serve_serves_and_ends_in_order(checkpoint, policy, tmp_path, capsys):
    """In this process, which is quicker; the load test and example 09 start real ones."""
    (tmp_path / "token").write_text("s3cret\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    seen: dict[str, object] = {}

    def robot() -> None:
        with PolicyClient(f"ws://127.0.0.1:{port}", token="s3cret", timeout_s=60, connect_timeout_s=100) as client:
            try:
                seen["metadata"] = client.metadata
                seen["chunks"] = [client.infer(observation(), seed=4)["actions"] for _ in range(2)]
                page = urllib.request.Request(
                    f"http://127.0.0.1:{port}/monitor/state", headers={"Authorization": "Bearer s3cret"}
                )
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(page, timeout=60) as told:
                    seen["page"] = json.load(told)
                with pytest.raises(Refused, match="not finite in y"):
                    client.act(observation() | {"observation.state": np.array([0, np.nan, 0, 0])})
                seen["refused"] = True
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # the server's handler takes it

    thread = threading.Thread(target=robot, daemon=True)
    thread.start()
    flags = ["--policy.path", str(checkpoint), "--port", str(port), "--token_file", str(tmp_path / "token")]
    scale, digest = Scale("copy_present", {"200": 0.1}), checkpoint_record(checkpoint)["sha256"]
    Calibration(scale, 0.7, 0.05, memory=1, episodes=40, checkpoint=digest).save(tmp_path / "monitor.json")
    flags += ["--monitor", "--calibration", str(tmp_path / "monitor.json")]
    assert main(["serve", *flags, "--device", "cpu", "--debug"]) == 0
    thread.join(10)
    assert seen["refused"]
    assert len(seen["metadata"]["checkpoint"]) == 64
    assert (seen["page"]["threshold"], seen["page"]["episodes"][0]["looks"]) == (0.7, 2)
    one, again = seen["chunks"]
    np.testing.assert_array_equal(one, again)
    np.testing.assert_allclose(one, policy.act(observation(), seeds=[4]).actions[0].numpy(), atol=1e-5)

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines[:2]] == ["loaded", "listening"]
    counts = {"accepted": 3, "answered": 2, "refused": 1, "undelivered": 0}
    assert lines[-1] | {"time": ""} == {"time": "", "level": "info", "event": "stopped"} | counts


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--certificate", "c.pem"], "both a certificate and its key"),
        (["--token_file", "none"], "cannot be read"),
        (["--max_batch", "0"], "max_batch is 0"),
    ],
)
def test_what_cannot_be_served_is_one_line(flags, said, capsys, checkpoint):
    assert main(["serve", "--policy.path", str(checkpoint), *flags]) == 1
    assert said in capsys.readouterr().err


def test_a_runtime_is_warmed_up_for_every_batch_and_length(policy, monkeypatch):
    asked: list[tuple[int, int]] = []

    def noted(observations, **_):
        asked.append((len(observations), len(observations[0]["task"])))
        if asked[-1][1] > 64:
            raise InstructionTooLong("a", 60, 50, "bytes")
        size = len(observations)
        return SimpleNamespace(actions=torch.zeros(size, 16, 4), valid=torch.ones(size, 16, dtype=torch.bool))

    served = ServedPolicy(policy)
    assert served.warm_up(max_batch=4) == 0, "a plain policy has no shapes to prepare"
    prepared = SimpleNamespace(settings=SimpleNamespace(batch_sizes=(1, 2, 8)), reports=lambda: asked)
    monkeypatch.setattr(policy, "runtime", prepared)
    monkeypatch.setattr(policy, "act", noted)
    served.warm_up(max_batch=4)
    assert asked == [(size, length) for size in (1, 2, 4) for length in (0, 48, 96)]
