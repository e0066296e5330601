"""How a causal model looks ahead and back: a film from one look, under actions or none, and the actions of a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.dynamics.causal_cache import Row
from wamkit.encoders.base import VideoTokenizer
from wamkit.models.action_groups import flattened, grouped
from wamkit.models.base import StageError
from wamkit.models.causal_acting import CausalActing
from wamkit.models.causal_sampler import ChunkSampler, Groups
from wamkit.models.chunk import chunk_times, padded
from wamkit.models.video_world_model import resize_pictures
from wamkit.types import ActionChunk, Future, Observation


class CausalImagining(CausalActing):
    """The inference half of `wamkit.models.causal_world_model.CausalWorldModel`; episodes under way are left alone."""

    @torch.no_grad()
    def imagine(
        self,
        observation: Observation,
        actions: Float[Tensor, "B K A"] | None = None,
        *,
        frames: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Future:
        """Video from what is seen now alone, chunk by chunk from its own imagination; under given actions or none.

        Args:
            observation: Where it begins; episodes under way are left alone.
            actions: Normalised, in whole latent frames (forward dynamics). None: what the instruction leads to.
            frames: Latent frames to imagine; None: as many as the actions span, or as a training sequence has.
            generator: Of the noise; None: seed 0, so that two calls agree.

        Returns:
            Pixels on the canvas in [0, 1].

        Raises:
            StageError: the model cannot predict frames under actions, or the actions are no whole latent frames.
        """
        config, steps = self.config, self.steps_of(observation.rate_hz)
        groups = None
        if actions is not None:
            groups, frames = self._given(actions, steps, frames)
        wanted = config.training_frames if frames is None else frames
        noise = self.video_noise(observation.batch_size, wanted, generator)
        pasts, latent, pictures = self._begun(observation)
        made = [latent]
        for first in range(0, wanted, config.chunk_frames):
            part = slice(first, min(first + config.chunk_frames, wanted))
            given = None if groups is None else Groups(groups.values[:, part], groups.valid[:, part], steps)
            sampler = self._sampler(pasts, observation.task)
            made.append(_finished(sampler, noise[:, :, part], given))
            pasts = self._observed(pasts, made[-1], given, observation.task)
        video = self.distinct(self.tokenizer.decode(torch.cat(made, dim=2)))
        times = self.distinct(torch.tensor([config.offsets_s(wanted)], device=video.device))[:, 1:]
        present = resize_pictures(pictures[:, 0].float() / 255.0, video.shape[-2:])
        return Future(space="pixels", values=video[:, 1:].float(), times=times.expand(len(video), -1), present=present)

    def _given(self, actions: Tensor, steps: Tensor, frames: int | None) -> tuple[Groups, int]:
        config = self.config
        if config.order == "after_video":
            raise StageError(
                f"{self.name} with order 'after_video' does not predict frames under actions: its actions come after"
                " their chunk's frames. Train it with order 'beside_video' and a forward_share above 0"
            )
        each = int(steps[0])
        spanned, rest = divmod(actions.shape[1], each)
        if rest or not spanned or bool((steps != each).any()) or (frames is not None and frames > spanned):
            raise StageError(
                f"{actions.shape[1]} actions do not make up whole latent frames of {steps.tolist()}: give a multiple,"
                " one control rate, and as many as there are frames to imagine"
            )
        wanted = spanned if frames is None else frames
        values = padded(actions, config.action.action_dim)
        return Groups(*grouped(values, steps, wanted, config.actions_per_frame), steps), wanted

    def _begun(self, observation: Observation) -> tuple[list[tuple[Row, ...]], Tensor, Tensor]:
        """The past after the first frame: rows, its latent, its canvas."""
        pictures = self.clip_of({camera: picture.unsqueeze(1) for camera, picture in observation.images.items()})
        latent = self.tokenizer.encode(pictures).float()
        pasts = self._observed([self.empty_rows()] * len(latent), latent, None, observation.task)
        return pasts, latent, pictures

    @torch.no_grad()
    def actions_of(
        self,
        clip: Mapping[str, UInt8[Tensor, "B T 3 H W"]],
        task: Sequence[str],
        rate_hz: Float[Tensor, "B"],
        *,
        noise: Float[Tensor, "B K A"] | None = None,
        generator: torch.Generator | None = None,
    ) -> ActionChunk:
        """The actions that a given video shows (inverse dynamics), chunk by chunk, its own before it as the history.

        Args:
            clip: 4 n + 1 pictures of each camera, at the model's times.
            task: Instructions.
            rate_hz: Control rates of the actions.
            noise: Where the actions start; K = n times ``actions_per_frame``.
            generator: Of the noise.
        """
        config, steps = self.config, self.steps_of(rate_hz)
        latents = self.tokenizer.encode(self.clip_of(clip)).float()
        frames = latents.shape[2] - 1
        if noise is None:
            shape = (len(latents), frames * config.actions_per_frame, config.action.action_dim)
            noise = torch.randn(shape, generator=generator, device=latents.device)
        start, valid = grouped(noise, steps, frames, config.actions_per_frame)
        pasts = self._observed([self.empty_rows()] * len(latents), latents[:, :, :1], None, task)
        found = []
        for first in range(0, frames, config.chunk_frames):
            part = slice(first, min(first + config.chunk_frames, frames))
            seen = latents[:, :, 1:][:, :, part]
            own = Groups(start[:, part], valid[:, part], steps)
            made = self._sampler(pasts, task).actions(own, seen)
            found.append(made)
            pasts = self._observed(pasts, seen, own._replace(values=made), task)
        times, inside = chunk_times(
            rate_hz, horizon_s=frames * config.frame_s, max_actions=noise.shape[1], valid_steps=config.valid_steps
        )
        return ActionChunk(actions=flattened(torch.cat(found, dim=1), steps).float(), times=times, valid=inside)

    def distinct(self, pictures: Tensor) -> Tensor:
        """Of a clip's pictures [B, 4 n + 1, ...], those that differ in time."""
        return pictures[:, :: VideoTokenizer.TEMPORAL] if self.config.pictures == "held" else pictures


def _finished(sampler: ChunkSampler, noise: Tensor, given: Groups | None) -> Tensor:
    """Frames that are to be looked at, or built on, are denoised to the end, wherever acting would stop."""
    if sampler.config.video_until > 0 and given is None:
        config = replace(sampler.config, video_until=0.0)
        sampler = ChunkSampler(sampler.transformer, config, sampler.past, sampler.words)
    return sampler.video(noise, given)
