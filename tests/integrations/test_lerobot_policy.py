"""LeRobot's own commands with wamkit's models: train in stages, evaluate, and checkpoints that both libraries read.

One chain for all tests, each link starting from the one before: ``lerobot-train`` trains LaWAM's encoder and then its
latent actions, wamkit's trainer its policy, ``lerobot-train`` goes on with that, and ``lerobot-eval`` tries the outcome
on MetaWorld. The commands run as their console scripts run them, plug-in discovery included, but in this process: to
import LeRobot again for each would take most of the time.
"""

from __future__ import annotations

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import wamkit
from wamkit.data.synthetic import make_synthetic_dataset

lerobot_train = pytest.importorskip("lerobot.scripts.lerobot_train")

CAMERA = "corner2_near"
RATE, HORIZON = 80, 0.1
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def flags(**values: object) -> list[str]:
    return [f"--{name.replace('__', '.')}={value}" for name, value in values.items()]


def training(data: Path, output_dir: Path, **policy: object) -> list[str]:
    return [
        *flags(dataset__repo_id="local/disc", dataset__root=data, dataset__video_backend="pyav"),
        *flags(steps=2, batch_size=2, num_workers=0, log_freq=1, env_eval_freq=0, output_dir=output_dir),
        *(f"--policy.{name}={value}" for name, value in policy.items()),
        *flags(policy__push_to_hub="false", policy__device="cpu", policy__dtype="float32"),
    ]


def command(module, arguments: list[str]) -> None:
    """A command of LeRobot as its console script runs it."""
    from accelerate.state import AcceleratorState

    before, sys.argv = sys.argv, [module.__name__, *map(str, arguments)]
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        module.main()
    finally:
        sys.argv = before
        AcceleratorState._reset_state(reset_partial_state=True)


def checkpoint(run: Path) -> Path:
    return run / "checkpoints/last/pretrained_model"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("recordings") / "disc"
    make_synthetic_dataset(
        root,
        episodes=3,
        length=24,
        fps=RATE,
        cameras=(CAMERA,),
        resolution=(96, 96),
        action_dim=4,
        state_dim=4,
        embodiment="metaworld",
    )
    return root


@pytest.fixture(scope="module")
def runs(data, small_lawam, tmp_path_factory) -> dict[str, Path]:
    """The chain; see the module's docstring."""
    from wamkit.data.windows import WindowSpec
    from wamkit.inference.policy import read_config
    from wamkit.training.config import DatasetConfig, StageConfig, StartingPolicy, TrainConfig
    from wamkit.training.loop import train

    folder = tmp_path_factory.mktemp("runs")
    runs = {name: folder / name for name in ("encoder", "latent_action", "policy_by_wamkit", "policy")}
    fields = small_lawam | {"preset": "tiny", "horizon_s": HORIZON, "max_actions": 10}
    given = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in fields.items()}
    command(lerobot_train, training(data, runs["encoder"], type="lawam", stage="encoder", **given))
    command(
        lerobot_train,
        training(data, runs["latent_action"], path=checkpoint(runs["encoder"]), stage="latent_action"),
    )
    start = checkpoint(runs["latent_action"])
    values = read_config(start)[1]
    window = WindowSpec(frame_offsets_s=(0.0, HORIZON), chunk_s=HORIZON, max_actions=10, cameras=(CAMERA,))
    stages = [
        StageConfig(name=name, window=window, steps=2, batch_size=2, learning_rate=1e-3)
        for name in ("encoder", "latent_action", "policy")
    ]
    run = TrainConfig.from_dict(
        TrainConfig(
            name="after_lerobot",
            model="lawam",
            dataset=DatasetConfig(roots=(str(data),)),
            stages=tuple(stages),
            selected_stages=("policy",),
            policy=StartingPolicy(path=str(start)),
            output_dir=str(runs["policy_by_wamkit"]),
            precision="fp32",
            device="cpu",
            workers=0,
            logger="none",
        ).to_dict()
        | {"model_config": values}
    )
    train(run)
    command(lerobot_train, training(data, runs["policy"], path=checkpoint(runs["policy_by_wamkit"])))
    return runs


def observation(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"observation.images.{CAMERA}": rng.integers(0, 256, (96, 96, 3), dtype=np.uint8),
        "observation.state": rng.uniform(0.3, 0.7, 4).astype(np.float32),
    }


def lerobot_actions(path: Path, seen: dict[str, np.ndarray], task: str, noise: torch.Tensor) -> np.ndarray:
    """What LeRobot does with a checkpoint at run time: its own loading, its own pipelines."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(path)
    policy = get_policy_class(config.type).from_pretrained(path, config=config)
    policy.config.dtype = "float32"
    overrides = {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}}
    before, after = make_pre_post_processors(policy.config, path, preprocessor_overrides=overrides)
    batch = {
        key: torch.from_numpy(value).permute(2, 0, 1)[None].float() / 255
        if value.ndim == 3
        else torch.from_numpy(value)[None]
        for key, value in seen.items()
    }
    chunk = policy.predict_action_chunk(before(batch | {"task": [task]}), noise=noise)
    assert chunk.shape == (1, round(RATE * HORIZON), 4)
    return after(chunk).numpy()


@pytest.mark.parametrize("run", ["latent_action", "policy_by_wamkit", "policy"])
def test_a_checkpoint_of_either_library_acts_the_same_in_the_other(runs, run):
    path, seen = checkpoint(runs[run]), observation()
    policy = wamkit.load(path, device="cpu", precision="fp32")
    noise = torch.randn(1, *policy.model.action_noise_shape, generator=torch.Generator().manual_seed(5))
    theirs = lerobot_actions(path, seen, "push the disc", noise)
    ours = policy.act(seen | {"task": "push the disc"}, seeds=[5])
    steps = int(ours.valid.sum())
    assert ours.actions[:, :steps].numpy() == pytest.approx(theirs, abs=1e-5)
    other = lerobot_actions(path, observation(1), "push the disc", noise)
    assert np.abs(other - theirs).max() > 1e-6  # the comparison above is of something that looks


def test_the_contract_of_a_policy_that_lerobot_trained(runs, data):
    from wamkit.data.contract import check
    from wamkit.data.lerobot import LeRobotSource
    from wamkit.data.mixture import fit_normalizer
    from wamkit.data.windows import MixtureEntry

    policy = wamkit.load(runs["latent_action"], device="cpu")
    (body,) = policy.contract.bodies
    assert (body.embodiment, body.rate_hz, policy.contract.horizon_s) == ("metaworld", RATE, HORIZON)
    assert policy.cameras == (CAMERA,)
    assert check(policy.contract, LeRobotSource(data)) == []
    fitted = fit_normalizer([MixtureEntry(source=LeRobotSource(data))])
    rows = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    theirs = policy.normalizer.unnormalize_action(rows, "metaworld")
    assert theirs == pytest.approx(fitted.unnormalize_action(rows, "metaworld"), abs=1e-5)


def test_each_stage_trained_its_own_part(runs):
    from wamkit.training.checkpoint import load_weights

    weights = {name: load_weights(checkpoint(run) / "model.safetensors") for name, run in runs.items()}
    described = {name: json.loads((checkpoint(run) / "config.json").read_text()) for name, run in runs.items()}
    assert [described[name]["stage"] for name in runs] == ["encoder", "latent_action", "policy", "policy"]
    moved = {
        late: {name.split(".")[0] for name, value in weights[late].items() if not value.equal(weights[early][name])}
        for early, late in pairwise(weights)
    }
    assert moved["latent_action"] == {"lam"}
    assert {"vlm", "flow", "latent_head"} <= moved["policy_by_wamkit"]
    assert {"vlm", "flow", "latent_head"} <= moved["policy"]
    assert "vision_encoder" not in moved["policy_by_wamkit"] | moved["policy"]


@pytest.mark.sim
@pytest.mark.usefixtures("rendering")
def test_lerobot_evaluates_on_metaworld(runs, tmp_path, monkeypatch):
    from wamkit.envs.rendering import import_mujoco

    import_mujoco()  # chooses an OpenGL that works here, which LeRobot leaves to the environment
    from lerobot.envs import metaworld as environments
    from lerobot.scripts import lerobot_eval

    made = environments.MetaworldEnv.__init__

    def short(self, *arguments, **settings):
        made(self, *arguments, **settings)
        self._max_episode_steps = 5  # LeRobot fixes 500, a minute of rendering

    monkeypatch.setattr(environments.MetaworldEnv, "__init__", short)
    rename = json.dumps({"observation.image": f"observation.images.{CAMERA}"})
    arguments = flags(env__type="metaworld", env__task="reach-v3", eval__n_episodes=1, eval__batch_size=1)
    arguments += flags(policy__path=checkpoint(runs["policy"]), policy__n_action_steps=4, rename_map=rename)
    command(lerobot_eval, [*arguments, *flags(output_dir=tmp_path / "eval", policy__device="cpu")])
    found = json.loads((tmp_path / "eval/eval_info.json").read_text())
    assert found["overall"]["n_episodes"] == 1
    assert list((tmp_path / "eval/videos").rglob("*.mp4"))


def test_a_stopped_run_is_resumed(data, small_lawam, tmp_path):
    """``lerobot-train --resume=true``: stage, statistics, optimiser and learning rate go on where they were.

    Not the noise: LeRobot draws from the generator between restoring it and the first step, so weights differ.
    """
    from safetensors.torch import load_file

    from wamkit.training.checkpoint import load_weights

    fields = small_lawam | {"preset": "tiny", "stage": "encoder", "horizon_s": HORIZON, "max_actions": 10}
    given = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in fields.items()}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = [*training(data, whole, type="lawam", **given), *flags(save_freq=2, steps=4)]
    command(lerobot_train, [argument for argument in arguments if argument not in flags(steps=2)])
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"000002", "000004", "last"}
    shutil.copytree(whole, stopped, symlinks=True)
    shutil.rmtree(stopped / "checkpoints/000004")
    (stopped / "checkpoints/last").unlink()
    (stopped / "checkpoints/last").symlink_to("000002")
    half = load_weights(checkpoint(stopped) / "model.safetensors")
    resumed = checkpoint(stopped) / "train_config.json"
    command(lerobot_train, flags(config_path=resumed, resume="true", output_dir=stopped))
    assert (stopped / "checkpoints/last").resolve().name == "000004"
    ended = load_weights(checkpoint(stopped) / "model.safetensors")
    assert {name.split(".")[0] for name, value in ended.items() if not value.equal(half[name])} == {"vision_encoder"}
    described, schedules, steps = [], [], []
    for run in (stopped, whole):
        state = checkpoint(run).parent / "training_state"
        described.append(json.loads((checkpoint(run) / "config.json").read_text()))
        schedules.append(json.loads((state / "scheduler_state.json").read_text()))
        optimizer = load_file(state / "optimizer_state.safetensors")
        steps.append({name: float(value) for name, value in optimizer.items() if name.endswith("step")})
    assert described[0]["stage"] == "encoder"
    assert described[0]["contract"] == described[1]["contract"]
    assert schedules[0] == schedules[1]
    assert steps[0] == steps[1]
    assert set(steps[0].values()) == {4.0}


@pytest.mark.usefixtures("runs")
def test_lerobot_found_the_plug_in_by_the_name_of_its_distribution():
    assert "lerobot_policy_wamkit" in sys.modules  # nothing of ours imports it


def test_a_later_stage_wants_a_start(data, tmp_path):
    with pytest.raises(Exception, match="trained in stages, encoder -> latent_action -> policy"):
        command(lerobot_train, training(data, tmp_path / "a", type="lawam"))
    with pytest.raises(Exception, match="Stage 'policy' builds on 'latent_action'"):
        command(lerobot_train, training(data, tmp_path / "b", type="lawam", stage="policy"))


def test_a_stage_is_not_skipped(runs, data, tmp_path):
    with pytest.raises(Exception, match=r"train --policy\.stage=latent_action first"):
        command(lerobot_train, training(data, tmp_path / "a", path=checkpoint(runs["encoder"]), stage="policy"))
