"""Real recordings in one mixture: 3, 5 and 15 Hz, video slower than actions, with and without actions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wamkit.data.cache import FrameStore
from wamkit.data.importers import import_recording
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.mixture import Mixture, fit_normalizer
from wamkit.data.windows import MixtureEntry, WindowSpec

EPISODES = {"droid": ["train/6"], "bridge": ["val/10"], "rt1": ["val/6"], "droid_action_free": None}
SPEC = WindowSpec(
    frame_offsets_s=(0.0, 1.2),
    last_offset_by_embodiment=(("human", 0.4),),
    chunk_s=1.2,
    cameras=("image",),
    resolution=64,
)


@pytest.fixture(scope="module")
def mixed(test_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    entries = []
    for name, episodes in EPISODES.items():
        import_recording(test_data / name, folder / name, episodes=episodes)
        source = LeRobotSource(folder / name)
        camera = source.cameras[0]
        store = FrameStore.build(source, folder / "cache", (camera,), 64)
        entries.append(MixtureEntry(source=source, frame_store=store, camera_map={"image": camera}, weight=1.0))
    return Mixture(entries, SPEC, fit_normalizer(entries), seed=0)


def test_every_window_holds_what_its_recording_shows_at_those_times(mixed):
    labels, episodes, rows = mixed.locate(range(40))
    window = mixed.window(range(40))
    assert set(labels.tolist()) == {0, 1, 2, 3}
    for place, (label, episode, row) in enumerate(zip(labels, episodes, rows, strict=True)):
        entry = mixed.entries[label]
        times = row / entry.source.fps + window.frame_times[place].double().numpy()
        expected, actual = entry.frame_store.frames(entry.camera_map["image"], int(episode), times)
        assert np.allclose(actual, times, atol=1e-5)
        assert (window.frames["image"][place] == expected).all()


def test_a_chunk_of_one_horizon_has_each_robots_own_number_of_actions(mixed):
    window = mixed.window(range(200))
    counts = {}
    for rate, valid in zip(window.rate_hz.tolist(), window.action_valid.any(-1).sum(-1).tolist(), strict=True):
        counts[rate] = max(counts.get(rate, 0), valid)
    free = mixed.entries[3].source
    assert free.action_names is None
    assert {rate: count for rate, count in counts.items() if count} == {15.0: 18, 5.0: 6, 3.0: 4}
    assert mixed.max_actions == 18


def test_frames_are_one_horizon_apart_within_half_a_frame(mixed):
    window = mixed.window(range(200))
    labels, _, _ = mixed.locate(range(200))
    valid = window.frame_valid["image"][:, 1]
    assert 0.3 < valid.float().mean() < 1.0
    for label, entry in enumerate(mixed.entries):
        chosen = valid.numpy() & (labels == label)
        wanted = SPEC.offsets(entry.source.embodiment)[1]
        gap = (window.frame_times[torch.from_numpy(chosen)][:, 1] - wanted).abs().max()
        assert gap <= 0.5 / entry.source.video_rate_hz + 1e-4


def test_droids_frames_are_new_at_5_hz_and_never_zipped_by_index(mixed):
    droid = mixed.entries[0]
    assert (droid.source.fps, droid.source.video_rate_hz) == (15.0, 5.0)
    _, _, rows = mixed.locate(range(400))
    labels = mixed.locate(range(400))[0]
    assert set((rows[labels == 0] % 3).tolist()) == {0}
    store = droid.frame_store
    assert store.counts[0] == -(-droid.source.episodes[0].length // 3)
