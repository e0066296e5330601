"""LingBot-VA's transformer against LeRobot's port at a small configuration, weights mapped across."""

from __future__ import annotations

import pytest
import torch
from micro_causal import lingbot
from micro_weights import seeded

from wamkit.dynamics.causal_cache import Batch
from wamkit.dynamics.causal_layout import Role, dense_mask, teacher_forcing
from wamkit.losses import flow_matching
from wamkit.models.lingbot_va.published_names import from_published, published_names, to_published

theirs = pytest.importorskip("lerobot.policies.lingbot_va.utils", reason="needs lerobot's lingbot_va")

CLOSE = dict(rtol=1e-4, atol=1e-4)
SLOTS = 4


@pytest.fixture(scope="module")
def pair():
    ours = lingbot().eval()
    video = ours.config.video
    reference = theirs.WanTransformer3DModel(
        patch_size=video.patch,
        num_attention_heads=video.heads,
        attention_head_dim=video.head_width,
        in_channels=video.channels,
        out_channels=video.channels,
        action_dim=5,
        text_dim=video.text_width,
        freq_dim=video.time_width,
        ffn_dim=video.mlp_width,
        num_layers=video.layers,
    )
    reference.load_state_dict(to_published(ours.state_dict()))
    return ours, reference.eval()


def test_every_weight_of_theirs_is_one_of_ours_and_back(pair):
    ours, reference = pair
    own = ours.state_dict()
    back = from_published({f"transformer.{k}": v for k, v in reference.state_dict().items()}, own)
    assert set(back) == set(published_names(own))
    assert all(torch.equal(value, own[name]) for name, value in back.items())
    with pytest.raises(ValueError, match="'proj_out.bias' for one"):
        from_published({k: v for k, v in reference.state_dict().items() if k != "proj_out.bias"}, own)


def test_an_episode_with_cache(pair):
    """First frame, a noisy chunk, the observed chunk, executed actions, noisy actions: every output, and the cache."""
    ours, reference = pair
    generator = seeded(1)
    latents = torch.randn(2, 4, 5, 4, 4, generator=generator)
    actions = torch.randn(2, 5, 5, SLOTS, generator=generator)  # B, A, frames, n
    words = torch.randn(2, 24, 16, generator=generator)
    reference.create_empty_cache("pos", 30, 4 * 4, 4 * SLOTS, "cpu", torch.float32, 2)

    def video(frames: torch.Tensor, first: int, level: float, keep: bool) -> torch.Tensor:
        count = frames.shape[2]
        out = reference(
            {
                "noisy_latents": frames,
                "timesteps": torch.full((2, count), 1000 * level),
                "grid_id": theirs.get_mesh_id(count, 2, 2, 0, 1, first)[None].repeat(2, 1, 1),
                "text_emb": words,
            },
            update_cache=2 if keep else 0,
        )
        return theirs.data_seq_to_patch((1, 2, 2), out, count, 4, 4, batch_size=2)

    def acting(groups: torch.Tensor, first: int, level: float, keep: bool) -> torch.Tensor:
        count = groups.shape[2]
        out = reference(
            {
                "noisy_latents": groups.unsqueeze(-1),
                "timesteps": torch.full((2, count), 1000 * level),
                "grid_id": theirs.get_mesh_id(count, SLOTS, 1, 1, 1, first, action=True)[None].repeat(2, 1, 1),
                "text_emb": words,
            },
            update_cache=2 if keep else 0,
            action_mode=True,
        )
        return out.unflatten(1, (count, SLOTS))

    transformer = ours.transformer
    groups = actions.permute(0, 2, 3, 1)
    steps, valid = torch.full((2,), SLOTS), torch.ones(2, 2, SLOTS, dtype=torch.bool)
    with torch.no_grad():
        told = transformer.read(words)
        expected = video(latents[:, :, :1], 0, 0.0, True)
        rows = [transformer.empty_row()] * 2
        made, _ = transformer.video_pass(Batch.of(rows), latents[:, :, :1], torch.zeros(2, 1), told)
        torch.testing.assert_close(made, expected, **CLOSE)
        rows = transformer.observed(rows, latents[:, :, :1], told)
        for first in (1, 3):
            chunk, part = latents[:, :, first : first + 2], slice(first, first + 2)
            past = Batch.of(rows)
            made, _ = transformer.video_pass(past, chunk, torch.full((2, 2), 0.7), told)
            torch.testing.assert_close(made, video(chunk, first, 0.7, False), **CLOSE)
            # The chunk's own frames, then noisy actions that see them.
            _, kept = transformer.video_pass(past, chunk, torch.zeros(2, 2), told)
            video(chunk, first, 0.0, True)
            seen = past.followed_by(kept, torch.ones(2, kept[0].keys.shape[2], dtype=torch.bool))
            made, _ = transformer.action_pass(seen, groups[:, part], valid, steps, torch.full((2, 2), 0.3), told)
            torch.testing.assert_close(made, acting(actions[:, :, part], first, 0.3, False), **CLOSE)
            rows = transformer.observed(rows, chunk, told, groups[:, part], valid, steps)
            acting(actions[:, :, part], first, 0.0, True)


def test_the_mask_of_a_training_sequence(pair):
    """Chunks of one frame, where both layouts are one; theirs also predicts what is given here, the first frame."""
    frames, window = 4, 64
    kinds = [(Role.NOISY_VIDEO, 0, 0), (Role.CLEAN_VIDEO, 0, 1), (Role.NOISY_INVERSE, 1, 0), (Role.CLEAN_ACTION, 1, 1)]
    tokens = [(role, frame, 2 * frame + odd, clean) for role, odd, clean in kinds for frame in range(frames)]
    ids = [torch.tensor([t[i] for t in tokens]) for i in (2, 3)]
    one = torch.zeros(len(tokens), dtype=torch.long)
    allowed = theirs.FlexAttnFunc._get_mask_mod(one, *ids, window)
    index = torch.arange(len(tokens))
    nothing = torch.tensor(0)
    reference = allowed(nothing, nothing, index[:, None], index[None, :])
    layout = teacher_forcing(frames - 1, 1, 1, 1, "cpu")
    everything = torch.ones(1, len(layout.role), dtype=torch.bool)
    mask = dense_mask(layout, torch.tensor([False]), everything, window=window, order="after_video")[0, 0]
    place = {(Role(int(r)), int(f)): i for i, (r, f) in enumerate(zip(layout.role, layout.frame, strict=True))}
    # Their first group of actions is the zeros before the first frame, which is not here.
    shared = [i for i, (role, frame, _, _) in enumerate(tokens) if (role, frame) in place]
    assert len(shared) == 1 + 4 * (frames - 1)
    own = [place[tokens[i][:2]] for i in shared]
    assert torch.equal(mask[own][:, own], reference[shared][:, shared])


def test_schedules_and_weight(pair):
    for steps, shift in ((20, 5.0), (50, 0.05)):
        scheduler = theirs.FlowMatchScheduler(shift=shift, sigma_min=0.0, extra_one_step=True)
        scheduler.set_timesteps(steps)
        torch.testing.assert_close(scheduler.sigmas, flow_matching.shifted_euler_levels(steps, shift=shift)[:-1])
    scheduler = theirs.FlowMatchScheduler(shift=5.0, sigma_min=0.0, extra_one_step=True)
    scheduler.set_timesteps(1000, training=True)
    some = scheduler.sigmas[[10, 300, 500, 900]]
    torch.testing.assert_close(
        flow_matching.bell_weight(some), scheduler.training_weight(1000 * some), rtol=1e-3, atol=1e-3
    )
