"""A file is whole or it is not there: kills, truncation, other content, full disks, two builders at once."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from wamkit.data.mapped_file import CacheError, open_or_fill

SHAPE = (100, 3)
DESCRIBED = {"what": "numbers", "version": 1}


def fill(file):
    file.write(np.arange(300).astype(np.uint8).tobytes())


def never(file):
    raise AssertionError("filled a file that was there")


def opened(folder: Path, how=fill) -> np.ndarray:
    return open_or_fill(folder, DESCRIBED, SHAPE, np.dtype(np.uint8), how)


def test_filled_once_then_opened(tmp_path):
    first = opened(tmp_path / "store")
    assert np.array_equal(first, opened(tmp_path / "store", never))
    assert first.shape == SHAPE
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def damage_size(folder):
    with (folder / "data.bin").open("r+b") as file:
        file.truncate(299)


def damage_index(folder):
    (folder / "index.json").write_text('{"what": "numb')


def damage_description(folder):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"version": 0}))


def damage_missing(folder):
    (folder / "data.bin").unlink()


@pytest.mark.parametrize("damage", [damage_size, damage_index, damage_description, damage_missing])
def test_what_is_not_whole_is_filled_again(tmp_path, damage):
    opened(tmp_path / "store")
    damage(tmp_path / "store")
    assert np.array_equal(opened(tmp_path / "store")[:, 0], (np.arange(100) * 3).astype(np.uint8))
    opened(tmp_path / "store", never)


def slow_fill(file):
    file.write(bytes(150))
    file.flush()
    Path(os.environ["WAMKIT_TEST_MARK"]).touch()
    time.sleep(60)


def test_a_killed_builder_leaves_nothing_that_is_trusted(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    monkeypatch.setenv("WAMKIT_TEST_MARK", str(mark))
    process = multiprocessing.get_context("fork").Process(target=opened, args=(tmp_path / "store", slow_fill))
    process.start()
    while not mark.exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "store").exists()
    assert np.array_equal(opened(tmp_path / "store")[:, 0], (np.arange(100) * 3).astype(np.uint8))
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


def test_a_second_builder_waits_for_the_first(tmp_path):
    def slowly(file):
        time.sleep(0.5)
        fill(file)

    process = multiprocessing.get_context("fork").Process(target=opened, args=(tmp_path / "store", slowly))
    process.start()
    while not list(tmp_path.glob(".store.partial")):
        time.sleep(0.005)
    assert np.array_equal(opened(tmp_path / "store", never)[:, 0], (np.arange(100) * 3).astype(np.uint8))
    process.join()


def test_too_little_space_is_told_before_the_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(1000, 990, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CacheError, match=r"full.*Free some space"):
        opened(tmp_path / "store", never)


def test_a_disk_that_fills_meanwhile_is_told_and_leaves_nothing(tmp_path):
    def full(file):
        file.write(bytes(10))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CacheError, match=r"full.*choose another cache directory"):
        opened(tmp_path / "store", full)
    assert [path.name for path in tmp_path.iterdir()] == [".store.lock"]


def test_other_sizes_than_announced_are_refused(tmp_path):
    with pytest.raises(CacheError, match="299 bytes instead of 300"):
        opened(tmp_path / "store", lambda file: file.write(bytes(299)))
    assert not (tmp_path / "store").exists()
