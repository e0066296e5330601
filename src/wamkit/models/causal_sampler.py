"""The next chunk of a causal model by Euler steps: its frames, then the actions that lead there.

Frames and actions have their own schedules and step counts. With classifier-free guidance each pass runs twice over,
with the instruction and without, each with its own past: v = v_without + g (v_with - v_without).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wamkit.dynamics.causal_cache import Batch
from wamkit.dynamics.causal_transformer import CausalTransformer, Words
from wamkit.losses import flow_matching
from wamkit.models.causal_config import CausalModelConfig
from wamkit.nn.attention import KeysValues


class Groups(NamedTuple):
    """Actions of a chunk, one group for each latent frame."""

    values: Float[Tensor, "B f n A"]
    valid: Bool[Tensor, "B f n"]
    steps: Int[Tensor, "B"]

    def repeated(self, times: int) -> Groups:
        """Once with and once without the instruction."""
        return Groups(*(part.repeat(times, *[1] * (part.ndim - 1)) for part in self))


def levels_down_to(
    until: float, steps: int, shift: float, device: torch.device | str
) -> Float[Tensor, "steps_and_one"]:
    """Noise levels of Euler steps from 1 to ``until``, evenly spaced before the shift."""
    end = until / (shift - (shift - 1.0) * until)
    return flow_matching.shifted_noise_level(torch.linspace(1.0, end, steps + 1, device=device), shift=shift)


class ChunkSampler:
    """The next chunk of some episodes.

    Args:
        transformer: Whose.
        config: Steps, schedules, guidance.
        past: The episodes' rows; with guidance those without an instruction behind those with one.
        words: Their instructions, in the same order.
    """

    def __init__(self, transformer: CausalTransformer, config: CausalModelConfig, past: Batch, words: Words) -> None:
        self.transformer, self.config, self.past, self.words = transformer, config, past, words
        self.copies = 2 if config.guided else 1

    def video(self, noise: Float[Tensor, "B C f h w"], given: Groups | None = None) -> Float[Tensor, "B C f h w"]:
        """The chunk's frames, at noise level ``video_until``.

        Args:
            noise: Where they start.
            given: Actions under which they come about (forward dynamics); they must be finished, and then
                `video_until` is not looked at, since no actions are to be read off.
        """
        config, past = self.config, self.past
        if given is not None:
            past = self._with_actions(given)
        until = config.video_until if given is None else 0.0
        levels = levels_down_to(until, config.video_steps, config.video_shift, noise.device)

        def velocity(x: Tensor, level: Tensor) -> Tensor:
            return self.transformer.video_pass(past, x, level, self.words)[0]

        return self._euler(velocity, noise, levels, config.video_guidance)

    def actions(
        self, noise: Groups, video: Float[Tensor, "B C f h w"] | None = None, *, video_level: float = 0.0
    ) -> Float[Tensor, "B f n A"]:
        """The chunk's actions: from the past alone, or with the chunk's frames.

        Args:
            noise: Where they start, and which places are real.
            video: The frames; None for the policy.
            video_level: Their noise level.
        """
        config, past = self.config, self.past
        if video is not None:
            past = past.followed_by(*self._seen(video, video_level))
        levels = levels_down_to(0.0, config.action_steps, config.action_shift, noise.values.device)
        _, valid, steps = noise.repeated(self.copies)

        def velocity(x: Tensor, level: Tensor) -> Tensor:
            return self.transformer.action_pass(past, x, valid, steps, level, self.words)[0]

        return self._euler(velocity, noise.values, levels, config.action_guidance)

    def _seen(self, video: Tensor, level: float) -> tuple[list[KeysValues], Tensor]:
        frames = video.repeat(self.copies, 1, 1, 1, 1)
        at = torch.full((len(frames), frames.shape[2]), level, device=frames.device)
        kept = self.transformer.video_pass(self.past, frames, at, self.words)[1]
        return kept, torch.ones(len(frames), kept[0].keys.shape[2], dtype=torch.bool, device=frames.device)

    def _with_actions(self, given: Groups) -> Batch:
        values, valid, steps = given.repeated(self.copies)
        clean = torch.zeros(values.shape[:2], device=values.device)
        kept = self.transformer.action_pass(self.past, values, valid, steps, clean, self.words)[1]
        return self.past.followed_by(kept, valid.flatten(1))

    def _euler(
        self, velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, levels: Tensor, guidance: float
    ) -> Tensor:
        x, copies, frames = noise, self.copies, noise.shape[2] if noise.ndim == 5 else noise.shape[1]
        for now, following in pairwise(levels):
            level = now.expand(copies * len(x), frames)
            towards_noise = velocity(x.repeat(copies, *[1] * (x.ndim - 1)), level)
            if copies == 2:
                told, untold = towards_noise.chunk(2)
                towards_noise = untold + guidance * (told - untold)
            x = x + (following - now) * towards_noise
        return x
