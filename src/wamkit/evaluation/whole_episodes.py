"""Recorded episodes from their first picture to their last, a chunk of a model's latent frames at a time.

Actions of a whole episode are few numbers and come at once; pictures come in pieces, so that memory does not grow with
an episode's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from wamkit.data.mixture import Mixture
from wamkit.data.windows import MixtureEntry, WindowSpec
from wamkit.evaluation.world_metrics import WorldMetricsError

if TYPE_CHECKING:
    from wamkit.data.normalize import Normalizer
    from wamkit.models.base import WorldActionModel
    from wamkit.types import Observation, Window


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode as far as whole latent frames reach."""

    number: int
    task: str
    frames: int
    """Latent frames after the first picture."""
    observation: Observation
    """The first look, a batch of one."""
    actions: Tensor | None
    """Normalised, [1, K, A], those of the latent frames; None where the recording or the model's stage has none."""


class WholeEpisodes:
    """The chosen episodes of a recording, as a causal model takes them.

    Args:
        model: Whose chunks; its config says how long a latent frame is.
        entry: The recording, with a frame store.
        window: The checkpoint's own: cameras, resolution, whether there are actions.
        normalizer: Of the checkpoint.

    Raises:
        WorldMetricsError: No episode is as long as a chunk of the model's.
        WamkitError: The recording does not fit the model: cameras, resolution, control rate.
    """

    def __init__(
        self, model: WorldActionModel, entry: MixtureEntry, window: WindowSpec, normalizer: Normalizer | None
    ) -> None:
        config: Any = model.config
        self.entry, self.normalizer = entry, normalizer
        self.chunk_frames, self.frame_s = int(config.chunk_frames), float(config.frame_s)
        self.cameras = tuple(config.cameras)
        self._plain = replace(
            window,
            frame_offsets_s=(0.0,),
            last_offset_by_embodiment=(),
            frame_jitter_s=0.0,
            feature_views=0,
            past_end="clamp",
            starts="rows",
            chunk_s=None,
            max_actions=None,
        )
        self._acts = window.chunk_s is not None and entry.source.action_names is not None
        pieces = replace(self._plain, frame_offsets_s=tuple(config.offsets_s(self.chunk_frames)))
        self._pieces = Mixture([entry], pieces, normalizer)
        self.steps = _steps(model, entry.rate_hz)
        lengths = {number: entry.source.episodes[number].length for number in entry.chosen_episodes()}
        self.frames = {
            number: (length - 1) // (self.steps * entry.stride)
            for number, length in lengths.items()
            if (length - 1) // (self.steps * entry.stride) >= self.chunk_frames
        }
        """Latent frames after the first, of the episodes that hold a chunk."""
        self.too_short = len(lengths) - len(self.frames)
        if not self.frames:
            longest = max(lengths.values(), default=0) / entry.source.fps
            raise WorldMetricsError(
                f"No chosen episode of {entry.source.root} holds a chunk of the model's: the longest lasts"
                f" {longest:.2f} s and a chunk {self.chunk_frames * self.frame_s:.2f} s; measure on longer episodes."
            )

    def __iter__(self) -> Iterator[int]:
        return iter(self.frames)

    def task(self, number: int) -> str:
        """An episode's instruction."""
        return self.entry.source.episodes[number].task

    def episode(self, number: int) -> RecordedEpisode:
        """One of them."""
        frames = self.frames[number]
        count = frames * self.steps
        spec = replace(self._plain, chunk_s=count / self.entry.rate_hz) if self._acts else self._plain
        first = Mixture([self.entry], spec, self.normalizer).windows_at(0, [number], [0])
        actions = None
        if self._acts and bool(first.action_valid[:, :count].any(dim=-1).all()):
            actions = first.actions[:, :count]
        return RecordedEpisode(number, self.task(number), frames, first.observation(), actions)

    def pieces(self, number: int) -> Iterator[tuple[Window, int]]:
        """Its pictures: windows of a chunk each, one after the other, and how many latent frames of each count."""
        frames = self.frames[number]
        for first in range(0, frames, self.chunk_frames):
            row = first * self.steps * self.entry.stride
            yield self._pieces.windows_at(0, [number], [row]), min(self.chunk_frames, frames - first)

    def recorded(self, window: Window) -> Bool[Tensor, "1 T"]:
        """Which pictures of a piece were recorded at their time by every camera."""
        return torch.stack([window.frame_valid[camera] for camera in self.cameras]).all(dim=0)


def _steps(model: Any, rate_hz: float) -> int:
    """Actions of one latent frame."""
    return int(model.steps_of(torch.tensor([rate_hz]))[0])
