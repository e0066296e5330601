"""The converter, and the modules it fills, against a reference with the published names and arithmetic."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_lawam import Bottleneck, Decoder, Encoder, Flow, LatentHead, StateDecoder, overlaid
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wamkit.actions.flow_expert import FlowExpertConfig
from wamkit.cli import main
from wamkit.configuration import from_dict
from wamkit.dynamics.latent_action import LatentActionConfig
from wamkit.encoders.dinov3 import DINOv3Config
from wamkit.encoders.qwen3_vl import Qwen3VLSettings
from wamkit.models.lawam import LaWAM, LaWAMConfig
from wamkit.models.lawam.convert import CARRIED, config_of_lerobot, convert, released
from wamkit.models.published import ConversionError
from wamkit.nn.position import overlaid_grid_sincos

GRID, FEATURES, WORDS, LATENT = 4, 24, 48, 8
SMALL = released(
    LaWAMConfig(
        encoder=DINOv3Config(
            resolution=64, patch=16, width=FEATURES, layers=2, heads=2, mlp_width=48, registers=4, weights=None
        ),
        latent_action=LatentActionConfig(
            width=32, heads=4, encoder_layers=2, decoder_layers=2, latent_width=LATENT, max_state_dim=5, embodiments=3
        ),
        vlm=Qwen3VLSettings(
            weights=None,
            resolution=64,
            width=WORDS,
            layers=2,
            heads=2,
            key_value_heads=1,
            head_dim=24,
            mlp_width=64,
            vocabulary=264,
            rope_sections=(4, 4, 4),
            vision_width=32,
            vision_layers=2,
            vision_heads=2,
            vision_mlp_width=64,
            vision_position_grid=4,
            deepstack_layers=(0,),
        ),
        action=FlowExpertConfig(width=32, layers=8, heads=4, action_dim=6, embodiments=3),
        cameras=("image",),
        latent_queries=3,
        action_queries=2,
        horizon_s=0.4,
        max_actions=10,
    )
)


class Published(nn.Module):
    """Everything of a published checkpoint, at a small size."""

    def __init__(self, root: str = "") -> None:
        from transformers import DINOv3ViTConfig, DINOv3ViTModel, Qwen3VLModel

        super().__init__()
        torch.manual_seed(0)
        self.policy_backend = policy = nn.Module()
        policy.vlm = nn.Module()
        with torch.device("meta"):
            qwen = copy.deepcopy(LaWAM(SMALL).vlm.model.config)
        policy.vlm.model = Qwen3VLModel(qwen)
        policy.lam = nn.Module()
        policy.lam.vision_encoder = nn.Module()
        policy.lam.vision_encoder.model = DINOv3ViTModel(
            DINOv3ViTConfig(
                image_size=64,
                hidden_size=FEATURES,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_register_tokens=4,
            )
        )
        policy.lam.encoder = Encoder(GRID, FEATURES, 32, 4, 2, LATENT)
        policy.lam.vq = Bottleneck(LATENT)
        policy.lam.decoder = Decoder(GRID, FEATURES, 32, 4, 2, LATENT)
        policy.lam.state_decoder = StateDecoder(3, 5, 32, LATENT)
        policy.act_query = nn.Parameter(torch.randn(3, WORDS))
        policy.flow_action_query = nn.Parameter(torch.randn(2, WORDS))
        policy.vlm_to_lam = LatentHead(WORDS, LATENT, 2)
        policy.flow = Flow(WORDS, FEATURES, GRID * GRID, 32, 4, 8, 6, 3)

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.state_dict().items()}


@pytest.fixture(scope="module")
def published() -> Published:
    model = Published().eval()
    for parameter in model.parameters():  # so that no norm or zero-initialised layer hides a mix-up
        nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def folder(published: Published, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("converted")
    save_file(published.tensors(), root / "published.safetensors")
    convert(root / "published.safetensors", root / "ours", config=SMALL)
    return root


@pytest.fixture(scope="module")
def ours(folder) -> LaWAM:
    described = json.loads((folder / "ours" / "config.json").read_text())
    assert described.pop("type") == "lawam"
    assert described.pop("stage") == "policy"
    model = LaWAM(from_dict(LaWAMConfig, described))
    model.load_state_dict(load_file(folder / "ours" / "model.safetensors"))
    return model.eval()


def assert_near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("blocks", ["model.model.layer.", "model.layer."])
def test_published_to_ours_and_back_is_bit_equal(published, tmp_path, prefix, blocks):
    nested, flat = "vision_encoder.model.model.layer.", f"vision_encoder.{blocks}"
    source = {prefix + name.replace(nested, flat): value for name, value in published.tensors().items()}
    torch.save({"state_dict": source}, tmp_path / "pytorch_model.pt")
    convert(tmp_path, tmp_path / "ours", config=SMALL)
    convert(tmp_path / "ours", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == source.keys()
    assert all(torch.equal(back[name], source[name]) for name in source)


def test_ours_to_published_and_back_is_bit_equal(folder, tmp_path):
    convert(folder / "ours", tmp_path / "published")
    convert(tmp_path / "published", tmp_path / "again", config=SMALL)
    first = load_file(folder / "ours" / "model.safetensors")
    second = load_file(tmp_path / "again" / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (folder / "ours" / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


def test_the_verb_converts_and_says_what_it_wrote(folder, tmp_path, capsys):
    assert main(["convert", "lawam", str(folder / "ours"), str(tmp_path / "published")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("wrote ")
    written = Path(said.removeprefix("wrote ").strip())
    assert written.is_relative_to(tmp_path / "published")
    convert(folder / "ours", tmp_path / "same")
    files = sorted(path.relative_to(tmp_path / "same") for path in (tmp_path / "same").rglob("*") if path.is_file())
    assert files
    for name in files:
        assert (tmp_path / "published" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()


def test_what_we_have_no_use_for_is_carried(folder):
    assert list(load_file(folder / "ours" / CARRIED)) == ["flow.cfg_embeddings"]


def test_unknown_names_are_refused_with_a_list(published, tmp_path):
    odd = {"policy_backend.flow.enc_state.W1.W": torch.zeros(1), "policy_backend.lam.extra": torch.zeros(1)}
    save_file(published.tensors() | odd, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=r"2 names .*: flow.enc_state.W1.W, lam.extra"):
        convert(tmp_path / "model.safetensors", tmp_path / "ours", config=SMALL)
    assert not (tmp_path / "ours").exists()


def test_missing_names_are_named(published, tmp_path):
    tensors = published.tensors()
    del tensors["policy_backend.lam.vq.mu.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=r"lacks 1 of LaWAM's names: lam.vq.mu.bias"):
        convert(tmp_path / "model.safetensors", tmp_path / "ours", config=SMALL)


def test_other_sizes_are_refused(published, tmp_path):
    save_file(published.tensors(), tmp_path / "model.safetensors")
    wider = replace(SMALL, action=replace(SMALL.action, action_dim=7))
    with pytest.raises(ConversionError, match=r"flow.action_in.weight is \(3, 6, 32\)"):
        convert(tmp_path / "model.safetensors", tmp_path / "ours", config=wider)


def test_a_pickle_with_code_is_refused(tmp_path):
    torch.save({"policy_backend.x": nn.Linear(1, 1)}, tmp_path / "pytorch_model.pt")
    with pytest.raises(ConversionError, match="no code is run from it"):
        convert(tmp_path, tmp_path / "ours", config=SMALL)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="holds neither"):
        convert(tmp_path, tmp_path / "ours")


def test_lerobots_config_gives_ours():
    config = config_of_lerobot(
        {
            "type": "lawam",
            "chunk_size": 40,
            "flow_horizon_sec": 0.4,
            "input_features": {
                "observation.images.wrist": {},
                "observation.images.front": {},
                "observation.state": {},
            },
        }
    )
    assert config.cameras == ("front", "wrist")
    assert (config.max_actions, config.horizon_s, config.valid_steps) == (40, 0.4, "floor")
    assert config.action.time_code_at == "every_block"
    assert config.latent_action.position_code == "overlaid"


def test_statistics_of_lerobot_come_along(published, tmp_path):
    import numpy as np

    from wamkit.data.normalize import ACTION, Normalizer

    save_file(published.tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"type": "lawam", "embodiment_id": 25, "action_hz": 20.0}))
    low, high = np.array([-1.0, 0.0]), np.array([3.0, 4.0])
    Normalizer({"libero": {ACTION: {"min": low, "max": high}}}, {ACTION: "MIN_MAX"}).save(tmp_path)
    convert(tmp_path, tmp_path / "ours", config=SMALL)
    read = Normalizer.load(tmp_path / "ours")
    assert read.embodiments == ("libero",)
    assert read.rate_hz("libero") == 20.0
    assert read.unnormalize_action(np.array([[0.0, 1.0]], np.float32), "libero").tolist() == [[1.0, 4.0]]


# The arithmetic, part by part, with the published weights.


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4)])
def test_overlaid_position_code(shape):
    assert_near(overlaid_grid_sincos(shape, 32), overlaid(shape, 32).flatten(0, -2))


def test_inverse_dynamics_and_gaussian_head(published, ours):
    present, future = draw(2, GRID**2, FEATURES), draw(2, GRID**2, FEATURES, seed=2)
    lam = published.policy_backend.lam
    mean, log_variance = lam.vq(lam.encoder(torch.cat([present, future], dim=1)))
    posterior = ours.lam.infer(present, future)
    assert_near(posterior.mean, mean)
    assert_near(posterior.log_variance, log_variance)


def test_latent_world_model(published, ours):
    present, latent = draw(2, GRID**2, FEATURES), draw(2, 1, LATENT, seed=2)
    assert_near(ours.lam.decoder(present, latent), published.policy_backend.lam.decoder(present, latent))


def test_state_predictor(published, ours):
    latent, state, who = draw(3, 1, LATENT), draw(3, 5, seed=2), torch.tensor([0, 2, 1])
    expected = published.policy_backend.lam.state_decoder(latent, state, who)
    assert_near(ours.lam.state_predictor(latent, state, who), expected)


def test_latent_head(published, ours):
    words = draw(2, 3, WORDS)
    assert_near(ours.latent_head(words), published.policy_backend.vlm_to_lam(words))


@pytest.mark.parametrize("steps", [1, 10])
def test_action_expert(published, ours, steps):
    present, future = draw(2, GRID**2, FEATURES), draw(2, GRID**2, FEATURES, seed=2)
    words, word_seen = draw(2, 7, WORDS, seed=3), torch.ones(2, 7, dtype=torch.bool)
    word_seen[1, 4:] = False
    noise, who, rate = draw(2, 10, 6, seed=4), torch.tensor([1, 2]), torch.tensor([20.0, 10.0])
    seconds, valid = ours.chunk_times(rate)
    assert valid.sum(dim=1).tolist() == [8, 4]
    expected = published.policy_backend.flow.sample(
        noise, steps, present, future, words, word_seen, seconds, valid, who
    )
    ours.flow.config = replace(ours.flow.config, denoise_steps=steps)
    context = ours.flow.prepare(torch.cat([present, future], dim=1), words, word_seen)
    assert_near(ours.flow.sample(noise, context, seconds, valid, who)[valid], expected[valid])


def test_visual_encoder(published, ours):
    frames = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (frames / 255.0 - mean[:, None, None]) / std[:, None, None]
    model = published.policy_backend.lam.vision_encoder.model
    tokens = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 5:]
    expected = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert_near(ours.vision_encoder(frames), expected)
