"""How a causal model is used: episodes under way, acting, imagining, reading actions off a video.

The model is told what happened: `executed` and `observed` between two calls of `act`. What it knows of each episode is
a value (`wamkit.models.causal_episode.Episode`) that `remember` hands out and `recall` takes back, a row for each
episode of the batch; rows of any batches may be put together, or left out, and never mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from wamkit.dynamics.causal_cache import Batch, Row
from wamkit.dynamics.causal_transformer import CausalTransformer, Words
from wamkit.encoders.base import VideoTokenizer
from wamkit.encoders.umt5 import UMT5Text
from wamkit.models.action_groups import flattened, grouped
from wamkit.models.base import StageError, WorldActionModel
from wamkit.models.causal_config import CausalModelError, Mode
from wamkit.models.causal_episode import Episode, fork
from wamkit.models.causal_sampler import ChunkSampler, Groups
from wamkit.models.chunk import chunk_times, padded
from wamkit.models.video_world_model import resize_pictures
from wamkit.types import ActionChunk, Future, Observation


class CausalActing(WorldActionModel):
    """The inference half of `wamkit.models.causal_world_model.CausalWorldModel`."""

    config: Any
    tokenizer: VideoTokenizer
    text: UMT5Text
    transformer: CausalTransformer
    latent_size: tuple[int, int]

    def __init__(self) -> None:
        super().__init__()
        self._episodes: tuple[Episode | None, ...] | None = None

    # Episodes under way

    def remember(self) -> tuple[Episode | None, ...] | None:
        """The episodes of the last `act`, with what was told since; each is a value."""
        return self._episodes

    def recall(self, memory: Sequence[Episode | None] | None) -> None:
        """Go on with these episodes, a row each; None stands for a new one."""
        self._episodes = None if memory is None else tuple(memory)

    @property
    def picture_interval_s(self) -> float:
        """One picture a latent frame, or four."""
        each = self.config.frame_s
        return each if self.config.pictures == "held" else each / VideoTokenizer.TEMPORAL

    def executed(self, actions: Float[Tensor, "B n A"]) -> None:
        """What was executed since the last `act`, normalised; in whole latent frames by the next."""
        told = padded(actions, self.config.action.action_dim)
        self._episodes = tuple(e.did(own) for e, own in zip(self._under_way(len(told)), told, strict=True))

    def observed(self, images: Mapping[str, UInt8[Tensor, "B T 3 H W"]]) -> None:
        """Pictures seen between the last `act` and the next, oldest first, evenly spaced."""
        seen = self.clip_of(images)
        self._episodes = tuple(e.saw(own) for e, own in zip(self._under_way(len(seen)), seen, strict=True))

    def _under_way(self, rows: int) -> list[Episode]:
        episodes = [e for e in self._episodes or () if e is not None]
        if len(episodes) != rows or len(episodes) != len(self._episodes or ()):
            raise CausalModelError(
                f"{rows} robots say what happened since their last act, and {len(episodes)} episodes are under way:"
                " act first, or recall what was remembered of these robots"
            )
        return episodes

    def clip_of(self, frames: Mapping[str, Tensor]) -> Tensor:
        """The canvas of each frame, uint8 [B, T, 3, H, W]."""
        raise NotImplementedError

    def steps_of(self, rate_hz: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
        """Actions of one latent frame at each sample's rate."""
        raise NotImplementedError

    # Acting

    @property
    def action_noise_shape(self) -> tuple[int, int]:
        """Padded chunk length and padded action width."""
        return self.config.max_actions, self.config.action.action_dim

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        *,
        noise: Float[Tensor, "B K A"] | None = None,
        generator: torch.Generator | None = None,
        mode: Mode | None = None,
    ) -> ActionChunk:
        """The next chunk of each episode; ``mode`` replaces the configured one.

        The noise of imagined frames is of seed 0, the same for every row. The episodes move on only once the chunk is
        there: after an error they stand where they stood.

        Raises:
            CausalModelError: more or fewer rows than episodes under way, or an episode that cannot be followed.
        """
        config = self.config
        times, valid = chunk_times(
            observation.rate_hz,
            horizon_s=config.horizon_s,
            max_actions=config.max_actions,
            valid_steps=config.valid_steps,
        )
        if noise is None:
            shape = (observation.batch_size, *self.action_noise_shape)
            noise = torch.randn(shape, generator=generator, device=times.device)
        steps = self.steps_of(observation.rate_hz)
        episodes = self._moved_on(observation, steps)
        sampler = self._sampler([e.rows for e in episodes], observation.task)
        start = Groups(*grouped(noise, steps, config.chunk_frames, config.actions_per_frame), steps)
        frames = None
        if (mode or config.mode) == "video_and_action":
            frames = sampler.video(self._video_noise(len(episodes), config.chunk_frames))
        groups = sampler.actions(start, frames, video_level=config.video_until)
        self._episodes = tuple(episodes)
        # What was imagined on the way is not handed out: it is in latents, and `imagine` speaks of pixels.
        return ActionChunk(actions=flattened(groups, steps).float(), times=times, valid=valid)

    def _moved_on(self, observation: Observation, steps: Int[Tensor, "B"]) -> list[Episode]:
        """Every row's episode, up to what is seen now."""
        count = observation.batch_size
        known = (None,) * count if self._episodes is None else self._episodes
        if len(known) != count:
            raise CausalModelError(
                f"{len(known)} episodes are under way and {count} observations are shown: recall a memory for each row,"
                " or reset() where new episodes begin"
            )
        seen = self.clip_of({camera: picture.unsqueeze(1) for camera, picture in observation.images.items()})[:, 0]
        # A new instruction makes the remembered keys and values those of another task: the episode begins anew.
        found = [
            e if e is not None and e.task == told else None for e, told in zip(known, observation.task, strict=True)
        ]
        passed = [
            1 if e is None else e.new_frames(present, int(m)) for e, present, m in zip(found, seen, steps, strict=True)
        ]
        moved: list[Episode | None] = [
            e if e is not None and n == 0 else None for e, n in zip(found, passed, strict=True)
        ]
        for begins in (True, False):
            for frames in sorted(set(passed) - {0}):
                rows = [
                    i for i in range(count) if moved[i] is None and passed[i] == frames and (found[i] is None) is begins
                ]
                if rows:
                    for row, episode in zip(
                        rows, self._continued(rows, found, frames, seen, observation.task, steps), strict=True
                    ):
                        moved[row] = episode
        return [episode for episode in moved if episode is not None]

    def _continued(
        self,
        rows: Sequence[int],
        found: Sequence[Episode | None],
        frames: int,
        seen: UInt8[Tensor, "B 3 H W"],
        task: Sequence[str],
        steps: Int[Tensor, "B"],
    ) -> list[Episode]:
        """Episodes of which equally many latent frames have passed, or which all begin."""
        config = self.config
        streams, latents = [], []
        for row in rows:
            episode = found[row]
            stream = self.tokenizer.stream() if episode is None else fork(episode.stream)
            clip = (
                seen[row][None, None]
                if episode is None
                else episode.clip(seen[row], frames, held=config.pictures == "held")
            )
            latents.append(stream.push(clip).float())
            streams.append(stream)
        latent = torch.cat(latents)
        groups = None
        if found[rows[0]] is not None:
            done = torch.stack([e.actions for row in rows if (e := found[row]) is not None and e.actions is not None])
            own = steps[list(rows)]
            groups = Groups(*grouped(done, own, frames, config.actions_per_frame), own)
        pasts = [e.rows if (e := found[row]) is not None else self._empty_rows() for row in rows]
        after = self._observed(pasts, latent, groups, [task[row] for row in rows])
        return [
            Episode(task=task[row], rows=past, stream=stream, present=seen[row])
            for row, past, stream in zip(rows, after, streams, strict=True)
        ]

    # Rows of one instruction each, or two with guidance

    def _empty_rows(self) -> tuple[Row, ...]:
        return (self.transformer.empty_row(),) * (2 if self.config.guided else 1)

    def _words(self, task: Sequence[str]) -> Words:
        device = next(self.transformer.parameters()).device
        told = [*task, *([""] * len(task) if self.config.guided else [])]
        return self.transformer.read(self.text(told, device))

    def _sampler(self, pasts: Sequence[tuple[Row, ...]], task: Sequence[str]) -> ChunkSampler:
        rows = [past[copy] for copy in range(len(pasts[0])) for past in pasts]
        return ChunkSampler(self.transformer, self.config, Batch.of(rows), self._words(task))

    def _observed(
        self,
        pasts: Sequence[tuple[Row, ...]],
        latents: Float[Tensor, "B C f h w"],
        groups: Groups | None,
        task: Sequence[str],
    ) -> list[tuple[Row, ...]]:
        copies = len(pasts[0])
        rows = [past[copy] for copy in range(copies) for past in pasts]
        frames = latents.repeat(copies, 1, 1, 1, 1)
        if groups is None:
            after = self.transformer.observed(rows, frames, self._words(task))
        else:
            values, valid, steps = groups.repeated(copies)
            after = self.transformer.observed(rows, frames, self._words(task), values, valid, steps)
        return [tuple(after[copy * len(pasts) + index] for copy in range(copies)) for index in range(len(pasts))]

    # Imagining

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
        noise = self._video_noise(observation.batch_size, wanted, generator)
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
        pasts = self._observed([self._empty_rows()] * len(latent), latent, None, observation.task)
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
        pasts = self._observed([self._empty_rows()] * len(latents), latents[:, :, :1], None, task)
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

    def _video_noise(self, rows: int, frames: int, generator: torch.Generator | None = None) -> Tensor:
        """The same for every row where it is of seed 0, so that no row depends on its neighbours."""
        device = next(self.transformer.parameters()).device
        shape = (self.config.video.channels, frames, *self.latent_size)
        if generator is None:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            return noise.to(device).expand(rows, *shape)
        return torch.randn((rows, *shape), generator=generator, device=generator.device).to(device)


def _finished(sampler: ChunkSampler, noise: Tensor, given: Groups | None) -> Tensor:
    """Frames that are to be looked at, or built on, are denoised to the end, wherever acting would stop."""
    if sampler.config.video_until > 0 and given is None:
        config = replace(sampler.config, video_until=0.0)
        sampler = ChunkSampler(sampler.transformer, config, sampler.past, sampler.words)
    return sampler.video(noise, given)
