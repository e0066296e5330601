"""From a stage's config to what it trains on: stores, mixture, loader, held-out windows, contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from wamkit.types import Window

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel
    from wamkit.training.config import StageConfig, TrainConfig


class Loader(Protocol):
    """What the loop asks of a loader of windows: to go on for ever, and to know where it stands."""

    def __iter__(self) -> Iterator[Window]:
        """This rank's slices of the global batches, from the counter on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, counting what was handed out, not what was read ahead."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


@dataclass(frozen=True, kw_only=True)
class StageData:
    """What a stage trains on and is validated on."""

    loader: Loader
    validation: Callable[[], Iterable[Window]] | None = None
    """The held-out windows, the same at each call; None without held-out episodes."""
    normalizer: Any = None
    """Has ``save(directory)``."""
    contract: Any = None
    fingerprint: str = ""
    """Changes when the recordings do."""
    describe: Callable[[int, int], str] | None = None
    """``describe(first_draw, count)``: which episodes those draws come from, for an error message."""

    def close(self) -> None:
        """Stop the loader's background work."""
        close = getattr(self.loader, "close", None)
        if close is not None:
            close()


def build_model(config: TrainConfig) -> WorldActionModel:
    """The model that a config names, with its initial weights."""
    from wamkit.models import registry

    return registry.build(config.model, config.preset if config.model_config is None else config.model_config)


def holdout_split(episodes: int, held_out: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which episodes of a recording are trained on, and which are held out, evenly spread over it.

    Evenly spread, because recordings of several tasks are usually stored task after task.

    Raises:
        TrainingError: nothing would be left to train on.
    """
    from wamkit.training.errors import TrainingError

    if held_out >= episodes:
        raise TrainingError(
            f"holdout_episodes is {held_out}, but a recording has {episodes} episodes; lower dataset.holdout_episodes."
        )
    chosen = {int((index + 0.5) * episodes / held_out) for index in range(held_out)}
    return tuple(e for e in range(episodes) if e not in chosen), tuple(sorted(chosen))


def build_stage_data(
    config: TrainConfig,
    stage: StageConfig,
    model: WorldActionModel,
    *,
    rank: int,
    world_size: int,
    progress: Callable[..., None] | None = None,
) -> StageData:
    raise NotImplementedError
