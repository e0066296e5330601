"""Why a training run stops early. Each message says what happened, what is intact and how to go on."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from wamkit.errors import WamkitError


class TrainingError(WamkitError):
    """A run that cannot start or go on; the last checkpoint is untouched."""


class NonFiniteLossError(TrainingError):
    """A loss term or the gradient became NaN or infinite."""


class DiskFullError(TrainingError):
    """The disk has no room for what the run must write."""


class BrokenDataError(TrainingError):
    """A batch could not be read."""


class ResumeError(TrainingError):
    """A run cannot be continued from what lies in its output directory."""


_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error`` says that there is no room left, also where a native writer turned it into text."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    text = str(error)
    return type(error).__name__ == "SafetensorError" and any(f"os error {number}" in text for number in _FULL)


@contextlib.contextmanager
def disk_full_as_error(path: Path, what: str) -> Iterator[None]:
    """Turn "no space left" raised inside the block into a `DiskFullError` that names ``path`` and ``what``."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFullError(f"The disk that holds {path} is full: {what} could not be written.") from error
