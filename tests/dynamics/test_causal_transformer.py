"""Cached and uncached passes agree, also after refilling; rows never mix and never grow past the window."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from micro_causal import REPWAM, repwam
from micro_weights import seeded

from wamkit.dynamics.causal_cache import Batch, Row
from wamkit.dynamics.causal_transformer import Sequences

CLOSE = dict(rtol=1e-4, atol=1e-4)
FRAMES, SLOTS = 6, 4


@pytest.fixture(scope="module")
def drawn():
    """Latents, actions and levels of two sequences; the second robot has 3 actions a frame."""
    generator = seeded(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    steps = torch.tensor([4, 3])
    valid = (torch.arange(SLOTS) < steps[:, None, None]).expand(2, FRAMES, SLOTS)
    return dict(
        clean=normal(2, 6, FRAMES + 1, 2, 2),
        noisy=normal(2, 6, FRAMES, 2, 2),
        actions=normal(2, FRAMES, SLOTS, 5),
        noisy_actions=normal(2, FRAMES, SLOTS, 5),
        action_valid=valid,
        action_steps=steps,
        words=normal(2, 24, 16),
    )


def sequences(drawn, length: int, forward: bool) -> Sequences:
    """All noise levels alike within a chunk, as at inference."""
    level = torch.tensor([0.3, 0.8])[:, None].expand(2, FRAMES)
    return Sequences(
        **drawn,
        clean_level=torch.zeros(2, FRAMES + 1),
        noisy_level=level,
        frame_valid=torch.ones(2, FRAMES + 1, dtype=torch.bool),
        action_level=level,
        words_valid=None,
        forward=torch.tensor([forward] * 2),
        chunk_length=length,
    )


def test_actions_that_are_not_told_are_read_by_nobody(drawn):
    transformer = repwam(forward_share=0.0).eval().transformer
    batch = replace(sequences(drawn, 1, False), actions_told=torch.tensor([True, False]))
    with torch.no_grad():
        made, other = transformer(batch), transformer(replace(batch, actions=batch.actions + 1.0))
    for one, two in zip(made, other, strict=True):
        assert torch.equal(one[1], two[1])
        assert not torch.allclose(one[0], two[0], atol=1e-4)


@pytest.mark.parametrize("order", ["beside_video", "after_video"])
@pytest.mark.parametrize("length", [1, 2])
def test_cached_equals_uncached_after_every_refill(drawn, order, length):
    model = repwam(order=order, forward_share=0.0).eval()
    transformer = model.transformer
    with torch.no_grad():
        whole = transformer(sequences(drawn, length, False))
        forward = transformer(sequences(drawn, length, True))
        words = transformer.read(drawn["words"])
        steps, valid = drawn["action_steps"], drawn["action_valid"]
        rows = transformer.observed([transformer.empty_row()] * 2, drawn["clean"][:, :, :1], words)
        level = torch.tensor([0.3, 0.8])[:, None].expand(2, length)
        clean = torch.zeros(2, length)
        for first in range(0, FRAMES, length):
            part = slice(first, first + length)
            past = Batch.of(rows)
            video, _ = transformer.video_pass(past, drawn["noisy"][:, :, part], level, words)
            torch.testing.assert_close(video, whole.video[:, :, part], **CLOSE)
            noisy_actions, own = drawn["noisy_actions"][:, part], valid[:, part]
            policy, _ = transformer.action_pass(past, noisy_actions, own, steps, level, words)
            torch.testing.assert_close(policy[own], whole.action[:, part][own], **CLOSE)
            frames = drawn["clean"][:, :, 1:][:, :, part]
            _, kept = transformer.video_pass(past, frames, clean, words)
            seen = past.followed_by(kept, torch.ones(2, kept[0].keys.shape[2], dtype=torch.bool))
            inverse, _ = transformer.action_pass(seen, noisy_actions, own, steps, level, words)
            torch.testing.assert_close(inverse[own], whole.inverse[:, part][own], **CLOSE)
            if order == "beside_video":
                _, told = transformer.action_pass(past, drawn["actions"][:, part], own, steps, clean, words)
                under = past.followed_by(told, own.flatten(1))
                led, _ = transformer.video_pass(under, drawn["noisy"][:, :, part], level, words)
                torch.testing.assert_close(led, forward.video[:, :, part], **CLOSE)
                assert not torch.allclose(led, video, atol=1e-3)
            rows = transformer.observed(rows, frames, words, drawn["actions"][:, part], own, steps)
    # Window 3: the last three frames' tokens, four of video and 4 or 3 of actions each.
    assert [row.frames for row in rows] == [FRAMES + 1] * 2
    assert [len(row.frame) for row in rows] == [3 * (4 + 4), 3 * (4 + 3)]


def test_a_row_does_not_depend_on_its_neighbours(drawn):
    """Rows of other lengths beside it, or none: the same numbers."""
    transformer = repwam().eval().transformer
    with torch.no_grad():
        words = transformer.read(drawn["words"])
        alone_words = transformer.read(drawn["words"][:1])
        begun = [transformer.empty_row()]
        short = transformer.observed(begun, drawn["clean"][1:, :, :1], transformer.read(drawn["words"][1:]))
        long = transformer.observed(begun, drawn["clean"][:1, :, :1], alone_words)
        long = transformer.observed(
            long, drawn["clean"][:1, :, 1:3], alone_words, drawn["actions"][:1, :2],
            drawn["action_valid"][:1, :2], drawn["action_steps"][:1],
        )  # fmt: skip
        level, noisy = torch.full((2, 2), 0.5), drawn["noisy"][:, :, :2]
        both, _ = transformer.video_pass(Batch.of([*long, *short]), noisy, level, words)
        alone, _ = transformer.video_pass(Batch.of(long), noisy[:1], level[:1], alone_words)
    torch.testing.assert_close(both[:1], alone, **CLOSE)


def test_rows_are_values_and_do_not_grow():
    row = Row.empty(2, 2, 3, device=torch.device("cpu"), dtype=torch.float32)
    kept, sizes = row, []
    for frame in range(200):
        tokens = torch.randn(2, 2, 5, 3)
        kept = kept.with_frames(tokens, tokens, torch.full((5,), frame), added=1, window=32)
        sizes.append(kept.size)
    assert row.frames == 0
    assert row.size == 0
    assert sizes[31:] == [2 * 2 * 2 * 3 * 5 * 32] * 169
    assert kept.frame.min() == 168


def test_heads_are_told_apart_by_width():
    from dataclasses import replace

    from wamkit.actions.grouped_actions import OwnExpert
    from wamkit.models.repwam import RepWAM

    with pytest.raises(ValueError, match="told apart"):
        RepWAM(replace(REPWAM, action=OwnExpert(action_dim=4, width=12, mlp_width=16)))
