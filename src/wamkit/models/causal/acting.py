"""How a causal model acts: episodes under way, and the next chunk of each.

The model is told what happened: `executed` and `observed` between two calls of `act`. What it knows of each episode is
a value (`wamkit.models.causal.episode.Episode`) that `remember` hands out and `recall` takes back, a row for each
episode of the batch; rows of any batches may be put together, or left out, and never mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from wamkit.actions.flow_field import VelocityField, inpainting
from wamkit.dynamics.causal_cache import Batch, Row, by_copy, by_episode
from wamkit.dynamics.causal_transformer import CausalTransformer, Words
from wamkit.encoders.base import VideoTokenizer
from wamkit.encoders.umt5 import UMT5Text
from wamkit.models.action_groups import flattened, grouped
from wamkit.models.base import WorldActionModel
from wamkit.models.causal.config import CausalModelError, Mode
from wamkit.models.causal.episode import Episode, fork
from wamkit.models.causal.sampler import ChunkSampler, Groups
from wamkit.models.chunk import chunk_times, padded
from wamkit.types import ActionChunk, Future, Observation

Observe = Callable[[Sequence[tuple[Row, ...]], Tensor, Groups | None, Sequence[str]], list[tuple[Row, ...]]]
"""Each episode's rows, one more chunk of observed latents [B, C, f, h, w], the actions that led there, instructions."""


class CausalActing(WorldActionModel):
    """What of `wamkit.models.causal.world_model.CausalWorldModel` drives a robot."""

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

    @property
    def look_interval_s(self) -> float:
        """One latent frame."""
        return self.config.frame_s

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

        The noise of imagined frames is of seed 0, the same for every row. What they show is handed out, in latents;
        in mode ``action_only`` nothing is imagined. The episodes move on only once the chunk is there: after an error
        they stand where they stood.

        Raises:
            CausalModelError: more or fewer rows than episodes under way, or an episode that cannot be followed.
        """
        return self._acted(observation, noise, generator, mode or self.config.mode)

    @torch.no_grad()
    def inpaint(
        self,
        observation: Observation,
        known: Float[Tensor, "B K A"],
        weights: Float[Tensor, "B K A"],
        *,
        noise: Float[Tensor, "B K A"] | None = None,
        generator: torch.Generator | None = None,
        mode: Mode | None = None,
    ) -> ActionChunk:
        """The action decoder's field, guided towards the known plan; nothing before it differs from `act`.

        Frames that are imagined on the way are not guided: they follow from what was observed and executed.

        Raises:
            CausalModelError: see `act`.
        """

        def through(steps: Tensor) -> Callable[[VelocityField, Sequence[float]], VelocityField]:
            config = self.config
            plan, share = (
                grouped(part, steps, config.chunk_frames, config.actions_per_frame)[0] for part in (known, weights)
            )
            return lambda field, levels: inpainting(field, plan, share, levels)

        return self._acted(observation, noise, generator, mode or self.config.mode, through)

    def _acted(
        self,
        observation: Observation,
        noise: Tensor | None,
        generator: torch.Generator | None,
        mode: Mode,
        through: Callable[[Tensor], Callable[[VelocityField, Sequence[float]], VelocityField]] | None = None,
    ) -> ActionChunk:
        config = self.config
        times, valid = self.chunk_times(observation.rate_hz)
        noise = self.chunk_noise(observation, noise, generator)
        steps = self.steps_of(observation.rate_hz)
        episodes = self.moved_on(observation, steps)
        sampler = self._sampler([e.rows for e in episodes], observation.task)
        start = Groups(*grouped(noise, steps, config.chunk_frames, config.actions_per_frame), steps)
        past = imagined = None
        if mode == "video_and_action":
            frames = sampler.video(self.video_noise(len(episodes), config.chunk_frames))
            past, finished = sampler.with_frames(frames, config.video_until)
            imagined = self.latents_ahead(finished, torch.stack([episode.latent for episode in episodes]))
        groups = sampler.actions(start, past, through=None if through is None else through(steps))
        self._episodes = tuple(episodes)
        return ActionChunk(actions=flattened(groups, steps).float(), times=times, valid=valid, imagined=imagined)

    def latents_ahead(self, frames: Float[Tensor, "B C f h w"], present: Float[Tensor, "B C h w"]) -> Future:
        """Frames that were imagined while acting as a future, in latents: each at its last picture's time.

        Args:
            frames: At their end.
            present: The latent frame that they follow.
        """
        values = frames.flatten(3).permute(0, 2, 3, 1).float()
        ahead = torch.arange(1, values.shape[1] + 1, device=values.device, dtype=torch.float32)
        times = (ahead * self.config.frame_s).expand(len(values), -1)
        return Future(space="latents", values=values, times=times, present=present.flatten(2).transpose(1, 2).float())

    def chunk_times(self, rate_hz: Float[Tensor, "B"]) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
        """Time stamps i/h of a chunk, and which of its steps lie inside the horizon."""
        config = self.config
        return chunk_times(
            rate_hz, horizon_s=config.horizon_s, max_actions=config.max_actions, valid_steps=config.valid_steps
        )

    def moved_on(
        self, observation: Observation, steps: Int[Tensor, "B"], observe: Observe | None = None
    ) -> list[Episode]:
        """Every row's episode, up to what is seen now; those under way stay where they are.

        Args:
            observation: The present.
            steps: Actions of one latent frame.
            observe: What computes keys and values of what was seen and done, in place of the model's own.

        Raises:
            CausalModelError: see `act`.
        """
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
                        rows,
                        self._continued(rows, found, frames, seen, observation.task, steps, observe or self._observed),
                        strict=True,
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
        observe: Observe,
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
        pasts = [e.rows if (e := found[row]) is not None else self.empty_rows() for row in rows]
        after = observe(pasts, latent, groups, [task[row] for row in rows])
        return [
            Episode(task=task[row], rows=past, stream=stream, present=seen[row], latent=newest)
            for row, past, stream, newest in zip(rows, after, streams, latent[:, :, -1], strict=True)
        ]

    # Rows of one instruction each, or two with guidance

    def empty_rows(self) -> tuple[Row, ...]:
        """An episode of which nothing was seen."""
        return (self.transformer.empty_row(),) * (2 if self.config.guided else 1)

    def _words(self, task: Sequence[str]) -> Words:
        device = next(self.transformer.parameters()).device
        told = [*task, *([""] * len(task) if self.config.guided else [])]
        return self.transformer.read(self.text(told, device))

    def _sampler(self, pasts: Sequence[tuple[Row, ...]], task: Sequence[str]) -> ChunkSampler:
        return ChunkSampler(self.transformer, self.config, Batch.of(by_copy(pasts)), self._words(task))

    def _observed(
        self,
        pasts: Sequence[tuple[Row, ...]],
        latents: Float[Tensor, "B C f h w"],
        groups: Groups | None,
        task: Sequence[str],
    ) -> list[tuple[Row, ...]]:
        copies = len(pasts[0])
        frames, words = latents.repeat(copies, 1, 1, 1, 1), self._words(task)
        told = () if groups is None else groups.repeated(copies)
        return by_episode(self.transformer.observed(by_copy(pasts), frames, words, *told), copies)

    def video_noise(self, rows: int, frames: int) -> Tensor:
        """Of seed 0 and the same for every row, so that no row depends on its neighbours."""
        return next(self.video_noises(rows, frames))

    def video_noises(self, rows: int, frames: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Of one chunk after the other; without a generator of seed 0, as `video_noise`."""
        device = next(self.transformer.parameters()).device
        shape = (self.config.video.channels, frames, *self.latent_size)
        source = generator or torch.Generator().manual_seed(0)
        drawn = shape if generator is None else (rows, *shape)
        while True:
            noise = torch.randn(drawn, generator=source, device=source.device).to(device)
            yield noise.expand(rows, *shape)
