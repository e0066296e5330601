"""Real recordings in one mixture: 3, 5, 15 and 30 Hz, video slower than actions, with and without actions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from wamkit.data.cache import FrameStore
from wamkit.data.importers import import_recording
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.mixture import Mixture, fit_normalizer
from wamkit.data.windows import MixtureEntry, WindowError, WindowSpec

EPISODES = {
    "droid": ["train/6"],
    "bridge": ["val/10"],
    "rt1": ["val/6"],
    "droid_action_free": None,
    "unitree_g1": None,
    "octo_bridge_rlds": ["train/0", "val/24"],
}
NAMES = list(EPISODES)
SPEC = WindowSpec(
    frame_offsets_s=(0.0, 1.2),
    last_offset_by_embodiment=(("human", 0.4),),
    chunk_s=1.2,
    cameras=("image",),
    resolution=64,
)


def beginning_of_g1(source: Path, folder: Path, *, episode: int = 10, rows: int = 60) -> Path:
    """The first two seconds of one episode: its AV1 video takes long to decode."""
    number = {"episode_chunk": 0, "episode_index": episode}
    info = json.loads((source / "meta/info.json").read_text())
    entries = map(json.loads, (source / "meta/episodes.jsonl").read_text().splitlines())
    entry = next(line for line in entries if line["episode_index"] == episode)
    data = info["data_path"].format(**number)
    video = info["video_path"].format(video_key="observation.images.cam_high", **number)
    for path in ("meta", Path(data).parent, Path(video).parent):
        (folder / path).mkdir(parents=True)
    shutil.copy(source / "meta/info.json", folder / "meta")
    (folder / "meta/episodes.jsonl").write_text(json.dumps(entry | {"length": rows}) + "\n")
    pq.write_table(pq.read_table(source / data).slice(0, rows), folder / data)
    shutil.copy(source / video, folder / video)
    return folder


@pytest.fixture(scope="module")
def mixed(test_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    entries = []
    for name, episodes in EPISODES.items():
        recorded = test_data / name
        if name == "unitree_g1":
            recorded = beginning_of_g1(recorded, folder / "beginning" / name)
        import_recording(recorded, folder / name, episodes=episodes)
        source = LeRobotSource(folder / name)
        camera = source.cameras[0]
        store = FrameStore.build(source, folder / "cache", (camera,), 64)
        entries.append(MixtureEntry(source=source, frame_store=store, camera_map={"image": camera}, weight=1.0))
    return Mixture(entries, SPEC, fit_normalizer(entries), seed=0)


def test_every_window_holds_what_its_recording_shows_at_those_times(mixed):
    labels, episodes, rows = mixed.locate(range(60))
    window = mixed.window(range(60))
    assert set(labels.tolist()) == set(range(len(NAMES)))
    for place, (label, episode, row) in enumerate(zip(labels, episodes, rows, strict=True)):
        entry = mixed.entries[label]
        times = row / entry.source.fps + window.frame_times[place].double().numpy()
        expected, actual = entry.frame_store.frames(entry.camera_map["image"], int(episode), times)
        assert np.allclose(actual, times, atol=1e-5)
        assert (window.frames["image"][place] == expected).all()


def test_a_chunk_of_one_horizon_has_each_robots_own_number_of_actions(mixed):
    labels = mixed.locate(range(300))[0]
    valid = mixed.window(range(300)).action_valid.any(-1).sum(-1).numpy()
    longest = {name: int(valid[labels == label].max()) for label, name in enumerate(NAMES)}
    assert mixed.entries[NAMES.index("droid_action_free")].source.action_names is None
    assert longest == {
        "droid": 18,
        "bridge": 6,
        "rt1": 4,
        "droid_action_free": 0,
        "unitree_g1": 36,
        "octo_bridge_rlds": 6,
    }
    assert mixed.max_actions == 36


def test_dimensions_that_a_robot_lacks_are_masked(mixed):
    labels = mixed.locate(range(100))[0]
    window = mixed.window(range(100))
    assert (window.action_valid.shape[-1], window.state_valid.shape[-1]) == (26, 26)
    for label, name in enumerate(NAMES):
        here = torch.from_numpy(labels == label)
        expected = {"droid_action_free": 0, "unitree_g1": 26}.get(name, 7)
        assert window.action_valid[here].any(dim=(0, 1)).sum() == expected
        assert window.state_valid[here].any(dim=(0, 1)).sum() == expected


def test_an_rlds_crop_ends_within_a_chunk_of_16_steps(mixed):
    entry = mixed.entries[NAMES.index("octo_bridge_rlds")]
    spec = replace(SPEC, chunk_s=16 / entry.rate_hz)
    rows = [row for _ in entry.source.episodes for row in range(10)]
    episodes = [episode.index for episode in entry.source.episodes for _ in range(10)]
    window = Mixture([entry], spec, mixed.normalizer).windows_at(0, episodes, rows)
    counts = torch.tensor([10 - row for row in rows])  # the crop's remaining steps
    real = torch.arange(16) < counts[:, None]
    assert (window.action_valid == real[..., None]).all()
    assert (window.actions[~window.action_valid] == 0).all()
    actions = mixed.normalizer.normalize("action", entry.source.column("action"), "bridge")
    np.testing.assert_allclose(window.actions[0, :10], actions[:10], atol=1e-6)
    with pytest.raises(WindowError, match=r"octo_bridge_rlds has no window.*too short"):
        Mixture([entry], replace(spec, past_end="drop"))


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
