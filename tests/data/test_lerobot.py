"""Reading LeRobotDataset v3: the same rows and frames as LeRobot's own reader, and one sentence for each damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from wamkit.data.lerobot import DatasetError, LeRobotSource
from wamkit.data.lerobot_files import EXTRA_PATH
from wamkit.data.synthetic import make_synthetic_dataset

FPS = 10


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> Path:
    """Four episodes of 12 rows, two cameras; even episodes have no instruction."""
    root = tmp_path_factory.mktemp("lerobot") / "synthetic"
    make_synthetic_dataset(root, episodes=4, length=12, fps=FPS, cameras=("front", "wrist"), task=["", "push"])
    return root


@pytest.fixture
def damaged(recorded, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(recorded, tmp_path / "copy"))


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    """Recorded with LeRobot's own defaults: all episodes in one data and one video file."""
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("reference") / "ours"
    features = {
        "observation.images.front": {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": {"motors": ["pan", "tilt"]}},
        "action": {"dtype": "float32", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create(
        "local/reference",
        FPS,
        features,
        root=root,
        robot_type="so100",
        streaming_encoding=True,
        rgb_encoder=RGBEncoderConfig(vcodec="h264", crf=12),
        video_backend="pyav",
    )
    for episode in range(3):
        for row in range(6 + episode):
            brightness = 20 + 60 * episode + 5 * row
            dataset.add_frame(
                {
                    "observation.images.front": np.full((48, 64, 3), brightness, np.uint8),
                    "observation.state": np.array([episode, row], np.float32),
                    "action": np.array([row], np.float32),
                    "task": f"task {episode % 2}",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


def test_episodes_and_names(recorded):
    source = LeRobotSource(recorded)
    assert [episode.task for episode in source.episodes] == ["", "push", "", "push"]
    assert [episode.success for episode in source.episodes] == [True, False, True, False]
    assert [episode.from_row for episode in source.episodes] == [0, 12, 24, 36]
    assert source.cameras == ("front", "wrist")
    assert source.fps == source.video_rate_hz == FPS
    assert source.state_names == ("state_0", "state_1", "state_2", "state_3")
    assert source.action_names == ("action_0", "action_1")
    assert source.embodiment == "custom"
    assert source.resolution("front") == (64, 64)
    source.verify_files()
    assert source.verify_frames(episodes=None, frames=12) == 4 * 12 * 2


def test_rows_and_frames_equal_lerobots_reader(recorded):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    source = LeRobotSource(recorded)
    reader = LeRobotDataset("local/x", root=recorded, video_backend="pyav", return_uint8=True)
    assert len(reader) == len(source.column("action")) == 48
    frames = {
        camera: [source.decode(camera, episode.index, np.arange(12) / FPS) for episode in source.episodes]
        for camera in source.cameras
    }
    for row in range(0, 48, 5):
        item = reader[row]
        for name in ("observation.state", "action", "timestamp", "task_index"):
            np.testing.assert_array_equal(source.column(name)[row], item[name].numpy())
        assert item["task"] == source.episodes[row // 12].task
        for camera in source.cameras:
            ours = frames[camera][row // 12][row % 12]
            theirs = item[f"observation.images.{camera}"].numpy().transpose(1, 2, 0)
            np.testing.assert_array_equal(ours, theirs)


def test_reads_what_lerobot_records(reference):
    source = LeRobotSource(reference)
    assert len(list((reference / "videos").rglob("*.mp4"))) == 1
    assert source.embodiment == "so100"
    assert source.state_names == ("pan", "tilt")
    assert source.action_names == ("action_0",)
    assert [episode.task for episode in source.episodes] == ["task 0", "task 1", "task 0"]
    assert [episode.success for episode in source.episodes] == [None] * 3
    assert source.column("action").shape == (21, 1)
    assert source.column("timestamp").shape == (21,)
    for episode in source.episodes:
        times = np.arange(episode.length) / FPS
        brightness = source.decode("front", episode.index, times).mean(axis=(1, 2, 3))
        expected = 20 + 60 * episode.index + 5 * np.arange(episode.length)
        np.testing.assert_allclose(brightness, expected, atol=2.0)
    with pytest.raises(DatasetError, match=r"Episode 0 .* lasts 0.500 s; there is no frame at 0.600 s"):
        source.decode("front", 0, [0.6])  # would be episode 1's first frame


def test_decode_takes_times_in_any_order_and_the_nearest_frame(recorded):
    source = LeRobotSource(recorded)
    frames = source.decode("front", 1, np.arange(12) / FPS)
    asked = np.array([0.7, 0.0, 0.72, 0.3, 0.7])
    np.testing.assert_array_equal(source.decode("front", 1, asked), frames[[7, 0, 7, 3, 7]])
    assert source.decode("front", 1, []).shape == (0, 64, 64, 3)
    for outside in (-0.2, 1.3):
        with pytest.raises(DatasetError, match=r"Episode 1 .* no frame at"):
            source.decode("front", 1, [outside])


def test_long_gaps_are_reached_by_seeking(tmp_path):
    source = make_synthetic_dataset(tmp_path / "long", episodes=1, length=120, resolution=(32, 32))
    frames = source.decode("front", 0, np.arange(120) / FPS)
    np.testing.assert_array_equal(source.decode("front", 0, [0.0, 5.5, 11.9]), frames[[0, 55, 119]])


def test_names_get_suggestions(recorded):
    source = LeRobotSource(recorded)
    with pytest.raises(DatasetError, match=r"no camera 'frnt'. Did you mean 'front'"):
        source.decode("frnt", 0, [0.0])
    with pytest.raises(DatasetError, match=r"no column 'actions'. Did you mean 'action'"):
        source.column("actions")
    with pytest.raises(DatasetError, match="episodes 0 to 3, not 4"):
        source.decode("front", 4, [0.0])


def test_statistics_are_those_of_all_rows(recorded):
    source = LeRobotSource(recorded)
    action = source.column("action").astype(np.float64)
    stats = source.stats["action"]
    np.testing.assert_allclose(stats["mean"], action.mean(0))
    np.testing.assert_allclose(stats["std"], action.std(0))
    for name, q in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
        np.testing.assert_allclose(stats[name], np.quantile(action, q, axis=0))
    assert stats["count"].tolist() == [48]
    assert source.stats["observation.images.front"]["mean"].shape == (3, 1, 1)


def test_columns_are_read_only_and_kept(recorded):
    source = LeRobotSource(recorded)
    state = source.column("observation.state")
    assert state is source.column("observation.state")
    with pytest.raises(ValueError, match="read-only"):
        state[0] = 0


def test_fingerprint_follows_content_not_place(recorded, damaged):
    original = LeRobotSource(recorded).fingerprint()
    assert LeRobotSource(damaged).fingerprint() == original
    with next((damaged / "videos").rglob("*.mp4")).open("r+b") as file:
        file.seek(60)
        file.write(b"\xff")
    assert LeRobotSource(damaged).fingerprint() != original


def test_action_free_state_free_instruction_free(tmp_path):
    source = make_synthetic_dataset(
        tmp_path / "bare", episodes=2, length=5, action_dim=0, state_dim=0, task="", embodiment="human"
    )
    assert source.action_names is None
    assert source.state_names is None
    assert [episode.task for episode in source.episodes] == ["", ""]
    assert source.decode("front", 1, [0.4]).shape == (1, 64, 64, 3)
    with pytest.raises(DatasetError, match="no column 'action'"):
        source.column("action")


def test_repeated_frames_are_announced(tmp_path):
    source = make_synthetic_dataset(tmp_path / "slow", episodes=1, length=9, fps=15, video_rate_hz=5)
    assert (source.fps, source.video_rate_hz) == (15, 5)
    frames = source.decode("front", 0, np.arange(9) / 15).astype(int)
    changes = np.abs(np.diff(frames, axis=0)).reshape(8, -1).max(axis=1)
    assert (changes[[2, 5]] > 60).all()  # the disc moved
    assert (changes[[0, 1, 3, 4, 6, 7]] < 30).all()  # the encoder's noise


# Damage: one sentence that names the file or episode


def video_of(root: Path, episode: int) -> Path:
    return root / f"videos/observation.images.front/chunk-000/file-{episode:03d}.mp4"


def test_missing_video(damaged):
    video_of(damaged, 2).unlink()
    source = LeRobotSource(damaged)
    assert source.decode("front", 1, [0.0]).shape[0] == 1
    with pytest.raises(DatasetError, match=r"Episode 2, camera 'front': The video .*file-002.mp4 is missing: restore"):
        source.decode("front", 2, [0.0])
    with pytest.raises(DatasetError, match=r"lacks videos/observation.images.front/chunk-000/file-002.mp4: restore"):
        source.verify_files()


@pytest.mark.parametrize("content", [b"", b"not a video at all", None])
def test_corrupt_video(damaged, content):
    path = video_of(damaged, 1)
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    with pytest.raises(DatasetError, match=r"Episode 1, camera 'front': The video .*file-001.mp4 cannot be decoded"):
        LeRobotSource(damaged).verify_frames(["front"])


def test_video_of_another_episode_or_rate(damaged, tmp_path):
    other = make_synthetic_dataset(tmp_path / "short", episodes=1, length=5, fps=FPS)
    shutil.copy(video_of(other.root, 0), video_of(damaged, 3))
    with pytest.raises(DatasetError, match=r"Episode 3, camera 'front': .* has no frame at .* the episode"):
        LeRobotSource(damaged).verify_frames()
    fast = make_synthetic_dataset(tmp_path / "fast", episodes=1, length=12, fps=25)
    shutil.copy(video_of(fast.root, 0), video_of(damaged, 3))
    with pytest.raises(DatasetError, match=r"Episode 3"):
        LeRobotSource(damaged).verify_frames()


def test_truncated_parquet(damaged):
    path = damaged / "data/chunk-000/file-001.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match=r"file-001.parquet cannot be read .* truncated or damaged; restore it"):
        LeRobotSource(damaged).column("action")
    path.unlink()
    with pytest.raises(DatasetError, match=r"file-001.parquet is missing: restore"):
        LeRobotSource(damaged).column("action")


def rewrite(path: Path, column: str, change) -> None:
    table = pq.read_table(path)
    values = change(np.asarray(table.column(column).to_pylist()))
    index = table.column_names.index(column)
    field = table.schema.field(index)
    import pyarrow as pa

    pq.write_table(table.set_column(index, field, pa.array(values.tolist(), type=field.type)), path)


def test_nan_in_actions(damaged):
    def poison(values):
        values[7, 1] = np.nan
        return values

    rewrite(damaged / "data/chunk-000/file-002.parquet", "action", poison)
    with pytest.raises(DatasetError, match=r"'action' of episode 2 .* not finite \(row 7, dimensions \[1\]; 1 rows"):
        LeRobotSource(damaged).column("action")


def test_wrong_dimensions(damaged):
    path = damaged / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["action"]["shape"] = [3]
    path.write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=r"'action' does not have the dimensions \(3,\)"):
        LeRobotSource(damaged).column("action")


def test_damaged_metadata(damaged):
    extra = (damaged / EXTRA_PATH).read_text()
    (damaged / EXTRA_PATH).write_text("{")
    with pytest.raises(DatasetError, match=r"wamkit.json cannot be read"):
        LeRobotSource(damaged)
    (damaged / EXTRA_PATH).write_text(extra)
    (damaged / "meta/stats.json").unlink()
    assert LeRobotSource(damaged).stats == {}
    (damaged / "meta/episodes/chunk-000/file-003.parquet").unlink()
    with pytest.raises(DatasetError, match=r"announces 4 episodes .* holds 3 .* resume"):
        LeRobotSource(damaged)


def test_not_a_dataset(tmp_path):
    with pytest.raises(DatasetError, match="There is no data set at"):
        LeRobotSource(tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"is not a LeRobotDataset .*wam import"):
        LeRobotSource(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text('{"codebase_version": "v2.1"}')
    with pytest.raises(DatasetError, match=r"LeRobotDataset v2.1; v3.0 is read: convert it with `wam import"):
        LeRobotSource(tmp_path)
