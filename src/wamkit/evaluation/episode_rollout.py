"""Imagined roll-outs of whole episodes: from the first look on, a model sees nothing but what it imagined itself.

Forward dynamics: the model is told what the robot did, chunk by chunk, and goes on from its own frames to the episode's
end. Beside the roll-out under the recorded actions stand one under another episode's, which says whether it listens to
actions at all; one under none; copying the first picture; and the recorded pictures through the tokenizer, the best
that any of them could be. What a model cannot be given is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wamkit.evaluation.episode_video import write_video
from wamkit.evaluation.held_out import model_device
from wamkit.evaluation.imagined_video import psnr, ssim
from wamkit.evaluation.results import refuse_non_finite
from wamkit.evaluation.rollout_film import side_by_side
from wamkit.evaluation.whole_episodes import RecordedEpisode, WholeEpisodes
from wamkit.evaluation.world_metrics import WorldMetricsError, ratio_interval

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel
    from wamkit.types import Future

FILMS = "rollouts"
"""Folder of the films, beside ``imagine.json``."""
Progress = Callable[..., None]
"""``progress(done, total, note="")``."""


@dataclass
class _Measured:
    """One episode's numbers by arm, a value for each picture that was recorded at its time."""

    times: list[float] = field(default_factory=list)
    squared_error: dict[str, list[float]] = field(default_factory=dict)
    psnr: dict[str, list[float]] = field(default_factory=dict)
    ssim: dict[str, list[float]] = field(default_factory=dict)
    apart: list[float] = field(default_factory=list)
    """Mean squared difference of what is imagined under the true and under the swapped actions."""

    def add(self, arm: str, made: Tensor, real: Tensor, there: Tensor) -> None:
        """Pictures [T, 3, h, w] of an arm beside the real ones; those that are there, [T]."""
        values = {
            "squared_error": (made - real).square().mean(dim=(1, 2, 3)),
            "psnr": psnr(made, real),
            "ssim": ssim(made[None], real[None])[0],
        }
        for name, value in values.items():
            getattr(self, name).setdefault(arm, []).extend(value[there].tolist())


@torch.no_grad()
def episode_rollouts(
    model: WorldActionModel,
    recorded: WholeEpisodes,
    *,
    count: int = 3,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Roll a few episodes out from their first picture to their last.

    Args:
        model: Has ``roll_out``, ``pictures_of`` and ``reconstruction_of``.
        recorded: The episodes to choose from.
        count: How many, spread over the instructions.
        seed: Of the choice of episodes and of whose actions are swapped in; and of the resampling.
        folder: Where the folder of films is made; None: no films.
        progress: Told how many pictures are done.

    Returns:
        By horizon ``horizon_s`` and the number of ``episodes_at`` it: ``psnr``, ``ssim`` and ``squared_error`` of
        ``true``, ``swapped``, ``none``, ``copy_first`` and ``reconstruction``, those that there are. Over whole
        episodes, each counted alike, ``over_copy`` (of ``main``, ``true`` where there is one) and
        ``swapped_over_true``, ``none_over_true``; and ``swap_effect``, how far apart the two imagined videos are, over
        how far the recorded one goes from its first picture; each with ``_ci95`` over episodes or the reason why not.
        And ``episodes``, each with its film; ``too_short``; ``not_measured``.

    Raises:
        WorldMetricsError: A number is asked for that is none.
        WamkitError: The model and the episodes do not fit.
    """
    if count < 1:
        raise WorldMetricsError(f"{count} roll-outs were asked for: none was made.")
    model.eval()
    chosen, missing = _spread(recorded, count, seed), dict[str, str]()
    total, done = sum(recorded.frames[number] for number in chosen), 0
    found: list[tuple[dict[str, Any], _Measured]] = []
    for number in chosen:
        episode = recorded.episode(number)
        arms, told_by = _arms(model, recorded, episode, seed, missing)

        def shown(frames: int, number: int = number) -> None:
            nonlocal done
            done += frames
            if progress is not None:
                progress(done, total, f"imagining episode {number}")

        film = None if folder is None else Path(FILMS) / f"episode_{number:06d}.mp4"
        measured = _Measured()
        pictures = _rolled(model, recorded, episode, arms, told_by, measured, shown)
        if film is None or folder is None:
            for _ in pictures:
                pass
        else:
            write_video(folder / film, pictures, _rate(model))
        entry: dict[str, Any] = {
            "episode": number,
            "task": episode.task,
            "seconds": episode.frames * recorded.frame_s,
            "swapped_with": told_by,
            "film": None if film is None else film.as_posix(),
            "squared_error": {arm: float(np.mean(values)) for arm, values in measured.squared_error.items() if values},
        }
        found.append((entry, measured))
    result = _summed(found, missing, seed)
    result |= {"episodes": [entry for entry, _ in found], "too_short": recorded.too_short, "not_measured": missing}
    refuse_non_finite(result)
    return result


def _spread(recorded: WholeEpisodes, count: int, seed: int) -> list[int]:
    """Episodes drawn without replacement, each instruction's turn after the other's."""
    by_task: dict[str, list[int]] = {}
    for number in np.random.default_rng(seed).permutation(list(recorded)).tolist():
        by_task.setdefault(recorded.task(number), []).append(number)
    queues = [by_task[task] for task in sorted(by_task)]
    rounds = [queue[i] for i in range(max(map(len, queues))) for queue in queues if i < len(queue)]
    return rounds[:count]


def _arms(
    model: WorldActionModel, recorded: WholeEpisodes, episode: RecordedEpisode, seed: int, missing: dict[str, str]
) -> tuple[dict[str, Iterator[Future]], int | None]:
    """The roll-outs to make of an episode, by name, and whose actions the swapped one is told."""
    device = model_device(model)
    look = episode.observation.to(device)

    def under(actions: Tensor | None) -> Iterator[Future]:
        told = None if actions is None else actions.to(device)
        return model.roll_out(look, told, frames=episode.frames if told is None else None)

    none = {"none": under(None)}
    if not _can_be_told(model.config):
        missing["true"] = f"This {model.name} does not predict frames under their own chunk's actions: it is told none."
        return none, None
    if episode.actions is None:
        missing["true"] = f"Episode {episode.number} has no actions that the model could be told."
        return none, None
    other = _partner(recorded, episode, seed)
    if other is None or other.actions is None:
        missing["swapped"] = "There is no second episode whose actions could be swapped in: hold out more."
        return {"true": under(episode.actions), **none}, None
    length = episode.actions.shape[1]
    return {"true": under(episode.actions), "swapped": under(other.actions[:, :length]), **none}, other.number


def _can_be_told(config: Any) -> bool:
    """Whether frames were trained to follow under their chunk's actions."""
    return config.order == "beside_video" and config.forward_share > 0


def _partner(recorded: WholeEpisodes, episode: RecordedEpisode, seed: int) -> RecordedEpisode | None:
    """Another episode, drawn among those that last as long; where there is none, the longest, in whole chunks."""
    others = {number: frames for number, frames in recorded.frames.items() if number != episode.number}
    if not others:
        return None
    lasting = [number for number, frames in others.items() if frames >= episode.frames]
    if lasting:
        return recorded.episode(int(np.random.default_rng([seed, episode.number]).choice(lasting)))
    number = max(others, key=lambda one: others[one])
    found = recorded.episode(number)
    whole = found.frames // recorded.chunk_frames * recorded.chunk_frames * recorded.steps
    return RecordedEpisode(
        found.number,
        found.task,
        whole // recorded.steps,
        found.observation,
        None if found.actions is None else found.actions[:, :whole],
    )


def _rate(model: Any) -> float:
    """Pictures a second of what the model shows."""
    shown = model.distinct(torch.tensor([model.config.offsets_s(1)]))[0]
    return 1.0 / float(shown[-1] - shown[-2])


def _rolled(
    model: Any,
    recorded: WholeEpisodes,
    episode: RecordedEpisode,
    arms: Mapping[str, Iterator[Future]],
    told_by: int | None,
    measured: _Measured,
    shown: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """The film's pictures, one after the other; on the way, all numbers are taken."""
    device = model_device(model)
    captions = {"true": "imagined", "swapped": f"under episode {told_by}'s actions", "none": "imagined, no actions"}
    filmed = [arm for arm in ("true", "swapped") if arm in arms] or ["none"]
    for window, frames in recorded.pieces(episode.number):
        moved = window.to(device)
        futures = {arm: next(pieces, None) for arm, pieces in arms.items()}
        # The first picture of a piece is the one before it, or the first look.
        here = next(future for future in futures.values() if future is not None)
        after = slice(1, here.values.shape[1] + 1)
        there = model.distinct(recorded.recorded(window))[0, after]
        real = model.pictures_of(moved.frames, here.values.shape[-2:])[0, after].cpu()
        videos = {arm: future.values[0].cpu() for arm, future in futures.items() if future is not None}
        videos["copy_first"] = here.present[0].cpu().expand_as(real)
        videos["reconstruction"] = model.reconstruction_of(moved)[0, after].cpu()
        for arm, video in videos.items():
            measured.add(arm, video, real, there)
        if "true" in videos and "swapped" in videos:
            gap = (videos["true"] - videos["swapped"]).square().mean(dim=(1, 2, 3))
            measured.apart += gap[there].tolist()
        measured.times += here.times[0].cpu()[there].tolist()
        for at, time in enumerate(here.times[0].tolist()):
            columns: dict[str, np.ndarray | None] = {f"recorded, {time:.1f} s": real[at].numpy()}
            # One that has ended leaves its column empty.
            columns |= {captions[arm]: videos[arm][at].numpy() if arm in videos else None for arm in filmed}
            yield side_by_side(columns)
        shown(frames)


def _summed(found: list[tuple[dict[str, Any], _Measured]], missing: dict[str, str], seed: int) -> dict[str, Any]:
    """Means over the episodes that reach a horizon, and ratios over whole episodes."""
    grid = sorted({round(time, 6) for _, measured in found for time in measured.times})
    if not grid:
        raise WorldMetricsError("No picture of these episodes was recorded at a time that the model imagines.")
    arms = list(dict.fromkeys(arm for _, measured in found for arm in measured.squared_error))
    place = {time: index for index, time in enumerate(grid)}
    result: dict[str, Any] = {"horizon_s": grid, "episodes_at": [0] * len(grid)}
    for _, measured in found:
        for time in measured.times:
            result["episodes_at"][place[round(time, 6)]] += 1
    for name in ("psnr", "ssim", "squared_error"):
        result[name] = {}
        for arm in arms:
            sums, counts = np.zeros(len(grid)), np.zeros(len(grid), np.int64)
            for _, measured in found:
                values = getattr(measured, name).get(arm, [])
                at = [place[round(time, 6)] for time in measured.times[: len(values)]]
                sums[at] += values
                counts[at] += 1
            # An arm that ends before the others has no value there.
            result[name][arm] = [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]
    result["main"] = main = "true" if "true" in arms else "none"
    by_episode = [measured.squared_error | {"apart": measured.apart} for _, measured in found]
    for name, above, below in (
        ("over_copy", main, "copy_first"),
        ("swapped_over_true", "swapped", "true"),
        ("none_over_true", "none", "true"),
        ("swap_effect", "apart", "copy_first"),
    ):
        pairs = [
            (np.mean(one[:common]), np.mean(other[:common]), number)
            for number, values in enumerate(by_episode)
            if (one := values.get(above)) and (other := values.get(below))
            for common in (min(len(one), len(other)),)
        ]
        if not pairs:
            continue
        tops, bottoms, numbers = (np.array(part) for part in zip(*pairs, strict=True))
        result[name] = float(tops.sum() / bottoms.sum()) if bottoms.sum() > 0 else None
        try:
            result[name], interval = ratio_interval(tops, bottoms, numbers, seed=seed)
            result[f"{name}_ci95"] = list(interval)
        except WorldMetricsError as reason:
            result[f"{name}_ci95"] = None
            missing[f"{name}_ci95"] = str(reason)
    return result
