"""How trained weights are used may be chosen when they are loaded; what they are may not."""

from __future__ import annotations

import pytest
import torch
from micro_causal import repwam
from micro_policy import micro_policy, save, seen

from wamkit.configuration import ConfigError, to_dict
from wamkit.inference.errors import PolicyError
from wamkit.inference.policy import load
from wamkit.inference.settings import identity, parse_settings, with_settings
from wamkit.models.causal.config import CausalModelError
from wamkit.models.registry import model_class, model_names
from wamkit.models.repwam import RepWAM


@pytest.mark.parametrize("name", model_names())
def test_every_setting_of_every_model_is_a_field_and_fixes_no_weight(name):
    model = model_class(name)
    base = model.preset("tiny")
    others = {"mode": {"uncond": "joint"}.get(getattr(base, "mode", ""), "action_only"), "video_until": 0.5}
    assert model.inference_settings
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in model(base).state_dict().items()}
        for setting in model.inference_settings:
            other = with_settings(model, base, {setting: others.get(setting, 11)})
            place, before = to_dict(other), to_dict(base)
            for part in setting.split("."):
                place, before = place[part], before[part]
            assert place == others.get(setting, 11)
            assert place != before or setting == "mode", f"{setting} was {before} already"
            if setting == model.inference_settings[-1]:  # building each model once more is enough
                assert {key: value.shape for key, value in model(other).state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (
            {"action_step": 3},
            PolicyError,
            r"repwam has no inference setting 'action_step'. Did you mean 'action_steps'",
        ),
        ({"video.layers": 3}, PolicyError, r"no inference setting 'video.layers'.* It has mode, video_steps"),
        ({"mode": "action"}, ConfigError, r"settings.mode is 'action'; it is one of 'video_and_action', 'action_only'"),
        ({"action_steps": 2.5}, ConfigError, "settings.action_steps must be int, got 2.5"),
        ({"action_steps": 0}, CausalModelError, "at least 1"),
        ({"video_until": 1.5}, CausalModelError, "from 0 to below 1"),
    ],
)
def test_what_is_no_setting_is_refused(settings, error, said):
    with pytest.raises(error, match=said):
        with_settings(RepWAM, repwam().config, settings)


def test_flags_are_names_and_values():
    assert parse_settings(("mode=action_only", "action_steps=5", "video_guidance=1.5")) == {
        "mode": "action_only",
        "action_steps": 5,
        "video_guidance": 1.5,
    }
    for text in ("mode", "=3", "mode="):
        with pytest.raises(PolicyError, match="write NAME=VALUE"):
            parse_settings((text,))


def test_other_settings_are_another_behaviour():
    assert identity("abc", {}) == "abc"
    assert identity("abc", {"b": 1, "a": 2}) == identity("abc", {"a": 2, "b": 1}) != identity("abc", {"a": 2})


def test_a_policy_acts_with_the_settings_that_it_was_loaded_with(tmp_path):
    checkpoint = save(micro_policy(), tmp_path / "policy")
    usual, more = load(checkpoint), load(checkpoint, settings={"action.denoise_steps": 7})
    assert (usual.model.config.action.denoise_steps, more.model.config.action.denoise_steps) == (2, 7)
    first, second = (policy.act(seen(), seeds=[0]).actions for policy in (usual, more))
    assert (first - second).abs().max() > 1e-4
    for one, other in zip(usual.model.state_dict().values(), more.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", model_names())
def test_the_page_lists_every_setting(name, repository):
    page = (repository / "docs/concepts.md").read_text().partition("## Inference settings")[2].partition("\n## ")[0]
    settings = ", ".join(f"`{setting}`" for setting in model_class(name).inference_settings)
    assert any(line.endswith(f"| {settings} |") for line in page.splitlines())
