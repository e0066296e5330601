"""``eval.json``: built from episodes, checked whenever it is written or read, never written by halves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wamkit.errors import WamkitError, suggest
from wamkit.evaluation.instruction_swap import instruction_swap
from wamkit.evaluation.statistics import StatisticsError, compare, holm, rates_by, success_rate
from wamkit.json_files import read_json, replace_text

EPISODE_FIELDS: dict[str, type | tuple[type, ...]] = {
    "arm": str,
    "task": str,
    "trial": int,
    "seed": int,
    "success": bool,
    "steps": int,
    "seconds": (int, float),
    "retries": int,
}
"""What every episode must say; more fields (``video``, for one) are kept as they are."""

MAIN_ARM = "policy"
REFERENCE_ARMS = ("expert",)
"""Arms that a policy is not tested against: they bound what is possible."""


class ResultsError(WamkitError):
    """An ``eval.json`` or ``imagine.json`` that does not hold together."""


def write_json(path: Path, value: Any) -> Path:
    """Write JSON for people to read, whole or not at all, and refuse what it cannot hold (NaN).

    Args:
        path: The file; its folder is made.
        value: The object.

    Raises:
        ResultsError: For a value that is not finite, named by where it stands.
    """
    path = Path(path)
    refuse_non_finite(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, _laid_out(value) + "\n")
    return path


def _laid_out(value: Any, depth: int = 0) -> str:
    """JSON for people and for diffs: what fits stays on one line, and so do paths and other lists of numbers."""
    flat = json.dumps(value, allow_nan=False)
    items = value if isinstance(value, (list, tuple)) else ()
    numbers = bool(items) and not any(isinstance(item, (Mapping, str)) for item in items)
    if len(flat) <= 110 or numbers or not isinstance(value, (Mapping, list, tuple)):
        return flat
    inside = (
        [f"{json.dumps(str(key))}: {_laid_out(item, depth + 1)}" for key, item in value.items()]
        if isinstance(value, Mapping)
        else [_laid_out(item, depth + 1) for item in value]
    )
    margin = "\n" + " " * (depth + 1)
    opening, closing = "{}" if isinstance(value, Mapping) else "[]"
    return f"{opening}{margin}{(',' + margin).join(inside)}{margin[:-1]}{closing}"


def refuse_non_finite(value: Any, where: str = "") -> None:
    """Raise for NaN or infinity anywhere in a JSON-like value, saying where: such a number is a defect upstream."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultsError(f"The result at {where or 'the top'} is {value}: find out why before writing it down.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_non_finite(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            refuse_non_finite(item, f"{where}[{index}]")


def _checked_episode(episode: Mapping[str, Any], index: int) -> dict[str, Any]:
    for name, kind in EPISODE_FIELDS.items():
        if name not in episode:
            raise ResultsError(f"Episode {index} lacks {name!r}: every episode says {', '.join(EPISODE_FIELDS)}.")
        value = episode[name]
        # bool is an int in Python; a success of 1 or a trial of True is a slip all the same.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ResultsError(f"Episode {index} has {name} = {value!r}: give it as a Python {_name(kind)}.")
    return dict(episode)


def _name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__


def summarise_arm(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One arm's rates: overall, by task, and by seed where there are several (the spread between trainings)."""
    arm: dict[str, Any] = {
        "overall": success_rate(e["success"] for e in episodes).to_json(),
        "tasks": {task: rate.to_json() for task, rate in rates_by(episodes, "task").items()},
    }
    seeds = rates_by(episodes, "seed")
    if len(seeds) > 1:
        arm["seeds"] = {str(seed): rate.to_json() for seed, rate in seeds.items()}
    return arm


def default_pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """The policy against every other arm but the references; the first arm where none is called policy."""
    if not arms:
        return []
    main = MAIN_ARM if MAIN_ARM in arms else arms[0]
    return [(main, arm) for arm in arms if arm != main and arm not in REFERENCE_ARMS]


def build_eval(
    episodes: Iterable[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    *,
    comparisons: Sequence[tuple[str, str]] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """The ``eval.json`` object of some episodes.

    Args:
        episodes: One mapping each, with the fields of `EPISODE_FIELDS`. Arms keep the order in which they come.
        provenance: From `wamkit.evaluation.provenance.collect`.
        comparisons: Pairs of arms (arm, baseline) for McNemar's test over all tasks and for each; by default the
            policy against every other arm that shares trials with it. Holm's correction runs over the tests on
            all tasks.
        extra: More top-level entries, such as ``latency``.

    Returns:
        ``{"arms", "comparisons", "episodes", "provenance", **extra}``, ``instruction_swap`` where an arm was told
        another task's instruction (see `wamkit.evaluation.instruction_swap`), and ``notes`` where a simulator says what
        must stand beside its numbers.

    Raises:
        ResultsError: For no episodes, a broken one, or an unknown arm in ``comparisons``.
    """
    checked = [_checked_episode(episode, index) for index, episode in enumerate(episodes)]
    if not checked:
        raise ResultsError("There are no episodes to report: raise --eval.n_episodes above 0.")
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for episode in checked:
        by_arm.setdefault(episode["arm"], []).append(episode)

    asked = comparisons is not None
    pairs = list(comparisons) if comparisons is not None else default_pairs(list(by_arm))
    overall, per_task = [], []
    for arm, baseline in pairs:
        for name in (arm, baseline):
            if name not in by_arm:
                raise ResultsError(f"There is no arm {name!r} to compare.{suggest(name, by_arm)}")
        try:
            overall.append(compare(checked, arm, baseline).to_json())
        except StatisticsError:
            if asked:
                raise
            continue  # an arm on other trials is shown, but cannot be paired
        tasks = {e["task"] for e in by_arm[arm]} & {e["task"] for e in by_arm[baseline]}
        per_task += (
            [compare(checked, arm, baseline, task).to_json() for task in sorted(tasks)] if len(tasks) > 1 else []
        )
    for entry, corrected in zip(overall, holm([entry["p_value"] for entry in overall]), strict=True):
        entry["p_holm"] = corrected

    result = {
        "arms": {name: summarise_arm(items) for name, items in by_arm.items()},
        "comparisons": overall + per_task,
        "episodes": checked,
        "provenance": dict(provenance),
        **extra,
    }
    swap = instruction_swap(checked)
    if swap is not None:
        result.setdefault("instruction_swap", swap)
    notes = sorted({note for episode in checked for note in episode.get("notes", ())})
    if notes:
        result.setdefault("notes", notes)
    return validate_eval(result)


def validate_eval(value: Any) -> dict[str, Any]:
    """Check that an ``eval.json`` object holds together: the counts of every arm and task are its episodes'.

    Raises:
        ResultsError: In one sentence, with what does not fit.
    """
    if not isinstance(value, dict):
        raise ResultsError(f"eval.json holds a {type(value).__name__}, not an object: write it with `wam eval`.")
    for name, kind in {"arms": dict, "comparisons": list, "episodes": list, "provenance": dict}.items():
        if not isinstance(value.get(name), kind):
            raise ResultsError(f"eval.json lacks {name!r} (a {kind.__name__}): write it with `wam eval`.")
    refuse_non_finite(value)
    episodes = [_checked_episode(episode, index) for index, episode in enumerate(value["episodes"])]
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for episode in episodes:
        by_arm.setdefault(episode["arm"], []).append(episode)
    if by_arm.keys() != value["arms"].keys():
        raise ResultsError(
            f"eval.json has arms {sorted(value['arms'])} but episodes of {sorted(by_arm)}: write it with `wam eval`."
        )
    for name, items in by_arm.items():
        expected, stored = summarise_arm(items), value["arms"][name]
        if stored.get("tasks", {}).keys() != expected["tasks"].keys():
            raise ResultsError(f"The tasks of arm {name!r} in eval.json are not those of its episodes.")
        cells = [("overall", expected["overall"], stored.get("overall", {}))]
        cells += [(task, cell, stored["tasks"][task]) for task, cell in expected["tasks"].items()]
        for place, right, given in cells:
            if any(given.get(key) != right[key] for key in ("successes", "n")):
                raise ResultsError(f"Arm {name!r} says {given} for {place}, but its episodes say {right}.")
            numbers = [given.get("rate"), *(given.get("ci95") or [])]
            if len(numbers) != 3 or any(
                not isinstance(a, (int, float)) or abs(a - b) > 1e-9
                for a, b in zip(numbers, [right["rate"], *right["ci95"]], strict=True)
            ):
                raise ResultsError(f"Rate or interval of arm {name!r} for {place} does not follow from its counts.")
    return value


def write_eval(path: Path, value: Mapping[str, Any]) -> Path:
    """Check an ``eval.json`` object and write it atomically."""
    return write_json(path, validate_eval(dict(value)))


def load_eval(path: Path) -> dict[str, Any]:
    """Read and check an ``eval.json``."""
    return validate_eval(load_json(path))


def load_json(path: Path) -> dict[str, Any]:
    """Read a result, with errors that say what to do."""
    path = Path(path)
    if not path.exists():
        raise ResultsError(f"There is no {path}: run `wam eval` or `wam imagine` with this --output_dir first.")
    return read_json(path, ResultsError, "delete it and run again.")
