"""Recording: faithful frames, refused nonsense, and finished episodes that survive SIGKILL and a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path

import av
import numpy as np
import pytest

from wamkit.data.lerobot import LeRobotSource
from wamkit.data.lerobot_files import DatasetError
from wamkit.data.recorder import LeRobotRecorder
from wamkit.data.recovery import MARKER_PATH, recover
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.errors import WamkitError

# Imported here so that forked children need not.
pytest.importorskip("lerobot.datasets.lerobot_dataset")

SIZE = (32, 48)


def recorder(root: Path, **changes) -> LeRobotRecorder:
    settings = {
        "fps": 20,
        "cameras": {"front": SIZE},
        "state_names": ("x",),
        "action_names": ("dx", "dy"),
        "embodiment": "metaworld",
        **changes,
    }
    return LeRobotRecorder(root, **settings)


def frame(value: float = 0.0) -> dict:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    image = np.stack([4 * y + value, 4 * x, np.full(SIZE, 90)], axis=-1) % 250
    return {
        "images": {"front": image.astype(np.uint8)},
        "state": np.array([value]),
        "action": np.array([value, -value]),
        "task": "go",
    }


def record(writer: LeRobotRecorder, episodes: int, rows: int = 6) -> None:
    for _ in range(episodes):
        number = writer.episodes
        for row in range(rows + number % 3):
            writer.add_frame(**frame(10 * number + row))
        writer.save_episode(success=number % 2 == 0)


def content(root: Path) -> dict:
    source = LeRobotSource(root)
    videos = [source.decode("front", e.index, np.arange(e.length) / source.fps) for e in source.episodes]
    return {
        "episodes": source.episodes,
        "columns": {name: source.column(name).tolist() for name in source.features if "images" not in name},
        "frames": [video.tobytes() for video in videos],
        "stats": json.loads((root / "meta/stats.json").read_text())["action"],
        "totals": {k: v for k, v in source.info.items() if k.startswith("total") or k in ("splits", "fps")},
    }


def test_frames_are_faithful_and_every_second_is_a_key_frame(tmp_path):
    with recorder(tmp_path / "data") as writer:
        record(writer, 1, rows=8)
    source = LeRobotSource(tmp_path / "data")
    decoded = source.decode("front", 0, np.arange(8) / 20).astype(float)
    truth = np.stack([frame(row)["images"]["front"] for row in range(8)]).astype(float)
    error = np.sqrt(np.mean((decoded - truth) ** 2))
    assert error < 5.0
    with av.open(str(next(tmp_path.rglob("*.mp4")))) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keys == [True, False] * 4
    info = source.info
    assert (info["robot_type"], info["data_files_size_in_mb"], info["video_files_size_in_mb"]) == (
        "metaworld",
        100,
        200,
    )
    assert not (tmp_path / "data" / MARKER_PATH).exists()


def test_resumed_equals_uninterrupted(tmp_path):
    with recorder(tmp_path / "whole") as writer:
        record(writer, 4)
    with recorder(tmp_path / "parts") as writer:
        record(writer, 1)
    for episodes in (2, 1):
        with recorder(tmp_path / "parts", resume=True) as writer:
            record(writer, episodes)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def in_child(action) -> int:
    """Runs ``action(pipe)`` in a forked process; returns (process id, the pipe's reading end)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            action(writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


@pytest.mark.parametrize("moment", [0.0, 0.04, 0.07, 0.1, 0.13])
def test_finished_episodes_survive_a_kill(tmp_path, moment):
    root = tmp_path / "killed"

    def endless(pipe: int) -> None:
        writer = recorder(root)
        while True:
            record(writer, 1)
            os.write(pipe, bytes([writer.episodes]))

    child, pipe = in_child(endless)
    finished = 0
    while finished < 2:
        finished = os.read(pipe, 1)[0]
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while said := os.read(pipe, 1):
        finished = said[0]
    os.close(pipe)

    with recorder(root, resume=True) as writer:
        assert writer.episodes in (finished, finished + 1)  # killed after saving, before saying so
        finished = writer.episodes
        record(writer, 1)
    with recorder(tmp_path / "whole") as writer:
        record(writer, finished + 1)
    assert content(root) == content(tmp_path / "whole")
    assert not list(root.glob("tmp*"))
    LeRobotSource(root).verify_frames(episodes=None, frames=3)


def test_an_interrupted_recording_can_be_read_between_episodes(tmp_path):
    writer = recorder(tmp_path / "data")
    record(writer, 2)
    writer.add_frame(**frame())
    assert len(LeRobotSource(tmp_path / "data").episodes) == 2
    writer.finalize()
    assert len(LeRobotSource(tmp_path / "data").episodes) == 2


@pytest.mark.parametrize("name", ["meta/info.json", "meta/tasks.parquet", "meta/stats.json"])
def test_totals_cut_off_in_the_middle_are_rebuilt(tmp_path, name):
    root = tmp_path / "data"
    with recorder(root) as writer:
        record(writer, 2)
    whole = content(root)
    info = (root / "meta/info.json").read_text()
    (root / MARKER_PATH).write_text(info)  # as if the recorder still had it open
    (root / name).write_bytes((root / name).read_bytes()[:20])
    assert recover(root) == 2
    assert content(root) == whole


def test_a_half_written_episode_is_removed(tmp_path):
    root = tmp_path / "data"
    with recorder(root) as writer:
        record(writer, 3)
    (root / MARKER_PATH).write_text((root / "meta/info.json").read_text())
    broken = root / "data/chunk-000/file-002.parquet"
    broken.write_bytes(broken.read_bytes()[:-10])
    with recorder(root, resume=True) as writer:
        assert writer.episodes == 2
    source = LeRobotSource(root)
    assert len(source.column("action")) == 6 + 7
    assert sorted(path.name for path in root.rglob("*-002.*")) == []


def test_full_disk_stops_with_what_to_do(tmp_path):
    root = tmp_path / "data"

    def fill(pipe: int) -> None:
        writer = recorder(root, cameras={"front": (128, 128)})
        noise = np.random.default_rng(0).integers(0, 255, (40, 128, 128, 3), dtype=np.uint8)
        try:
            for rows in (3, 40):
                for image in noise[:rows]:
                    writer.add_frame({"front": image}, [0.0], [0.0, 0.0], "go")
                writer.save_episode()
                resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # the disk is full from now on
        except DatasetError as error:
            os.write(pipe, str(error).encode())

    child, pipe = in_child(fill)
    os.waitpid(child, 0)
    message = os.read(pipe, 10_000).decode()
    assert "Episode 1 could not be written" in message
    assert "free disk space and go on with resume=True; the finished episodes are intact" in message
    assert len(LeRobotSource(root).episodes) == 1
    LeRobotSource(root).verify_frames()
    with recorder(root, cameras={"front": (128, 128)}, resume=True) as writer:
        writer.add_frame({"front": np.zeros((128, 128, 3), np.uint8)}, [0.0], [0.0, 0.0], "go")
        assert writer.save_episode() == 1


def test_refused_rows_leave_the_recording_intact(tmp_path):
    root = tmp_path / "data"
    with recorder(root) as writer:
        record(writer, 1)
        good = frame()
        writer.add_frame(**good)
        bad = {
            r"frame 1 of episode 1: 'action' is not finite in dimensions \[1\]": {"action": np.array([0, np.nan])},
            r"'action' is float64\[3\] and the data set records float32\[2\]": {"action": np.zeros(3)},
            r"lacks 'observation.state'": {"state": None},
            r"'observation.images.front' is float64": {"images": {"front": np.zeros((*SIZE, 3))}},
            r"'observation.images.front' is uint8\[48, 32, 3\]": {"images": {"front": np.zeros((48, 32, 3), np.uint8)}},
            r"lacks 'observation.images.front'": {"images": {}},
            r"unknown 'observation.images.frnt'. Did you mean": {"images": {**good["images"], "frnt": 0}},
        }
        for message, change in bad.items():
            with pytest.raises(DatasetError, match=message):
                writer.add_frame(**{**good, **change})
        assert writer.frames == 1
        writer.discard_episode()
        with pytest.raises(DatasetError, match="Episode 1 has no frames"):
            writer.save_episode()
        record(writer, 1)
    assert [episode.length for episode in LeRobotSource(root).episodes] == [6, 7]


def test_an_exception_keeps_finished_episodes(tmp_path):
    def interrupted():
        with recorder(tmp_path / "data") as writer:
            record(writer, 2)
            writer.add_frame(**frame())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(LeRobotSource(tmp_path / "data").episodes) == 2


def test_forgotten_frames_are_told(tmp_path):
    def forgetful():
        with recorder(tmp_path / "data") as writer:
            record(writer, 1)
            writer.add_frame(**frame())

    with pytest.raises(DatasetError, match="Episode 1 was dropped with 1 frames"):
        forgetful()
    assert len(LeRobotSource(tmp_path / "data").episodes) == 1


def test_settings_that_cannot_work(tmp_path):
    with pytest.raises(WamkitError, match="Unknown embodiment 'metaword'"):
        recorder(tmp_path / "a", embodiment="metaword")
    with pytest.raises(DatasetError, match=r"whole number of rows a second, not 12.5"):
        recorder(tmp_path / "a", fps=12.5)
    with pytest.raises(DatasetError, match=r"H.264 needs even sizes"):
        recorder(tmp_path / "a", cameras={"front": (33, 32)})
    assert not (tmp_path / "a").exists()
    make_synthetic_dataset(tmp_path / "b", episodes=1, length=3)
    with pytest.raises(DatasetError, match="exists: choose another folder, or append to it with resume=True"):
        recorder(tmp_path / "b")
    with pytest.raises(
        DatasetError, match=r"cannot be continued, it differs in .*images.front.*fps \(10 there, 20 here\)"
    ):
        recorder(tmp_path / "b", resume=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="is not a LeRobotDataset"):
        recorder(tmp_path / "c", resume=True)


def test_extra_features_and_metadata(tmp_path):
    root = tmp_path / "data"
    with recorder(root, extra_features={"observation.force": ("fx", "fy")}, metadata={"source": "a test"}) as writer:
        writer.add_frame(**frame(), **{"observation.force": np.array([1.0, 2.0])})
        writer.set_metadata(note="later")
        writer.save_episode()
    source = LeRobotSource(root)
    assert source.column("observation.force").tolist() == [[1.0, 2.0]]
    assert (source.extra["source"], source.extra["note"]) == ("a test", "later")
