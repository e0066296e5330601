"""What a run says about itself: a JSONL log, the console, TensorBoard or wandb. No device is waited for in a step."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from wamkit.json_files import replace_text
from wamkit.training.checkpoint import read_lines
from wamkit.training.distributed import summed
from wamkit.training.errors import TrainingError, disk_full_as_error

if TYPE_CHECKING:
    from wamkit.training.config import TrainConfig

LOG_FILE = "train_log.jsonl"


class RunningMeans:
    """Sums of the steps' numbers, kept on the device until they are read; remembers the first that was not finite."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}
        self._first_bad: dict[tuple[str, ...], Tensor] = {}

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Take in one step's 0-d tensors."""
        names = tuple(values)
        stacked = torch.stack(list(values.values())).float()
        if names not in self._sums:
            self._sums[names] = torch.zeros_like(stacked)
            self._counts[names] = 0
            self._first_bad[names] = torch.full_like(stacked, torch.inf)
        self._sums[names] += stacked
        self._counts[names] += 1
        first = self._first_bad[names]
        self._first_bad[names] = torch.where(torch.isfinite(stacked) | (first < torch.inf), first, float(step))

    def read(self) -> dict[str, float]:
        """Mean of each name since the last reading, over all ranks (a collective); starts anew."""
        means = {}
        for names, sums in self._sums.items():
            means |= dict(zip(names, (summed(sums) / self._counts[names]).tolist(), strict=True))
        self._sums, self._counts = {}, {}
        return means

    def first_not_finite(self, watched: Sequence[str]) -> tuple[int, list[str]] | None:
        """The earliest step at which a ``watched`` name was NaN or infinite, and all names that were then."""
        found = [
            (int(step), name)
            for names, first in self._first_bad.items()
            for name, step in zip(names, first.tolist(), strict=True)
            if step != float("inf")
        ]
        steps = [step for step, name in found if name in watched]
        return (min(steps), [name for step, name in found if step == min(steps)]) if steps else None


class Tracker(Protocol):
    """Where scalars are sent beside the JSONL log."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step."""

    def close(self) -> None:
        """Flush."""


class TensorBoardTracker:
    """Event files in ``<output_dir>/tensorboard``."""

    def __init__(self, output_dir: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError("TensorBoard is not installed; install it or use logger 'none'.") from error
        self._writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WandbTracker:
    """A wandb run that is continued when the training is."""

    def __init__(self, output_dir: Path, name: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise TrainingError("wandb is not installed; `pip install wandb`, or use logger 'tensorboard'.") from error
        identity = output_dir / "wandb_run_id.txt"
        run_id = identity.read_text().strip() if identity.exists() else secrets.token_hex(4)
        identity.write_text(run_id)
        self._run = wandb.init(
            project="wamkit", name=name, id=run_id, resume="allow", dir=str(output_dir), config=dict(config)
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Flush."""
        self._run.finish()


def make_tracker(config: TrainConfig, output_dir: Path, step: int) -> Tracker | None:
    """The tracker that ``config.logger`` names.

    Raises:
        TrainingError: it is not installed.
    """
    if config.logger == "tensorboard":
        return TensorBoardTracker(output_dir, step)
    if config.logger == "wandb":
        return WandbTracker(output_dir, config.name, config.to_dict())
    return None


class TrainingLog:
    """The main process's log: ``train_log.jsonl`` and, where asked for, a tracker.

    Args:
        output_dir: Where the log lies.
        step: The global step that the run continues from; later lines of a killed run are dropped.
        tracker: Where scalars go as well.
    """

    def __init__(self, output_dir: Path, step: int, tracker: Tracker | None) -> None:
        self.path = output_dir / LOG_FILE
        self._tracker = tracker
        with disk_full_as_error(self.path, "the training log"):
            output_dir.mkdir(parents=True, exist_ok=True)
            kept = [line for line in read_lines(self.path) if _step_of(line) <= step]
            if kept or self.path.exists():
                replace_text(self.path, "".join(line + "\n" for line in kept))
            self._file = self.path.open("a")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record (``step`` and whatever else) as a line."""
        with disk_full_as_error(self.path, "the training log"):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        if self._tracker is not None:
            stage = record.get("stage", "")
            numbers = {f"{stage}/{key}": float(v) for key, v in record.items() if isinstance(v, float)}
            self._tracker.scalars(record["step"], numbers)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short


class Meter:
    """Samples per second and the share of time spent waiting for data, between two readings."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self._samples = 0

    def waited(self, seconds: float, samples: int) -> None:
        """A batch of ``samples`` (over all ranks) arrived after ``seconds``."""
        self._waited += seconds
        self._samples += samples

    def read(self) -> dict[str, float]:
        """The rates since the last reading; starts anew."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        rates = {"samples_per_s": self._samples / elapsed, "data_wait_ratio": self._waited / elapsed}
        self.__init__()
        return rates

    def skip(self) -> None:
        """Start anew, leaving out what lies behind (a checkpoint, a validation)."""
        self.__init__()


def resident_megabytes() -> float:
    """This process's resident memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
