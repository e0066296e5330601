"""The next chunk of a causal model by Euler steps: its frames, then the actions that lead there.

Frames and actions have their own schedules and step counts. With classifier-free guidance each pass runs twice over,
with the instruction and without, each with its own past: v = v_without + g (v_with - v_without).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wamkit.actions.flow_field import VelocityField
from wamkit.dynamics.causal_cache import Batch
from wamkit.dynamics.causal_transformer import ActionContext, CausalTransformer, Words
from wamkit.dynamics.wan_block import TimeCode
from wamkit.losses import flow_matching
from wamkit.models.causal.config import CausalModelConfig


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

    def with_frames(
        self, video: Float[Tensor, "B C f h w"], level: float = 0.0
    ) -> tuple[Batch, Float[Tensor, "B C f h w"]]:
        """The past with the chunk's frames behind it, which actions may be read off, and the frames at their end.

        Frames at a noise level are followed to their end in one Euler step, x - s v: the pass that reads them has
        computed the velocity anyway.

        Args:
            video: The frames.
            level: Their noise level, s.
        """
        config, frames = self.config, video.repeat(self.copies, 1, 1, 1, 1)
        at = torch.full((len(frames), frames.shape[2]), level, device=frames.device)
        velocity, kept = self.transformer.video_pass(self.past, frames, at, self.words)
        readable = torch.ones(len(frames), kept[0].keys.shape[2], dtype=torch.bool, device=frames.device)
        finished = video
        if level > 0:
            finished = video - level * _combined(velocity, self.copies, config.video_guidance)
        return self.past.followed_by(kept, readable), finished

    def actions(
        self,
        noise: Groups,
        past: Batch | None = None,
        *,
        through: Callable[[VelocityField, Sequence[float]], VelocityField] | None = None,
    ) -> Float[Tensor, "B f n A"]:
        """The chunk's actions: from the past alone, or with the chunk's frames.

        Args:
            noise: Where they start, and which places are real.
            past: From `with_frames`; None for the policy.
            through: What is made of the velocity towards the data before it is followed, given the steps' noise levels,
                the last one's end included.
        """
        context = self.action_context(noise.valid, noise.steps, past)
        levels = action_levels(self.config, noise.values.device)
        codes = self.transformer.action_codes(levels[:-1])

        def field(x: Tensor, step: int) -> Tensor:
            return -action_velocity(self.transformer, self.config, context, codes, x, step, self.words.mask)

        followed = field if through is None else through(field, levels.tolist())
        x = noise.values
        for step, (now, following) in enumerate(pairwise(levels)):
            x = x + (now - following) * followed(x, step)
        return x

    def action_context(
        self, valid: Bool[Tensor, "B f n"], steps: Int[Tensor, "B"], past: Batch | None = None
    ) -> ActionContext:
        """All that the chunk's actions read beside themselves; arguments as for `actions`."""
        return self.transformer.action_context(
            self.past if past is None else past, valid.repeat(self.copies, 1, 1), steps.repeat(self.copies), self.words
        )

    def _with_actions(self, given: Groups) -> Batch:
        values, valid, steps = given.repeated(self.copies)
        clean = torch.zeros(values.shape[:2], device=values.device)
        kept = self.transformer.action_pass(self.past, values, valid, steps, clean, self.words)[1]
        return self.past.followed_by(kept, valid.flatten(1))

    def _euler(
        self, velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, levels: Tensor, guidance: float
    ) -> Tensor:
        x, frames = noise, noise.shape[2]
        for now, following in pairwise(levels):
            level = now.expand(self.copies * len(x), frames)
            towards_noise = _guided(lambda x, level=level: velocity(x, level), x, self.copies, guidance)
            x = x + (following - now) * towards_noise
        return x


def action_levels(config: CausalModelConfig, device: torch.device | str) -> Float[Tensor, "steps_and_one"]:
    """Noise levels of the actions' Euler steps."""
    return levels_down_to(0.0, config.action_steps, config.action_shift, device)


def action_velocity(
    transformer: CausalTransformer,
    config: CausalModelConfig,
    context: ActionContext,
    codes: TimeCode,
    x: Float[Tensor, "B f n A"],
    step: int,
    words_mask: Bool[Tensor, "B 1 1 L"] | None = None,
) -> Float[Tensor, "B f n A"]:
    """Of a chunk's actions towards the noise in one Euler step, with classifier-free guidance where it is configured.

    Args:
        transformer: Whose.
        config: Guidance.
        context: Of all rows, those without an instruction behind those with one.
        codes: Of the steps' noise levels, a row for each.
        x: The actions, once for each episode.
        step: Which row counts.
        words_mask: See `CausalTransformer.action_step`.
    """
    copies = 2 if config.guided else 1
    rows = copies * len(x), x.shape[1]
    at = TimeCode(*(part[step].expand(*rows, *part.shape[1:]) for part in codes))
    return _guided(
        lambda both: transformer.action_step(context, both, at, words_mask)[0], x, copies, config.action_guidance
    )


def _guided(velocity: Callable[[Tensor], Tensor], x: Tensor, copies: int, guidance: float) -> Tensor:
    if copies == 1:
        return velocity(x)
    return _combined(velocity(x.repeat(copies, *[1] * (x.ndim - 1))), copies, guidance)


def _combined(velocity: Tensor, copies: int, guidance: float) -> Tensor:
    """Of what was computed with and without an instruction."""
    if copies == 1:
        return velocity
    told, untold = velocity.chunk(2)
    return untold + guidance * (told - untold)
