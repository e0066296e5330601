"""Fast-WAM against LeRobot's port at a small configuration, weights mapped across; where its extra is installed."""

from __future__ import annotations

import pytest
import torch
from micro_video import fast
from micro_weights import seeded
from torch import nn

from wamkit.losses import flow_matching
from wamkit.models.fast_wam.published_names import by_layer, published_names

modular = pytest.importorskip("lerobot.policies.fastwam.wan.modular", reason="needs lerobot's fastwam")
video_dit = pytest.importorskip("lerobot.policies.fastwam.wan.video_dit")

TOLERANCE = dict(rtol=1e-4, atol=1e-4)


class GivenLatents(nn.Module):
    """In place of their VAE, which they load by name: hands out what it was given."""

    upsampling_factor, temporal_downsample_factor, z_dim = 4, 4, 4

    def __init__(self) -> None:
        super().__init__()
        self.latents = torch.zeros(0)

    def encode(self, videos, **_):
        return self.latents


@pytest.fixture(scope="module")
def pair():
    ours = fast().eval()
    config = ours.config
    width, heads = config.video.width, config.video.heads
    shared = dict(num_heads=heads, attn_head_dim=config.video.head_width, num_layers=config.video.layers,
                  text_dim=config.video.text_width, freq_dim=config.video.time_width, eps=1e-6)  # fmt: skip
    video = video_dit.WanVideoDiT(
        hidden_dim=width, in_dim=4, out_dim=4, ffn_dim=config.video.mlp_width, patch_size=(1, 2, 2),
        seperated_timestep=True, video_attention_mask_mode="first_frame_causal", **shared,
    )  # fmt: skip
    action = modular.ActionDiT(hidden_dim=config.action.width, action_dim=6, ffn_dim=config.action.mlp_width, **shared)
    theirs = modular.FastWAM(
        video_expert=video,
        action_expert=action,
        mot=modular.MoT({"video": video, "action": action}, mot_checkpoint_mixed_attn=False),
        vae=GivenLatents(),
        text_dim=config.video.text_width,
        proprio_dim=6,
    )
    own = ours.state_dict()
    mapped = by_layer({name: own[our] for our, name in published_names(own).items()})
    theirs.load_state_dict({name.removeprefix("model."): value for name, value in mapped.items()})
    return ours, theirs.eval()


@pytest.fixture(scope="module")
def inputs(pair):
    ours, _ = pair
    window = ours.fake_window(1)
    latents, _ = ours.latents_of(window)
    words = ours.text(("open the drawer",), "cpu")
    state = torch.randn(1, 6, generator=seeded(3))
    return latents, words, state


def test_every_weight_of_theirs_is_one_of_ours(pair):
    ours, theirs = pair
    names = published_names(ours.state_dict())
    assert set(by_layer({name: torch.zeros(0) for name in names.values()})) == {
        f"model.{name}" for name in theirs.state_dict()
    }


def test_training_pass(pair, inputs):
    ours, theirs = pair
    latents, words, state = inputs
    noisy_actions = torch.randn(1, 8, 6, generator=seeded(1))
    noisy_video = torch.randn(latents.shape, generator=seeded(2))
    noisy_video[:, :, :1] = latents[:, :, :1]
    level, action_level = torch.tensor([0.7]), torch.tensor([0.3])
    with torch.no_grad():
        context, mask = theirs._append_proprio_to_context(words, torch.ones(words.shape[:2], dtype=torch.bool), state)
        expected_video, expected_action = theirs._run_training_mot(
            {"context": context, "context_mask": mask, "action": noisy_actions, "fuse_vae_embedding_in_latents": True},
            {
                "latents": noisy_video,
                "noisy_action": noisy_actions,
                "timestep_video": 1000 * level,
                "timestep_action": 1000 * action_level,
            },
        )
        from wamkit.dynamics.mixture_of_transformers import joint

        own_words, own_valid = ours.words_of(("open the drawer",), state)
        levels = torch.stack([torch.zeros(1), level], dim=1)
        stream, code = ours.backbone.prepare(noisy_video, levels, own_words, own_valid)
        actions = ours.action.prepare(noisy_actions, action_level, ours.action.words_in(own_words), own_valid)
        grid = ours.backbone.grid(noisy_video)
        everything = torch.ones(1, 8, dtype=torch.bool)
        tokens, action_tokens = joint(
            [ours.backbone.blocks, ours.action.blocks],
            [stream, actions],
            ours.attention_mask(grid, everything, "uncond"),
        )
    torch.testing.assert_close(ours.backbone.velocity(tokens, code, grid), expected_video, **TOLERANCE)
    torch.testing.assert_close(ours.action.velocity(action_tokens), expected_action, **TOLERANCE)


def test_ten_euler_steps(pair, inputs):
    ours, theirs = pair
    latents, words, state = inputs
    theirs.vae.latents = latents[:, :, :1]
    expected = theirs.infer_action(
        prompt=None,
        input_image=torch.zeros(1, 3, 16, 32),
        action_horizon=8,
        proprio=state,
        context=words,
        context_mask=torch.ones(words.shape[:2], dtype=torch.bool),
        num_inference_steps=10,
        seed=7,
    )["action"]
    noise = torch.randn(1, 8, 6, generator=seeded(7))
    own_words, own_valid = ours.words_of(("open the drawer",), state)
    with torch.no_grad():
        actions = ours.denoise_after(latents[:, :, :1], noise, own_words, own_valid, torch.ones(1, 8, dtype=torch.bool))
    torch.testing.assert_close(actions[0], expected, **TOLERANCE)


def test_schedule_and_weight(pair):
    _, theirs = pair
    scheduler = theirs.train_video_scheduler
    levels = flow_matching.shifted_euler_levels(10)
    timesteps, deltas = scheduler.build_inference_schedule(10, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(1000 * levels[:-1], timesteps)
    torch.testing.assert_close(levels[1:] - levels[:-1], deltas)
    some = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.999])
    torch.testing.assert_close(flow_matching.bell_weight(some), scheduler.training_weight(1000 * some))
