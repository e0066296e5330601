from __future__ import annotations

import torch

from wamkit.envs.libero_conventions import RATE_HZ, STATE_NAMES
from wamkit.models import registry
from wamkit.recipes.light_wam_libero import libero_model, light_wam_libero
from wamkit.recipes.light_wam_metaworld import light_wam_metaworld

LONGEST = "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate"


def test_it_sees_liberos_cameras_and_acts_at_its_rate():
    config, model = light_wam_libero(), libero_model()
    assert config.model_config == model
    assert model.cameras == ("image", "image2")
    assert len(STATE_NAMES) <= model.max_state_dim
    assert round(model.horizon_s * RATE_HZ) == model.max_actions
    for stage in config.stages:
        assert stage.window.cameras == model.cameras
        assert stage.window.resolution == model.resolution
        assert stage.window.frame_offsets_s == model.frame_offsets_s
    policy = config.stages[-1].window
    assert (policy.chunk_s, policy.max_actions) == (model.horizon_s, model.max_actions)
    assert len(LONGEST.encode()) < model.text.max_tokens
    with torch.device("meta"):
        built = registry.build("light_wam", model)
    assert tuple(stage.name for stage in config.stages) == built.stages


def test_it_differs_from_the_metaworld_recipe_in_the_model_alone():
    ours, theirs = light_wam_libero(), light_wam_metaworld()
    assert theirs.model_config is None
    for stage, other in zip(ours.stages, theirs.stages, strict=True):
        assert (stage.name, stage.steps, stage.batch_size) == (other.name, other.steps, other.batch_size)
