"""The recipe for one's own robot: the paper's settings, and the road from published trunks to a policy that acts."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from micro_lawam import LAWAM
from safetensors.torch import load_file

from wamkit.data.embodiments import MAX_EMBODIMENTS
from wamkit.data.normalize import ACTION, Normalizer
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.encoders.dinov3 import DINOv3, DINOv3Config
from wamkit.encoders.qwen3_vl import Qwen3VLSettings, Qwen3VLTrunk
from wamkit.errors import WeightsError
from wamkit.inference.policy import load
from wamkit.models import registry
from wamkit.models.lawam import LaWAMConfig, preset
from wamkit.recipes.lawam_robot import lawam_robot
from wamkit.training.config import TrainConfig
from wamkit.training.loop import train

ENCODER = DINOv3Config(resolution=32, patch=8, width=24, layers=3, heads=2, mlp_width=32, registers=2)
# The vocabulary is Qwen's own: the ids around a picture are its last ones.
TRUNK = replace(LAWAM.vlm, vocabulary=Qwen3VLSettings().vocabulary, freeze_token_embeddings=True, width=16, head_dim=24)


class Road(NamedTuple):
    config: TrainConfig
    policy: Path
    dinov3: Path
    qwen: Path


def _published_dinov3(folder: Path) -> None:
    torch.manual_seed(0)
    DINOv3(ENCODER).model.save_pretrained(folder)


def _published_qwen(folder: Path) -> None:
    """Three layers, of which the policy takes two, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(1)
    settings = replace(TRUNK, weights=None, layers=3)
    Qwen3VLTrunk(settings, latent_queries=1, action_queries=1).model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.add_special_tokens(["<pad>"])
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(folder)


def _small_paper(dinov3: Path, qwen: Path) -> LaWAMConfig:
    """``paper`` with other numbers: the same classes, fields and trunks."""
    return replace(
        preset("paper"),
        encoder=replace(ENCODER, weights=str(dinov3)),
        latent_action=replace(LAWAM.latent_action, embodiments=MAX_EMBODIMENTS),
        vlm=replace(TRUNK, weights=str(qwen)),
        action=replace(LAWAM.action, embodiments=MAX_EMBODIMENTS),
        cameras=("front",),
        horizon_s=0.4,
        max_actions=8,
    )


def _short(recipe: TrainConfig, root: Path, output_dir: Path) -> TrainConfig:
    return replace(
        recipe,
        stages=tuple(replace(stage, steps=2, batch_size=4, warmup_steps=0) for stage in recipe.stages),
        dataset=replace(recipe.dataset, roots=(str(root),), holdout_episodes=1),
        output_dir=str(output_dir),
        device="cpu",
        precision="fp32",
        validation_batches=1,
        workers=1,
        logger="none",
    )


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Road:
    folder = tmp_path_factory.mktemp("robot")
    _published_dinov3(folder / "dinov3")
    _published_qwen(folder / "qwen")
    make_synthetic_dataset(folder / "data", episodes=3, length=12, resolution=(48, 64))
    recipe = lawam_robot(_small_paper(folder / "dinov3", folder / "qwen"))
    config = _short(recipe, folder / "data", folder / "run")
    return Road(config, train(config), folder / "dinov3", folder / "qwen")


def test_published_trunks_are_where_training_begins(road):
    """Nobody trains the encoder and the words' embeddings; what trains has moved by no more than two steps."""
    from transformers import DINOv3ViTModel, Qwen3VLModel

    weights = load_file(road.policy / "model.safetensors")
    for name, value in DINOv3ViTModel.from_pretrained(road.dinov3).state_dict().items():
        assert torch.equal(weights[f"vision_encoder.model.{name}"], value), name
    published = Qwen3VLModel.from_pretrained(road.qwen).state_dict()
    embeddings = "language_model.embed_tokens.weight"
    assert torch.equal(weights[f"vlm.model.{embeddings}"], published[embeddings])
    reach = 2.5 * road.config.stages[-1].learning_rate
    trained = [name for name in published if "layers.2." not in name and name != embeddings]
    far = [(weights[f"vlm.model.{name}"] - published[name]).abs().max() for name in trained]
    assert len(trained) > 50
    assert max(far) < reach
    assert sum(bool(distance > 0) for distance in far) > 50
    assert not [name for name in weights if "language_model.layers.2." in name]


def test_states_and_actions_are_scaled_to_their_range(road):
    normalizer = Normalizer.load(road.policy)
    ends = torch.from_numpy(
        np.stack([normalizer.statistics["custom"][ACTION][name] for name in ("min", "max")]).astype(np.float32)
    )
    scaled = normalizer.normalize(ACTION, ends, "custom")
    torch.testing.assert_close(scaled, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


def test_the_policy_acts(road):
    policy = load(road.policy, device="cpu", precision="fp32")
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    seen = {"observation.images.front": picture, "observation.state": np.zeros(4, np.float32), "task": "push the disc"}
    chunk = policy.act(seen)
    assert chunk.actions.shape == (1, 8, 2)
    assert chunk.actions.isfinite().all()
    assert int(chunk.valid.sum()) == 4  # 0.4 s at 10 Hz
    assert policy.imagine(seen).values.shape == (1, 1, 16, 24)


def test_absent_trunks_stop_the_run_before_anything_is_decoded(road, tmp_path):
    model = road.config.model_config
    for part, missing in (
        ("encoder", replace(model, encoder=replace(model.encoder, weights=str(tmp_path)))),
        ("vlm", replace(model, vlm=replace(model.vlm, weights=str(tmp_path)))),
    ):
        with pytest.raises(WeightsError, match=rf"set {part}\.weights"):
            train(replace(road.config, model_config=missing, output_dir=str(tmp_path / part)))
        assert not (tmp_path / part / "cache").exists()


def test_its_settings_are_the_papers():
    """papers.md 1.3, 1.4 and 1.6."""
    recipe = lawam_robot()
    with torch.device("meta"):
        model = registry.build(recipe.model, recipe.preset)
    assert tuple(stage.name for stage in recipe.stages) == model.stages
    latent_action, policy = recipe.stages
    assert (latent_action.steps, latent_action.batch_size, latent_action.learning_rate) == (100_000, 1024, 3e-4)
    assert (latent_action.weight_decay, latent_action.warmup_steps, latent_action.schedule) == (
        1e-2,
        10_000,
        "constant",
    )
    assert (policy.steps, policy.batch_size, policy.learning_rate, policy.warmup_steps) == (30_000, 256, 1e-4, 1500)
    assert policy.learning_rate * policy.final_lr_fraction == pytest.approx(5e-7)
    assert (policy.betas, policy.eps, policy.weight_decay, policy.clip_norm) == ((0.9, 0.95), 1e-8, 1e-8, 1.0)
    assert {recipe.dataset.state_normalization, recipe.dataset.action_normalization} == {"MIN_MAX"}
    for stage in recipe.stages:
        assert stage.window.resolution == model.vision_encoder.resolution == 256
        assert stage.window.frame_offsets_s == (0.0, 1.2)
    assert (policy.window.chunk_s, policy.window.action_count(20.0), policy.window.max_actions) == (1.2, 24, 50)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_windows_follow_the_model(size):
    model = replace(preset(size), cameras=("front", "wrist"), horizon_s=0.8, max_actions=24)
    with torch.device("meta"):
        stages = registry.build("lawam", model).stages
    recipe = lawam_robot(model)
    assert tuple(stage.name for stage in recipe.stages) == stages
    for stage in recipe.stages:
        assert stage.window.resolution == model.encoder.resolution
        assert stage.window.cameras == (("front", "wrist") if stage.name == "policy" else ("front",))
    assert recipe.stages[-1].window.action_count(30.0) == 24
    assert dataclasses.asdict(recipe.model_config) == dataclasses.asdict(model)
