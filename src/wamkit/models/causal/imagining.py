"""How a causal model looks ahead and back: a film from one look, under actions or none, and the actions of a video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.dynamics.causal_cache import Row
from wamkit.encoders.base import VideoTokenizer
from wamkit.models.action_groups import flattened, grouped
from wamkit.models.base import StageError
from wamkit.models.causal.acting import CausalActing
from wamkit.models.causal.sampler import ChunkSampler, Groups
from wamkit.models.chunk import chunk_times, padded
from wamkit.models.video.world_model import resize_pictures
from wamkit.types import ActionChunk, Future, Observation


class CausalImagining(CausalActing):
    """The inference half of `wamkit.models.causal.world_model.CausalWorldModel`; episodes under way are left alone."""

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
        pieces = list(self.roll_out(observation, actions, frames=frames, generator=generator))
        video, times = (torch.cat([getattr(piece, name) for piece in pieces], dim=1) for name in ("values", "times"))
        return Future(space="pixels", values=video, times=times, present=pieces[0].present)

    @torch.no_grad()
    def roll_out(
        self,
        observation: Observation,
        actions: Float[Tensor, "B K A"] | None = None,
        *,
        frames: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Future]:
        """What `imagine` returns, a chunk at a time, for as long as it may be: a whole episode from its first look.

        Each chunk follows from the first look and from what was imagined since. Keys and values of the window's frames
        are kept and the decoder goes on where it stopped, so memory does not grow with the length. Under the same noise
        a longer roll-out has the whole chunks of a shorter one.

        Args:
            observation: See `imagine`.
            actions: See `imagine`.
            frames: See `imagine`.
            generator: See `imagine`.

        Yields:
            A chunk's pictures, with their times from the first look; ``present`` is the first look in each.

        Raises:
            StageError: See `imagine`; when the first chunk is asked for.
        """
        config, steps = self.config, self.steps_of(observation.rate_hz)
        groups = None
        if actions is not None:
            groups, frames = self._given(actions, steps, frames)
        wanted = config.training_frames if frames is None else frames
        if wanted < 1:
            raise StageError(f"{wanted} latent frames are to be imagined: ask for at least one latent frame")
        noises = self.video_noises(observation.batch_size, config.chunk_frames, generator)
        pasts, latent, pictures = self._begun(observation)
        decoder = self.tokenizer.picture_stream()
        size = decoder.push(latent).shape[-2:]
        present = resize_pictures(pictures[:, 0].float() / 255.0, size)
        for first in range(0, wanted, config.chunk_frames):
            part = slice(first, min(first + config.chunk_frames, wanted))
            given = None if groups is None else Groups(groups.values[:, part], groups.valid[:, part], steps)
            noise = next(noises)[:, :, : part.stop - part.start]
            made = _finished(self._sampler(pasts, observation.task), noise, given)
            yield self._shown(decoder.push(made), first, present)
            if part.stop < wanted:
                pasts = self._observed(pasts, made, given, observation.task)

    def _shown(self, pictures: Tensor, first: int, present: Tensor) -> Future:
        """Pictures [B, 4 f, 3, h, w] of latent frames of which ``first`` came before."""
        frames = pictures.shape[1] // VideoTokenizer.TEMPORAL
        offsets = self.config.offsets_s(first + frames)[1 + first * VideoTokenizer.TEMPORAL :]
        # Of a latent frame's pictures that are held, the last: as `distinct` has it, whose first is the clip's.
        apart = VideoTokenizer.TEMPORAL if self.config.pictures == "held" else 1
        times = torch.tensor([offsets[apart - 1 :: apart]], device=pictures.device)
        video = pictures[:, apart - 1 :: apart].float()
        return Future(space="pixels", values=video, times=times.expand(len(video), -1), present=present)

    @torch.no_grad()
    def decoded(self, future: Future, observation: Observation) -> Future:
        """The pictures of `latents_ahead`, as `imagine` gives them: the tokenizer decodes, the transformer rests.

        What is seen now is encoded by itself and stands before them, since a clip begins with a single picture.
        """
        if future.space != "latents":
            return future
        pictures = self.clip_of({camera: picture.unsqueeze(1) for camera, picture in observation.images.items()})
        decoder = self.tokenizer.picture_stream()
        size = decoder.push(self.tokenizer.encode(pictures).float()).shape[-2:]
        ahead = future.values.unflatten(2, self.latent_size).permute(0, 4, 1, 2, 3)
        return self._shown(decoder.push(ahead), 0, resize_pictures(pictures[:, 0].float() / 255.0, size))

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
            sampler = self._sampler(pasts, task)
            made = sampler.actions(own, sampler.with_frames(seen)[0])
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
