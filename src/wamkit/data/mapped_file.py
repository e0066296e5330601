"""One large array in a file: written whole or not at all, opened mapped into memory.

It is written into a temporary folder, flushed, and renamed; what a killed run leaves is never opened.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from wamkit.errors import WamkitError

_DATA, _INDEX = "data.bin", "index.json"


class CacheError(WamkitError):
    """A store that cannot be built or asked: a full disk, an unknown camera, an encoder of the wrong shape."""


def described_key(described: Mapping[str, Any]) -> str:
    """SHA-256 of a description in JSON's terms."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def open_or_fill(
    folder: Path,
    described: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: np.dtype,
    fill: Callable[[IO[bytes]], None],
) -> np.ndarray:
    """The array in a folder, read-only and mapped; filled first unless it is there, whole, and of this description.

    Args:
        folder: Where; made by this function alone.
        described: All that the content depends on, stored beside it.
        shape: Of the array.
        dtype: Of the array.
        fill: Writes the array's bytes in order.

    Raises:
        CacheError: If the disk is full, or ``fill`` wrote another number of bytes.
    """
    index = {**described, "shape": list(shape), "dtype": dtype.name, "bytes": int(np.prod(shape)) * dtype.itemsize}
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not _is_whole(folder, index):
        with _locked(folder):
            if not _is_whole(folder, index):  # another process may have finished it meanwhile
                _write(folder, index, fill)
    if index["bytes"] == 0:
        return np.zeros(shape, dtype)
    return np.memmap(folder / _DATA, dtype=dtype, mode="r", shape=shape).view(np.ndarray)


def _is_whole(folder: Path, index: Mapping[str, Any]) -> bool:
    try:
        found = json.loads((folder / _INDEX).read_text())
        return found == json.loads(json.dumps(index)) and (folder / _DATA).stat().st_size == index["bytes"]
    except (OSError, ValueError):
        return False


def _write(folder: Path, index: Mapping[str, Any], fill: Callable[[IO[bytes]], None]) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.partial*"):  # of a killed run; the lock is ours
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free
    if free < index["bytes"]:
        raise CacheError(_full(folder.parent, index["bytes"], free))
    partial = folder.parent / f".{folder.name}.partial"
    try:
        partial.mkdir()
        # Written as a file and mapped afterwards: on a full disk a write fails, a mapped page kills the process.
        with (partial / _DATA).open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        written = (partial / _DATA).stat().st_size
        if written != index["bytes"]:
            raise CacheError(
                f"{folder.name} came out with {written} bytes instead of {index['bytes']}: the frames or features do "
                "not have the announced number and shape."
            )
        with (partial / _INDEX).open("w") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(_full(folder.parent, index["bytes"], shutil.disk_usage(folder.parent).free)) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time; the system releases the lock of a killed process."""
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _full(directory: Path, needed: int, free: int) -> str:
    return (
        f"The disk of {directory} is full: this store needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free. "
        "Free some space, choose another cache directory, or lower the resolution."
    )
