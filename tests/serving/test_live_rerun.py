"""The same looks as a Rerun recording, where Rerun is installed; a sentence where it is not."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from wamkit.errors import WamkitError
from wamkit.inference.monitor import Imagined
from wamkit.serving.live import LiveImagination, View
from wamkit.serving.live_rerun import RerunLog

here = pytest.mark.skipif(importlib.util.find_spec("rerun") is None, reason="rerun-sdk is not installed")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(WamkitError, match=r"pip install 'wamkit\[rerun\]'"):
        RerunLog("a.rrd")


@here
def test_what_is_neither_file_nor_viewer_is_refused():
    with pytest.raises(WamkitError, match=r"neither a file .rrd nor an address"):
        RerunLog("somewhere")


@here
def test_pictures_maps_and_curve_are_in_the_file(tmp_path):
    path = tmp_path / "watched.rrd"
    live = LiveImagination(View(space="features", grid=(2, 3), horizons_s=(0.2,)), sinks=[RerunLog(str(path))])
    rng, episode = np.random.default_rng(0), live.episode()
    for step in range(4):
        imagined = Imagined(rng.normal(size=(6, 4)), rng.normal(size=(1, 6, 4)), np.array([0.2]))
        episode.look(0.2 * step, "go", np.full((8, 12, 3), step, np.uint8), imagined)
    live.sinks[0].close()  # type: ignore[attr-defined]
    written = path.read_bytes()
    for entity in ("seen", "surprise/imagined_against_seen", "surprise/copying_the_present", "not_as_imagined"):
        assert f"/episode_1/{entity}".encode() in written
    assert b"/episode_1/score" not in written  # nothing was calibrated
