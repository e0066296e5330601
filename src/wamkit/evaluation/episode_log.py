"""Finished episodes of an evaluation on disk, and under which settings they were run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wamkit.evaluation.arms import EvaluationError
from wamkit.json_files import read_json_lines, write_json_lines

_MEND = (
    "an episode whose line is deleted is run again; without the first line, which holds the settings, choose another "
    "output folder."
)


_BY_ARM = {"arms": "arm {}", "forward_size": "{}'s forward_size"}
"""What is said of each arm by itself, and how an error calls it: two halves of an evaluation may be of other arms."""


class EpisodeLog:
    """Finished episodes on disk, one JSON object a line; the first line says under which settings.

    Args:
        output_dir: For ``episodes.jsonl``.
        fingerprint: What must be the same for two halves of an evaluation to make one.
        resume: Keep the episodes that are there. Without it, the file must not exist.

    Raises:
        EvaluationError: The file exists and is not to be resumed, or was begun under other settings.
    """

    def __init__(self, output_dir: Path, fingerprint: dict[str, Any], resume: bool) -> None:
        self.output_dir, self.path = output_dir, output_dir / "episodes.jsonl"
        self.done: dict[tuple[str, str, int], dict[str, Any]] = {}
        output_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not resume:
            raise EvaluationError(f"{self.path} exists: resume that evaluation, or choose another output folder.")
        lines = read_json_lines(self.path, EvaluationError, _MEND, may_be_cut=True) if self.path.exists() else []
        if lines:
            before, *episodes = lines
            before = {**before, "forward_size": _sizes(before)}
            self._refuse_other(before, fingerprint)
            fingerprint = {**fingerprint, **{key: {**before[key], **fingerprint[key]} for key in _BY_ARM}}
            self.done = {(episode["arm"], episode["task"], episode["trial"]): episode for episode in episodes}
        write_json_lines(self.path, [fingerprint, *self.done.values()])

    def _refuse_other(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        pairs = [(key, before.get(key), value) for key, value in now.items() if key not in _BY_ARM]
        for key, words in _BY_ARM.items():
            shared = sorted(before[key].keys() & now[key].keys())
            pairs += [(words.format(arm), before[key][arm], now[key][arm]) for arm in shared]
        for name, old, new in pairs:
            if old != new:
                raise EvaluationError(
                    f"{self.path} was begun with {name}={old!r}, not {new!r}: "
                    "resume with the same settings, or choose another output folder."
                )

    def append(self, episode: dict[str, Any]) -> None:
        """Keep a finished episode."""
        self.done[episode["arm"], episode["task"], episode["trial"]] = episode
        with self.path.open("a") as file:
            file.write(json.dumps(episode) + "\n")


def _sizes(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Of a fingerprint, ``forward_size`` of each arm; it was one number for all of them once."""
    size = fingerprint.get("forward_size")
    return size if isinstance(size, dict) else dict.fromkeys(fingerprint["arms"], size)
