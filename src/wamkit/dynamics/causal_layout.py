"""Which token of a causal sequence may see which: teacher forcing in one pass.

A sequence is the first frame, then chunks of k latent frames, each with the actions that lead to it (RepWAM,
papers.md 3.4; LingBot-VA, papers.md 5). In training it stands there once clean, as the history that later chunks see,
and once noisy, as what is predicted: the noisy frames, and the noisy actions twice, as a policy and as inverse
dynamics.

- A clean token sees the clean tokens of earlier chunks; a clean frame also its own chunk's.
- A noisy frame sees the clean tokens of earlier chunks and its own chunk's noisy frames. Of samples in forward mode it
  also sees its own chunk's clean actions (forward dynamics).
- A noisy action sees the clean tokens of earlier chunks and its own chunk's noisy actions (the policy). Its twin sees
  its own chunk's clean frames besides (inverse dynamics, and at test time: the imagined frames).

Nothing sees further back than a window of latent frames before its chunk. Clean actions either stand beside their
chunk's frames and do not see them, which is what lets forward dynamics see the actions; or they come after them and do,
as in LingBot-VA, where a frame that saw them would see itself.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Order = Literal["beside_video", "after_video"]
"""Where a chunk's clean actions stand: see the module's docstring."""


class Role(IntEnum):
    """What a token is there for."""

    CLEAN_VIDEO = 0
    CLEAN_ACTION = 1
    NOISY_VIDEO = 2
    NOISY_ACTION = 3
    NOISY_INVERSE = 4


class Layout(NamedTuple):
    """The tokens of a training sequence, all video tokens before all action tokens."""

    role: Int[Tensor, "N"]
    frame: Int[Tensor, "N"]
    chunk: Int[Tensor, "N"]
    """0 for the first frame."""
    start: Int[Tensor, "N"]
    """The first frame of the token's chunk."""


def chunk_of(frame: Int[Tensor, "n"], length: int) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Chunk and its first frame, of frames numbered from 0; the first frame is a chunk of its own."""
    chunk = torch.where(frame > 0, (frame - 1) // length + 1, 0)
    return chunk, torch.where(chunk > 0, 1 + (chunk - 1) * length, 0)


def teacher_forcing(
    frames: int, chunk_length: int, video_tokens: int, action_tokens: int, device: torch.device | str
) -> Layout:
    """Clean and noisy frames, then clean actions, noisy actions and their inverse-dynamics twins.

    Args:
        frames: latent frames after the first.
        chunk_length: k, latent frames of a chunk; the last chunk may be shorter.
        video_tokens: of one frame.
        action_tokens: of one frame.
        device: of the result.
    """
    after = torch.arange(1, frames + 1, device=device)
    everything = torch.arange(frames + 1, device=device)
    parts = [
        (Role.CLEAN_VIDEO, everything.repeat_interleave(video_tokens)),
        (Role.NOISY_VIDEO, after.repeat_interleave(video_tokens)),
        *((role, after.repeat_interleave(action_tokens)) for role in _ACTIONS),
    ]
    frame = torch.cat([numbers for _, numbers in parts])
    role = torch.cat([torch.full_like(numbers, int(role)) for role, numbers in parts])
    return Layout(role, frame, *chunk_of(frame, chunk_length))


_ACTIONS = (Role.CLEAN_ACTION, Role.NOISY_ACTION, Role.NOISY_INVERSE)


def visible(layout: Layout, query: Tensor, key: Tensor, *, window: int, order: Order) -> Tensor:
    """Whether token ``query`` sees token ``key``, in every sample; indices broadcast.

    The one definition of the mask: a dense mask evaluates it for all pairs, FlexAttention as it goes.
    """
    role_q, role_k = layout.role[query], layout.role[key]
    chunk_q, chunk_k = layout.chunk[query], layout.chunk[key]
    earlier, own = chunk_k < chunk_q, chunk_k == chunk_q
    clean_frame, clean_action = role_k == Role.CLEAN_VIDEO, role_k == Role.CLEAN_ACTION
    history = (clean_frame | clean_action) & earlier
    frame_first = (role_q == Role.CLEAN_VIDEO) | (role_q == Role.NOISY_INVERSE)
    if order == "after_video":
        frame_first = frame_first | (role_q == Role.CLEAN_ACTION)
    seen = history | (frame_first & clean_frame & own) | ((role_q == role_k) & own)
    return seen & (layout.frame[key] >= layout.start[query] - window)


def seen_in_forward_mode(layout: Layout, query: Tensor, key: Tensor) -> Tensor:
    """What noisy frames see besides, in samples whose frames are predicted under given actions; indices broadcast."""
    own = layout.chunk[key] == layout.chunk[query]
    return (layout.role[query] == Role.NOISY_VIDEO) & (layout.role[key] == Role.CLEAN_ACTION) & own


def dense_mask(
    layout: Layout, forward: Bool[Tensor, "B"], readable: Bool[Tensor, "B N"], *, window: int, order: Order
) -> Bool[Tensor, "B 1 N N"]:
    """The mask as a matrix for each sample.

    Args:
        layout: the tokens.
        forward: the samples in forward mode.
        readable: False for tokens that nobody may see: padded actions, frames past the episode's end.
        window: latent frames.
        order: see `Order`.
    """
    index = torch.arange(len(layout.role), device=layout.role.device)
    query, key = index[:, None], index[None, :]
    always = visible(layout, query, key, window=window, order=order)
    besides = seen_in_forward_mode(layout, query, key)
    mask = always | (besides & forward[:, None, None])
    return (mask & readable[:, None, :]).unsqueeze(1)
