"""The video backbone against diffusers' own forward; masks, corrections, published files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wamkit.dynamics.video_dit import LoRASettings, VideoDiT, VideoDiTConfig, first_frame_causal
from wamkit.dynamics.wan_names import original_name
from wamkit.errors import MisfitError, WeightsError
from wamkit.nn.lora import is_lora, lora_parameters

CONFIG = VideoDiTConfig(
    weights=None, channels=4, heads=2, head_width=12, mlp_width=32, layers=2, text_width=16, time_width=16
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def backbone(lora: LoRASettings | None = None, **changes) -> VideoDiT:
    torch.manual_seed(0)
    model = VideoDiT(replace(CONFIG, **changes), lora)
    with torch.no_grad():  # diffusers starts some of these at values that would hide them
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return model


@pytest.fixture(scope="module")
def model() -> VideoDiT:
    return backbone()


LATENTS = torch.randn(2, 4, 3, 4, 6, generator=seeded(1))
WORDS = torch.randn(2, 5, 16, generator=seeded(2))
LEVELS = torch.tensor([[0.0, 0.4, 0.4], [0.0, 0.9, 0.9]])


def test_equals_diffusers_at_one_noise_level(model):
    level = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        expected = model.model(LATENTS, timestep=1000 * level, encoder_hidden_states=WORDS).sample
        stream, code = model.prepare(LATENTS, level[:, None].expand(-1, 3), WORDS)
        ours = model.velocity(model.through(stream), code, model.grid(LATENTS))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_equals_diffusers_at_a_noise_level_for_each_frame(model):
    with torch.no_grad():
        by_token = (1000 * LEVELS).repeat_interleave(2 * 3, dim=1)
        expected = model.model(LATENTS, timestep=by_token, encoder_hidden_states=WORDS).sample
        stream, code = model.prepare(LATENTS, LEVELS, WORDS)
        ours = model.velocity(model.through(stream), code, model.grid(LATENTS))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_mask():
    assert first_frame_causal(3, 2, "cpu")[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        *[[1, 1, 1, 1, 1, 1]] * 4,
    ]


def test_the_present_never_sees_the_future(model):
    other = LATENTS.clone()
    other[:, :, 1:] *= -3
    kept: list[torch.Tensor] = []

    def keep(index, tokens):
        kept.append(tokens)
        return tokens

    with torch.no_grad():
        first, second = (model(x, LEVELS, WORDS, after=keep) for x in (LATENTS, other))
    for before, after in zip(kept[:2], kept[2:], strict=True):
        assert torch.equal(before[:, :6], after[:, :6])
        assert not torch.equal(before[:, 6:], after[:, 6:])
    assert not torch.equal(first[:, :, 1:], second[:, :, 1:])


def test_words_that_must_not_be_read(model):
    valid = torch.tensor([[True, True, True, False, False]] * 2)
    other = WORDS.clone()
    other[:, 3:] = 100.0
    with torch.no_grad():
        first, second = (model(LATENTS, LEVELS, words, valid) for words in (WORDS, other))
    assert torch.equal(first, second)


def test_latents_that_do_not_fit_are_refused(model):
    with pytest.raises(MisfitError, match="do not fit the backbone's patch"):
        model.prepare(LATENTS[..., :5], LEVELS, WORDS)


# Corrections of low rank


def test_corrections_start_at_nothing_and_change_everything():
    plain, corrected = VideoDiT(CONFIG), VideoDiT(CONFIG, LoRASettings(rank=2, alpha=4.0))
    from wamkit.nn.lora import load_base_weights

    load_base_weights(corrected.model, plain.model.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(LATENTS, LEVELS, WORDS), corrected(LATENTS, LEVELS, WORDS))
        for parameter in lora_parameters(corrected):
            parameter.add_(0.1)
        assert not torch.allclose(plain(LATENTS, LEVELS, WORDS), corrected(LATENTS, LEVELS, WORDS))
    # Light-WAM's targets: 4 projections of 2 attentions and 2 feed-forward layers, two matrices each.
    assert sum(is_lora(name) for name, _ in corrected.named_parameters()) == CONFIG.layers * 10 * 2


def test_every_weight_has_one_name_in_wans_own_code():
    model = VideoDiT(CONFIG, LoRASettings(rank=2, alpha=4.0)).model
    names = [original_name(name) for name in model.state_dict()]
    assert len(set(names)) == len(names)
    assert {
        "patch_embedding.weight",
        "text_embedding.2.bias",
        "time_projection.1.weight",
        "blocks.1.self_attn.norm_k.weight",
        "blocks.0.cross_attn.o.bias",
        "blocks.0.norm3.weight",
        "blocks.1.ffn.0.weight",
        "blocks.1.modulation",
        "head.head.weight",
        "head.modulation",
        "blocks.0.cross_attn.lora_v.up_proj.weight",
        "blocks.1.ffn_lora_out.down_proj.weight",
    } <= set(names)


# Published files


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=2, alpha=4.0)])
def test_weights_load_from_a_folder_in_diffusers_layout(tmp_path, model, lora):
    model.model.save_pretrained(tmp_path / "transformer")
    loaded = VideoDiT(replace(CONFIG, weights=str(tmp_path)), lora)
    loaded.load_pretrained()
    with torch.no_grad():
        assert torch.equal(loaded(LATENTS, LEVELS, WORDS), model(LATENTS, LEVELS, WORDS))


def test_weights_of_other_dimensions_are_refused(tmp_path, model):
    model.model.save_pretrained(tmp_path / "transformer")
    wrong = VideoDiT(replace(CONFIG, weights=str(tmp_path), layers=1))
    with pytest.raises(WeightsError, match="does not fit"):
        wrong.load_pretrained()


def test_absent_weights_say_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match="set video.weights"):
        VideoDiT(replace(CONFIG, weights=str(tmp_path / "none"))).load_pretrained()
    with pytest.raises(WeightsError, match="names no weights"):
        VideoDiT(CONFIG).load_pretrained()
