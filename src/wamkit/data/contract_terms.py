"""The terms of a contract between a policy and what it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from wamkit.data.frames import ResizeRule
from wamkit.data.orientation import Thumbnail


@dataclass(frozen=True, kw_only=True)
class VectorContract:
    """The dimensions of a state or an action, and how they were distributed."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    """Quantile 0.01 of each dimension."""
    high: tuple[float, ...]
    """Quantile 0.99 of each dimension."""
    bounds: tuple[tuple[float, float], ...] | None = None
    """(least, greatest) of each dimension, where the recording declares them."""


@dataclass(frozen=True, kw_only=True)
class CameraContract:
    """One camera of a body."""

    name: str
    """As the policy knows it."""
    recorded_as: str
    size: tuple[int, int]
    """(height, width) of the recorded pictures."""
    thumbnail: Thumbnail | None = None
    """What it showed on average; tells a flipped or exchanged one."""


@dataclass(frozen=True, kw_only=True)
class BodyContract:
    """One embodiment at one control rate."""

    embodiment: str
    statistics: str
    """Key of its statistics in the normaliser."""
    rate_hz: float
    cameras: tuple[CameraContract, ...]
    state: VectorContract | None = None
    action: VectorContract | None = None
    from_simulator: bool = False
    """Whether this library recorded it in an environment, whose conventions it then has."""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """Saved with a checkpoint, compared by `wamkit.data.contract.check`."""

    cameras: tuple[tuple[str, tuple[int, int]], ...]
    """Pairs (camera, (height, width) as first recorded), in the policy's order."""
    resolution: tuple[int, int]
    """(height, width) that the model sees."""
    resize: ResizeRule
    horizon_s: float | None
    """tau, the physical length of a chunk; None: trained without actions."""
    bodies: tuple[BodyContract, ...]
    statistics_hash: str | None = None
    """`wamkit.data.normalize.Normalizer.statistics_hash` of the statistics beside it."""


@dataclass(frozen=True)
class Violation:
    """One point that does not fit, and how to mend it, in one line."""

    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}"


class EnvironmentDescription(Protocol):
    """What `wamkit.envs.base.EnvSpec` says of an environment."""

    @property
    def cameras(self) -> Mapping[str, tuple[int, int]]:
        """Name -> (height, width)."""
        ...

    @property
    def state_names(self) -> tuple[str, ...]:
        """Dimensions of the state."""
        ...

    @property
    def action_names(self) -> tuple[str, ...]:
        """Dimensions of the action."""
        ...

    @property
    def action_low(self) -> tuple[float, ...]:
        """Least action."""
        ...

    @property
    def action_high(self) -> tuple[float, ...]:
        """Greatest action."""
        ...

    @property
    def rate_hz(self) -> float:
        """Control rate."""
        ...

    @property
    def embodiment(self) -> str:
        """Name of the body."""
        ...


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A data set or an environment, reduced to what is compared."""

    kind: str
    cameras: Mapping[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    rate_hz: float
    embodiment: str
    bounds: tuple[tuple[float, float], ...] | None
    statistics: Mapping[str, Mapping[str, np.ndarray]] | None
