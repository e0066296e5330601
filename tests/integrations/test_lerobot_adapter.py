"""The parts of the LeRobot plug-in: names that LeRobot looks for, flags, and windows equal to wamkit's own."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import tomllib

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot.policies.factory")

from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import (
    get_policy_class,
    make_policy,
    make_policy_config,
    make_pre_post_processors,
)

from wamkit.configuration import ConfigError
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.inference.checkpoints import LEROBOT_KEYS
from wamkit.integrations.lerobot import PLUG_IN, SUPPORTED_VERSIONS
from wamkit.integrations.lerobot.configuration_wamkit import (
    POLICY_TYPES,
    PolicyConfigError,
    WamkitSchedulerConfig,
    camera_name,
)
from wamkit.integrations.lerobot.stage_view import SecondsAhead
from wamkit.models import registry

RATE = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("recordings") / "disc"
    return make_synthetic_dataset(root, episodes=2, length=12, fps=RATE, cameras=("front", "side"))


def metadata(data):
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    return LeRobotDatasetMetadata("local/disc", root=data.root)


def test_the_supported_versions_are_the_pinned_ones(repository):
    ours = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["dependencies"]
    plug_in = tomllib.loads((repository / f"integrations/{PLUG_IN}/pyproject.toml").read_text())["project"]
    assert f"lerobot[dataset,training]=={SUPPORTED_VERSIONS[-1]}" in ours
    assert plug_in["dependencies"] == [
        f"wamkit=={importlib.metadata.version('wamkit')}",
        f"lerobot=={SUPPORTED_VERSIONS[-1]}",
    ]
    # LeRobot compares the name as it is written, underscores and all.
    assert importlib.metadata.metadata(PLUG_IN)["Name"] == plug_in["name"] == PLUG_IN


def test_info_says_which_versions_are_supported():
    from wamkit.diagnostics import diagnose

    (finding,) = (finding for finding in diagnose() if finding.subject == "lerobot plug-in")
    assert finding.ok
    assert all(version in finding.found for version in SUPPORTED_VERSIONS)


@pytest.mark.parametrize("name", POLICY_TYPES)
def test_every_model_of_the_registry_is_a_policy_type(name, tmp_path):
    config = make_policy_config(name, device="cpu", push_to_hub=False)
    assert config.type == name
    assert get_policy_class(name).name == name
    for stage in config.stages:
        view = config.view(stage)
        assert view.frame_offsets_s[0] == 0.0
        assert view.spec.action_count(view.max_actions / view.chunk_s) == view.max_actions
    assert config.model_config() == registry.model_class(name).preset("tiny")
    config.save_pretrained(tmp_path)
    again = PreTrainedConfig.from_pretrained(tmp_path)
    assert again == config
    before, after = make_pre_post_processors(config)
    assert [step._registry_name for step in before.steps][-1] == "normalizer_processor"
    assert len(after.steps) == 2
    own = {field.name for field in dataclasses.fields(registry.model_class(name).config_class)}
    assert {field.name for field in dataclasses.fields(config)} - own - {"stage", "contract"} == LEROBOT_KEYS


def test_a_policy_type_of_lerobots_own_stays_lerobots():
    from lerobot.policies.lingbot_va.configuration_lingbot_va import LingBotVAConfig

    assert set(registry.model_names()) - set(POLICY_TYPES) == {"lingbot_va"}
    assert type(make_policy_config("lingbot_va", device="cpu")) is LingBotVAConfig


def test_flags_are_laid_over_the_preset(tmp_path):
    config = make_policy_config("lawam", device="cpu", horizon_s=1, vlm={"layers": 3}, cameras=["front"])
    tiny = registry.model_class("lawam").preset("tiny")
    assert config.model_config() == dataclasses.replace(
        tiny, horizon_s=1.0, vlm=dataclasses.replace(tiny.vlm, layers=3), cameras=("front",)
    )
    with pytest.raises(ConfigError, match=r"no field 'layrs'.*Did you mean 'layers'"):
        make_policy_config("lawam", device="cpu", vlm={"layrs": 3})
    # Another kind of encoder is not mixed with the preset's.
    other = make_policy_config("lawam", device="cpu", encoder={"kind": tiny.encoder.kind, "width": 64})
    assert other.model_config().encoder.patch == tiny.encoder.patch
    config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["vlm"]["layers"] == 3
    assert PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=['--vlm={"layers": 1}']).vlm == config.vlm | {
        "layers": 1
    }


def test_seconds_become_the_nearest_frame():
    assert SecondsAhead(0.2) / 80 == pytest.approx(0.2)
    assert SecondsAhead(1.2) / 5 == pytest.approx(1.2)
    assert SecondsAhead(0.2) / 3 == pytest.approx(1 / 3)
    assert SecondsAhead(0.0) / 3 == 0.0


def test_camera_names():
    assert camera_name("observation.images.top") == "top"
    assert camera_name("observation.image") == "image"


def test_the_schedule_is_wamkits():
    from wamkit.data.windows import WindowSpec
    from wamkit.training.config import StageConfig
    from wamkit.training.optimizer import learning_rate_factor

    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 2e-3}], lr=1e-3)
    schedule = WamkitSchedulerConfig(num_warmup_steps=3).build(optimizer, 10)
    stage = StageConfig(name="x", window=WindowSpec(), steps=10, batch_size=1, learning_rate=2e-3, warmup_steps=3)
    for step in range(10):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-3 * learning_rate_factor(stage, step))
        optimizer.step()
        schedule.step()


@pytest.fixture(scope="module")
def built(data, small_lawam):
    """Makes a policy as ``lerobot-train`` does; a later stage may start without a checkpoint here."""

    def build(stage, **options):
        fields = small_lawam | {"horizon_s": 0.2, "optimizer_lr": 1e-3} | options
        config = make_policy_config("lawam", device="cpu", dtype="float32", stage=stage, **fields)
        config.training_stage = lambda: stage
        return make_policy(config, ds_meta=metadata(data))

    return build


@pytest.mark.parametrize("stage", ["encoder", "policy"])
def test_batches_of_lerobot_become_the_windows_of_our_own_sampler(data, built, tmp_path, stage):
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from wamkit.data.cache import FrameStore
    from wamkit.data.mixture import Mixture, fit_normalizer
    from wamkit.data.windows import MixtureEntry
    from wamkit.integrations.lerobot.batches import window_of

    policy = built(stage)
    config, meta = policy.config, metadata(data)
    assert list(config.cameras) == ["front", "side"]
    dataset = LeRobotDataset(
        "local/disc",
        root=data.root,
        delta_timestamps=resolve_delta_timestamps(config, meta),
        video_backend="pyav",
    )
    before, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
    rows = [0, 5, 9, 11]
    batch = before(torch.utils.data.default_collate([dataset[12 + row] for row in rows]))
    window = window_of(batch, config.cameras, config.view(stage), *policy._contract())

    entry = MixtureEntry(source=data)
    store = FrameStore.build(data, tmp_path, data.cameras, config.view(stage).resolution)
    spec = dataclasses.replace(config.view(stage).spec, resolution=config.view(stage).resolution)
    mixture = Mixture([dataclasses.replace(entry, frame_store=store)], spec, fit_normalizer([entry]))
    ours = mixture.windows_at(0, [1] * len(rows), rows)
    assert window.task == ours.task
    for camera in ("front", "side"):
        assert torch.equal(window.frames[camera], ours.frames[camera])
        assert torch.equal(window.frame_valid[camera], ours.frame_valid[camera])
    assert not window.frame_valid["front"].all() or stage == "encoder"
    assert torch.equal(window.state_valid, ours.state_valid)
    assert torch.allclose(window.state, ours.state, atol=1e-4)
    assert torch.equal(window.action_valid, ours.action_valid)
    assert torch.allclose(window.actions, ours.actions, atol=1e-4)
    assert torch.allclose(window.action_times, ours.action_times)
    assert torch.equal(window.rate_hz, ours.rate_hz)
    assert torch.equal(window.embodiment, ours.embodiment)

    policy.train()
    loss, scalars = policy.forward(batch)
    assert loss.isfinite()
    assert scalars
    each, _ = policy.forward(batch, reduction="none")
    assert each.shape == (len(rows),)


@pytest.mark.parametrize("name", [name for name in POLICY_TYPES if name != "lawam"])
def test_every_other_model_trains_its_last_stage_and_acts(data, name):
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    config = make_policy_config(name, device="cpu", dtype="float32", cameras=["front"])
    assert config.model_config().horizon_s == 0.2
    config.stage = config.stages[-1]
    config.training_stage = lambda: config.stage
    meta = metadata(data)
    policy = make_policy(config, ds_meta=meta)
    times = resolve_delta_timestamps(config, meta)
    dataset = LeRobotDataset("local/disc", root=data.root, delta_timestamps=times, video_backend="pyav")
    before, after = make_pre_post_processors(config, dataset_stats=meta.stats)
    batch = before(torch.utils.data.default_collate([dataset[3]]))
    policy.train()
    loss, scalars = policy.forward(batch)
    loss.backward()
    assert loss.isfinite()
    assert scalars
    assert policy.get_optim_params()
    present = {key: value[:, 0] if key.startswith("observation") else value for key, value in batch.items()}
    actions = after(policy.predict_action_chunk(present))
    assert actions.shape == (1, round(0.2 * RATE), 2)
    assert actions.isfinite().all()
    if not policy.model.capabilities.remembers:
        return
    policy.reset()
    for step in range(5):
        seen = {key: value.clone() for key, value in present.items() if isinstance(value, torch.Tensor)}
        seen["observation.images.front"][..., step] = 0.0  # something moves
        policy.select_action(present | seen)
    # A chunk of two latent frames, two actions each, was executed, and each frame's end was seen.
    assert [episode.rows[0].frames for episode in policy.model.remember()] == [3]


def test_frozen_parts_keep_evaluating_and_groups_have_their_own_rates(built):
    policy = built("policy", trunk_lr_scale=0.25)
    policy.train()
    assert not policy.model.vision_encoder.training
    assert policy.model.flow.training
    policy.eval()
    assert not policy.model.flow.training
    groups = policy.get_optim_params()
    trained = {id(p) for p in policy.parameters() if p.requires_grad}
    assert {id(p) for group in groups for p in group["params"]} == trained
    assert {group["lr"] for group in groups} == {1e-3, 0.25e-3}
    assert {group["weight_decay"] for group in groups} == {0.0, 1e-2}


def test_a_camera_that_is_not_there_is_named(built):
    with pytest.raises(PolicyConfigError, match=r"camera 'fromt'.*front, side.*Did you mean 'front'"):
        built("encoder", cameras=["fromt"])


def test_a_chunk_that_does_not_fit_is_refused(built):
    with pytest.raises(PolicyConfigError, match="has 4 actions at 20 Hz and the model 2 tokens"):
        built("encoder", max_actions=2)


def test_an_action_queue_is_used_up_and_refilled(built):
    policy = built("policy", n_action_steps=3)
    batch = {
        "observation.images.front": torch.rand(1, 3, 64, 64),
        "observation.images.side": torch.rand(1, 3, 64, 64),
        "observation.state": torch.zeros(1, 4),
        "task": ["push the disc"],
    }
    chunk = policy.predict_action_chunk(batch)
    assert chunk.shape == (1, round(0.2 * RATE), 2)
    policy.reset()
    drawn = []
    policy.predict_action_chunk = lambda batch, **_: drawn.append(1) or chunk
    actions = [policy.select_action(batch) for _ in range(4)]
    assert len(drawn) == 2
    assert all(torch.equal(action, chunk[:, step]) for action, step in zip(actions, (0, 1, 2, 0), strict=True))
    policy.reset()
    policy.select_action(batch)
    assert len(drawn) == 3
    del batch["observation.images.side"]
    with pytest.raises(KeyError, match="needs camera 'side'; the observation has front"):
        built("policy").predict_action_chunk(batch)


def test_saved_and_loaded(data, built, tmp_path):
    policy = built("encoder")
    policy.save_pretrained(tmp_path)
    for pipeline in make_pre_post_processors(policy.config, dataset_stats=metadata(data).stats):
        pipeline.save_pretrained(tmp_path)
    loaded = type(policy).from_pretrained(tmp_path)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert loaded.config.contract == policy.config.contract
    (tmp_path / "model.safetensors").unlink()
    torch_free = {"model.flow.none": np.zeros(1, np.float32)}
    from safetensors.numpy import save_file

    save_file(torch_free, tmp_path / "model.safetensors")
    with pytest.raises(Exception, match="does not fit this model's config"):
        type(policy).from_pretrained(tmp_path)
