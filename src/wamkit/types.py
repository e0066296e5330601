"""The nouns that every part of wamkit speaks: windows, observations, chunks, futures, losses.

Shape letters: B batch, T frames, C channels, H height, W width, K actions in a chunk, A action
dimensions, S state dimensions, N tokens, D width, V views. Time is in seconds everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

FutureSpace = Literal["features", "latents", "pixels"]


def _moved(value, device: torch.device | str):
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    return value


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a policy sees now, batched; images as the camera gave them, state normalised."""

    images: Mapping[str, UInt8[Tensor, "B 3 H W"]]
    task: tuple[str, ...]
    embodiment: Int[Tensor, "B"]
    state: Float[Tensor, "B S"] | None = None
    rate_hz: Float[Tensor, "B"]
    """Control rate of each sample's embodiment; with the model's horizon it fixes the chunk's time stamps."""

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.task)

    def to(self, device: torch.device | str) -> Observation:
        """A copy with its tensors on ``device``."""
        return replace(self, **{name: _moved(value, device) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Window:
    """A batch of slices of episodes in physical time, collated and padded; masks say what is real.

    Frame 0 is the present; the other frames lie at the offsets that the stage asked for. An
    action-free window has ``action_valid`` all False, an instruction-free one the task ``""``.
    """

    frames: Mapping[str, UInt8[Tensor, "B T 3 H W"]]
    frame_times: Float[Tensor, "B T"]
    frame_valid: Mapping[str, Bool[Tensor, "B T"]]
    """False where the camera does not exist in this data set or the offset lies past the episode's end
    (the frame is then zeros, or the episode's last frame)."""
    state: Float[Tensor, "B T S"]
    state_valid: Bool[Tensor, "B T S"]
    actions: Float[Tensor, "B K A"]
    """Normalised. Action i takes effect at ``action_times[:, i]`` = i / rate seconds."""
    action_valid: Bool[Tensor, "B K A"]
    action_times: Float[Tensor, "B K"]
    rate_hz: Float[Tensor, "B"]
    task: tuple[str, ...]
    embodiment: Int[Tensor, "B"]
    features: Mapping[str, Float[Tensor, "B V F N D"]] = field(default_factory=dict)
    """Features of a frozen encoder from the feature store, by camera: V views that differ in their augmentation, the
    frames as they are among them perhaps (V = 1: those, unless the stage asked for more). F = T, or the latent frames
    of a whole clip, which are under the first camera's name. Empty where the store is not in use."""

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.task)

    def to(self, device: torch.device | str) -> Window:
        """A copy with its tensors on ``device``."""
        return replace(self, **{name: _moved(value, device) for name, value in vars(self).items()})

    def observation(self) -> Observation:
        """The present of this window, as a policy would see it."""
        return Observation(
            images={camera: frames[:, 0] for camera, frames in self.frames.items()},
            task=self.task,
            embodiment=self.embodiment,
            state=self.state[:, 0],
            rate_hz=self.rate_hz,
        )


@dataclass(frozen=True, kw_only=True)
class Future:
    """What a world model imagines: a space, the times it speaks of, and a way to pixels where one exists."""

    space: FutureSpace
    values: Float[Tensor, "B T N D"] | Float[Tensor, "B T 3 H W"]
    times: Float[Tensor, "B T"]
    present: Float[Tensor, "B N D"] | Float[Tensor, "B 3 H W"]
    """The encoded present, in the same space: what copy-the-present would predict."""
    latent_action: Float[Tensor, "B Q Z"] | None = None
    decode: Callable[[Tensor], UInt8[Tensor, "B 3 H W"]] | None = None


@dataclass(frozen=True, kw_only=True)
class ActionChunk:
    """Actions over a fixed physical interval, in the units that its maker states (models: normalised)."""

    actions: Float[Tensor, "B K A"]
    times: Float[Tensor, "B K"]
    valid: Bool[Tensor, "B K"]
    imagined: Future | None = None
    """What the model expected to see while it acted, where it computed that anyway (and hands it out)."""


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One named loss before reduction: a value for each sample, and which samples it speaks of."""

    value: Float[Tensor, "B"]
    valid: Bool[Tensor, "B"]
    weight: float = 1.0

    def mean(self) -> Float[Tensor, ""]:
        """Mean over the valid samples; zero, with a graph, where there is none."""
        valid = self.valid.to(self.value.dtype)
        return torch.where(self.valid, self.value, 0.0).sum() / valid.sum().clamp(min=1.0)


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Named loss terms of one window batch. The trainer reduces; a model never does."""

    terms: Mapping[str, LossTerm]
    metrics: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Detached numbers worth logging that nothing is trained on."""

    def __iter__(self) -> Iterator[str]:
        """The terms' names."""
        return iter(self.terms)

    def total(self) -> Float[Tensor, ""]:
        """The weighted sum of the terms' means: what is minimised."""
        return torch.stack([term.weight * term.mean() for term in self.terms.values()]).sum()

    def scalars(self) -> dict[str, Tensor]:
        """Detached means by name, as 0-d tensors (no device synchronisation here)."""
        means = {name: term.mean().detach() for name, term in self.terms.items()}
        return means | {name: value.detach() for name, value in self.metrics.items()}
