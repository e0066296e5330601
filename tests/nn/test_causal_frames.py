"""Attention over frames: full in space, causal in time, bounded by a window, the same in pieces as whole."""

from __future__ import annotations

import pytest
import torch

from wamkit.nn.attention import attend
from wamkit.nn.causal_frames import CausalFrameAttention, CausalFrameBlock, FrameTimes


def video(frames: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, frames, 3, 16, generator=torch.Generator().manual_seed(seed))


def times(frames: int, first: int = 0) -> FrameTimes:
    return FrameTimes.of(first, frames, 8, torch.device("cpu"))


@pytest.fixture(params=[1, 2, 9])
def block(request) -> CausalFrameBlock:
    torch.manual_seed(0)
    return CausalFrameBlock(16, 2, request.param).eval()


@torch.no_grad()
def test_it_is_masked_attention(block):
    """The same products over all tokens at once, under a mask."""
    attention, x = block.attention, video()
    window, frames, tokens = attention.window, 5, 3
    queries, keys, values = attention.to_qkv(x).unflatten(-1, (3, 2, 8)).permute(3, 0, 4, 1, 2, 5)
    queries, keys = (times(frames).turn(part).flatten(2, 3) for part in (queries, keys))
    frame = torch.arange(frames).repeat_interleave(tokens)
    distance = frame[:, None] - frame[None, :]
    mask = ((distance >= 0) & (distance < window))[None, None]
    expected = attend(queries, keys, values.flatten(2, 3), mask).transpose(1, 2).flatten(2).unflatten(1, (5, 3))
    torch.testing.assert_close(attention(x, times(frames))[0], attention.to_out(expected))


@torch.no_grad()
def test_pieces_give_the_whole_and_memory_is_bounded(block):
    x = video(7)
    whole, _ = block(x, times(7))
    pieces, memory, first = [], None, 0
    for length in (2, 1, 3, 1):
        piece, memory = block(x[:, first : first + length], times(length, first), memory)
        first += length
        pieces.append(piece)
        assert memory.keys.shape[2] == min(first, block.attention.window - 1)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@torch.no_grad()
def test_only_the_distance_of_frames_counts(block):
    """A video that begins later gets the same numbers, at a million frames too."""
    early, _ = block(video(), times(5))
    late, _ = block(video(), times(5, 1_000_000))
    torch.testing.assert_close(early, late, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_nothing_comes_from_the_future_or_from_before_the_window(block):
    x, window = video(6), block.attention.window
    before, _ = block(x, times(6))
    x[:, 2] += 1.0
    after, _ = block(x, times(6))
    changed = [not torch.equal(before[:, frame], after[:, frame]) for frame in range(6)]
    assert changed == [2 <= frame < 2 + window for frame in range(6)]


def test_dimensions_that_do_not_work_are_refused():
    with pytest.raises(ValueError, match="even number of channels"):
        CausalFrameAttention(15, 3, 2)
    with pytest.raises(ValueError, match="give 1 or more"):
        CausalFrameAttention(16, 2, 0)
