"""Which episodes a stage may imitate: a failed one shows truly how things move, and wrongly what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from wamkit.data.windows import MixtureEntry
from wamkit.training.errors import TrainingError

FailedEpisodes = Literal["not_imitated", "left_out", "kept"]
"""See `wamkit.training.config.DatasetConfig.failed_episodes`."""


def successful(entries: Sequence[MixtureEntry]) -> tuple[list[MixtureEntry], tuple[str, ...]]:
    """Recordings without the episodes that they call failed.

    LaWAM D.1 removes failed demonstrations before a policy is trained.

    Args:
        entries: Training episodes by recording. One that does not say how its episodes ended is taken as it is.

    Returns:
        The entries in the same order, and a line for each recording that lost episodes.

    Raises:
        TrainingError: A recording would lose all of them.
    """
    kept, lines = [], []
    for entry in entries:
        chosen = entry.chosen_episodes()
        rest = _successful_episodes(entry)
        failed = f"{len(chosen) - len(rest)} of {len(chosen)} training episodes of {entry.source.root} failed"
        if not rest:
            raise TrainingError(
                f"{failed}, by its own account, and nothing is left to imitate: leave that recording out of"
                " dataset.roots, or train on failures too with --dataset.failed_episodes kept."
            )
        if len(rest) < len(chosen):
            lines.append(f"{failed} and are left out (dataset.failed_episodes).")
            entry = replace(entry, episodes=rest)
        kept.append(entry)
    return kept, tuple(lines)


def successful_of_held_out(entries: Sequence[MixtureEntry]) -> list[MixtureEntry]:
    """The same for held-out episodes: a recording of which none is left is not validated on."""
    reduced = [replace(entry, episodes=_successful_episodes(entry)) for entry in entries]
    return [entry for entry in reduced if entry.episodes]


def _successful_episodes(entry: MixtureEntry) -> tuple[int, ...]:
    episodes = entry.source.episodes
    return tuple(number for number in entry.chosen_episodes() if episodes[number].success is not False)
