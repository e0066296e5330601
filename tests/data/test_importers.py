"""Real recordings into v3: what arrives is what was recorded, and each known trap of the sources is met."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from wamkit.data.importers import FORMATS, ImportFailure, detect, import_recording
from wamkit.data.importers.base import compressed, numbered
from wamkit.data.importers.rotations import continuous_angles, nearest_angles
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.data.video import iterate_frames

EPISODES = {
    "droid": ["train/6", "val/199"],
    "bridge": ["val/10"],
    "rt1": ["val/6", "val/8"],
    "unitree_g1": ["10"],
    "octo_bridge_rlds": ["train/0", "val/24"],
    "droid_action_free": None,
}


@pytest.fixture(scope="session")
def imported(test_data, tmp_path_factory):
    """Imports a recording's few episodes once: name -> (summary, source)."""
    folder, done = tmp_path_factory.mktemp("imported"), {}

    def get(name: str):
        if name not in done:
            summary = import_recording(test_data / name, folder / name, episodes=EPISODES[name])
            done[name] = summary, LeRobotSource(folder / name)
        return done[name]

    return get


def source_frames(path: Path) -> np.ndarray:
    return np.stack([frame.to_ndarray(format="rgb24") for _, frame in iterate_frames(path)])


def assert_same_pictures(ours: np.ndarray, theirs: np.ndarray, psnr: float = 33.0) -> None:
    assert ours.shape == theirs.shape
    error = np.mean((ours.astype(float) - theirs.astype(float)) ** 2, axis=(1, 2, 3))
    assert 10 * np.log10(255**2 / error.max()) > psnr


@pytest.mark.parametrize(
    ("name", "importer"),
    [
        ("droid", "droid"),
        ("bridge", "bridge"),
        ("rt1", "rt1"),
        ("unitree_g1", "lerobot_v21"),
        ("octo_bridge_rlds", "rlds"),
        ("droid_action_free", "video"),
    ],
)
def test_each_recording_is_recognised(test_data, name, importer):
    assert detect(test_data / name) == importer


@pytest.mark.parametrize("name", list(EPISODES))
def test_every_import_is_a_whole_dataset(imported, name):
    summary, source = imported(name)
    assert summary.episodes == len(source.episodes) == len(EPISODES[name] or [0])
    assert summary.frames == len(source.column("timestamp"))
    assert summary.skipped == ()
    assert str(summary).startswith(f"{summary.format}: {summary.episodes} episodes")
    source.verify_files()
    assert source.verify_frames(episodes=None) >= 5 * len(source.cameras) * len(source.episodes)
    assert source.extra["source"] == name
    assert {len(feature) for feature in source.stats.values()} == {10}


# DROID


def test_droid_rows_at_15_hz_and_new_frames_at_5_hz(imported, test_data):
    _, source = imported("droid")
    assert (source.fps, source.video_rate_hz, source.embodiment) == (15, 5, "droid")
    assert [episode.length for episode in source.episodes] == [117, 97]  # 97 = 32 x 3 + 1: a partial last group
    assert source.cameras == ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
    for view, camera in enumerate(source.cameras):
        recorded = source_frames(test_data / f"droid/videos/val/199/{view}.mp4")
        assert len(recorded) == 33
        assert_same_pictures(source.decode(camera, 1, np.arange(33) / source.video_rate_hz), recorded)
        rows = source.decode(camera, 1, np.arange(97) / source.fps)
        assert_same_pictures(rows, recorded[np.arange(97) // 3])


def test_droid_columns_are_the_jsons(imported, test_data):
    _, source = imported("droid")
    annotation = json.loads((test_data / "droid/annotation/val/199.json").read_text())
    rows = source.episodes[1].rows
    state, action = source.column("observation.state")[rows], source.column("action")[rows]
    assert source.state_names == source.action_names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    for ours, kind in ((state, "observation.state"), (action, "action")):
        pose = np.array(annotation[f"{kind}.cartesian_position"])
        np.testing.assert_allclose(ours[:, :3], pose[:, :3], atol=1e-6)
        np.testing.assert_allclose(np.exp(1j * ours[:, 3:6]), np.exp(1j * pose[:, 3:]), atol=1e-6)
        np.testing.assert_allclose(ours[:, 6], annotation[f"{kind}.gripper_position"], atol=1e-6)
    # The video frame's own states, at 5 Hz, lie at every third row.
    np.testing.assert_allclose(state[::3, :3], np.array(annotation["states"])[:, :3], atol=1e-6)
    for key in ("observation.state.joint_position", "action.joint_position", "action.joint_velocity"):
        np.testing.assert_allclose(source.column(key)[rows], annotation[key], atol=1e-6)


def test_droid_failures_and_empty_instructions_are_kept(imported):
    _, source = imported("droid")
    assert [episode.success for episode in source.episodes] == [False, False]
    assert [episode.task for episode in source.episodes] == ["", "Move the green towel to the right of the lid"]


def test_droid_roll_does_not_wrap(imported, test_data):
    annotation = json.loads((test_data / "droid/annotation/val/899.json").read_text())
    measured = np.array(annotation["observation.state.cartesian_position"])[:, 3:]
    commanded = np.array(annotation["action.cartesian_position"])[:, 3:]
    assert np.abs(np.diff(measured, axis=0)).max() > 6  # the trap: a jump by 2 pi
    angles = continuous_angles(measured)
    assert np.abs(np.diff(angles, axis=0)).max() < 0.1
    assert 0 <= angles[0, 0] < 2 * np.pi
    np.testing.assert_allclose(np.exp(1j * angles), np.exp(1j * measured), atol=1e-9)
    assert np.abs(nearest_angles(commanded, angles) - angles).max() < 0.5
    _, source = imported("droid")  # train/6 and val/199 wrap too
    for episode in source.episodes:
        for name in ("observation.state", "action"):
            assert np.abs(np.diff(source.column(name)[episode.rows, 3:6], axis=0)).max() < 1.0


# Bridge and RT-1


@pytest.mark.parametrize(("name", "rate"), [("bridge", 5), ("rt1", 3)])
def test_rate_is_the_robots_not_the_containers(imported, test_data, name, rate):
    _, source = imported(name)
    assert (source.fps, source.video_rate_hz, source.embodiment) == (rate, rate, name)
    for episode, path in zip(source.episodes, EPISODES[name], strict=True):
        recorded = source_frames(test_data / name / "videos" / path / "rgb.mp4")
        assert episode.length == len(recorded) - 1
        times = np.arange(episode.length) / rate
        assert_same_pictures(source.decode(source.cameras[0], episode.index, times), recorded[:-1])
        assert episode.task


@pytest.mark.parametrize("name", ["bridge", "rt1"])
def test_actions_follow_from_states_after_the_round_trip(imported, name):
    """a[:3] = R_t^T (p_{t+1} - p_t), a[3:6] = euler_xyz(R_t^T R_{t+1}), a[6] = gripper_{t+1}."""
    _, source = imported(name)
    for episode in source.episodes:
        state = source.column("observation.state")[episode.rows].astype(np.float64)
        action = source.column("action")[episode.rows].astype(np.float64)
        rotation = Rotation.from_euler("xyz", state[:, 3:6])
        moved = rotation[:-1].inv().apply(np.diff(state[:, :3], axis=0))
        turned = (rotation[:-1].inv() * rotation[1:]).as_euler("xyz")
        np.testing.assert_allclose(action[:-1, :3], moved, atol=1e-6)
        np.testing.assert_allclose(action[:-1, 3:6], turned, atol=2e-6)
        np.testing.assert_allclose(action[:-1, 6], state[1:, 6], atol=1e-6)
        assert (
            np.abs(np.diff(state[:, 3:6], axis=0)).max() < 1.0
        )  # roll, and the yaw of rt1's val/8, wrap in the source


def test_wrong_counts_are_told(test_data, tmp_path):
    source = tmp_path / "bridge"
    shutil.copytree(test_data / "bridge/annotation", source / "annotation")
    shutil.copytree(test_data / "bridge/videos", source / "videos")
    path = source / "annotation/val/10.json"
    annotation = json.loads(path.read_text())
    path.write_text(json.dumps({**annotation, "action": annotation["action"][:-1]}))
    with pytest.raises(ImportFailure, match=r"Episode val/10 .* 24 states and 22 actions"):
        import_recording(source, tmp_path / "out", episodes=["val/10"])
    path.write_text(
        json.dumps({key: values[:-2] if key in ("state", "action") else values for key, values in annotation.items()})
    )
    with pytest.raises(ImportFailure, match=r"Episode val/10 .* 24 frames for 22 states"):
        import_recording(source, tmp_path / "out2", episodes=["val/10"])
    source.rename(tmp_path / "recordings")
    with pytest.raises(ImportFailure, match=r"Bridge \(5 Hz\) or RT-1 \(3 Hz\).*say --format bridge or --format rt1"):
        import_recording(tmp_path / "recordings", tmp_path / "out3")


# LeRobot v2.1


def test_v21_names_all_missing_videos(test_data, tmp_path):
    with pytest.raises(ImportFailure, match=r"88 of 100 episodes .* lack files: 0, 3, 6, 9, 16-99 \(first videos/"):
        import_recording(test_data / "unitree_g1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_v21_skips_missing_ones_on_request(test_data, tmp_path):
    source = tmp_path / "unitree_g1"
    shutil.copytree(test_data / "unitree_g1", source, ignore=shutil.ignore_patterns("*.mp4"))
    keep = "videos/chunk-000/observation.images.cam_high/episode_000010.mp4"
    (source / keep).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(test_data / "unitree_g1" / keep, source / keep)
    info = json.loads((source / "meta/info.json").read_text())
    data = source / info["data_path"].format(episode_chunk=0, episode_index=11)
    shutil.copy(test_data / "unitree_g1" / keep.replace("000010", "000011"), source / keep.replace("000010", "000011"))
    data.write_bytes(data.read_bytes()[:500])
    summary = import_recording(source, tmp_path / "out", skip_broken=True, episodes=["9", "11", "10"])
    assert summary.episodes == 1
    reasons = dict(summary.skipped)
    assert reasons["9"].endswith("episode_000009.mp4 is missing")
    assert "truncated or damaged" in reasons["11"]
    assert "skipped 2 episodes: 9, 11" in str(summary)


def test_v21_av1_video_and_columns(imported, test_data):
    import pyarrow.parquet as pq

    summary, source = imported("unitree_g1")
    assert (source.fps, source.embodiment, source.cameras) == (30, "unitree_g1", ("cam_high",))
    assert "Unitree_G1_Inspire" in summary.notes[0]
    table = pq.read_table(test_data / "unitree_g1/data/chunk-000/episode_000010.parquet")
    for name in ("observation.state", "action"):
        np.testing.assert_array_equal(source.column(name), np.array(table.column(name).to_pylist(), np.float32))
    assert source.action_names is not None
    assert source.action_names[0] == "kLeftShoulderPitch"
    assert len(source.action_names) == 26
    assert source.episodes[0].task == "Pick up the yellow bottle on the table."
    recorded = source_frames(test_data / "unitree_g1/videos/chunk-000/observation.images.cam_high/episode_000010.mp4")
    chosen = np.array([0, 1, 150, 288, 289])
    assert len(recorded) == source.episodes[0].length == 290
    assert_same_pictures(source.decode("cam_high", 0, chosen / 30), recorded[chosen])
    assert (source.stats["action"]["std"] < 1e-2).any()  # joints with almost no variance: normalisation must meet them


# Bare video


def test_action_free_views_are_one_episode(imported, test_data):
    summary, source = imported("droid_action_free")
    assert source.cameras == ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")
    assert (source.fps, len(source.episodes), source.episodes[0].length) == (15, 1, 419)
    assert (source.action_names, source.state_names, source.episodes[0].task) == (None, None, "")
    assert source.embodiment == "human"
    assert "the 3 files are synchronised views of one episode" in summary.notes
    recorded = source_frames(test_data / "droid_action_free/wrist_image_left.mp4")
    chosen = np.arange(0, 419, 60)
    assert_same_pictures(source.decode("wrist_image_left", 0, chosen / 15), recorded[chosen])


def test_videos_as_episodes(tmp_path):
    made = make_synthetic_dataset(tmp_path / "made", episodes=3, length=8, fps=10, resolution=(32, 32))
    clips = tmp_path / "clips"
    clips.mkdir()
    for number, path in enumerate(sorted((made.root / "videos").rglob("*.mp4"))):
        shutil.copy(path, clips / f"{number + 8}.mp4")
    summary = import_recording(clips, tmp_path / "out", embodiment="droid", task="move")
    source = LeRobotSource(tmp_path / "out")
    assert source.extra["source_episodes"] == ["8", "9", "10"]
    assert summary.notes[0] == "each of the 3 files is an episode"
    assert [(episode.length, episode.task) for episode in source.episodes] == [(8, "move")] * 3
    assert (source.embodiment, source.cameras, source.fps) == ("droid", ("video",), 10)
    times = np.arange(8) / 10
    assert_same_pictures(source.decode("video", 2, times), made.decode("front", 2, times), psnr=30)

    # 20 rows a second from 10 frames a second: repeats, announced as such; a broken file is named or left out
    (clips / "9.mp4").write_bytes(b"broken")
    with pytest.raises(ImportFailure, match=r"Episode 9 .* cannot be decoded .*1 episodes are in .*--resume goes on"):
        import_recording(clips, tmp_path / "fast", fps=20)
    summary = import_recording(clips, tmp_path / "fast", fps=20, resume=True, skip_broken=True)
    fast = LeRobotSource(tmp_path / "fast")
    assert (fast.fps, fast.video_rate_hz) == (20, 10)
    assert fast.extra["source_episodes"] == ["8", "10"]
    assert [episode.length for episode in fast.episodes] == [15, 15]
    assert [name for name, _ in summary.skipped] == ["9"]

    single = import_recording(clips / "10.mp4", tmp_path / "single")
    assert (single.episodes, single.frames) == (1, 8)


def test_folders_of_views(tmp_path):
    made = make_synthetic_dataset(tmp_path / "made", episodes=2, length=4, cameras=("a", "b"), resolution=(32, 32))
    for episode in range(2):
        folder = tmp_path / f"clips/take_{episode}"
        folder.mkdir(parents=True)
        for camera in ("a", "b"):
            shutil.copy(
                made.root / f"videos/observation.images.{camera}/chunk-000/file-00{episode}.mp4",
                folder / f"{camera}.mp4",
            )
    summary = import_recording(tmp_path / "clips", tmp_path / "out")
    source = LeRobotSource(tmp_path / "out")
    assert (summary.episodes, source.cameras) == (2, ("a", "b"))
    (tmp_path / "clips/take_1/b.mp4").unlink()
    with pytest.raises(ImportFailure, match=r"Episode take_1 .* has the views \['a'\], the first episode \['a', 'b'\]"):
        import_recording(tmp_path / "clips", tmp_path / "out2")


# All


def test_limit_and_progress(test_data, tmp_path):
    told = []
    summary = import_recording(
        test_data / "octo_bridge_rlds", tmp_path / "out", limit=2, progress=lambda *values: told.append(values)
    )
    assert (summary.episodes, told) == (2, [(1, 2, "train/0"), (2, 2, "train/1")])


def test_what_is_not_understood_is_told(tmp_path, test_data):
    with pytest.raises(ImportFailure, match="There is no recording at"):
        detect(tmp_path / "nothing")
    with pytest.raises(ImportFailure, match="no recording that is understood") as error:
        detect(tmp_path)
    assert all(name in str(error.value) for name in FORMATS)
    with pytest.raises(ImportFailure, match=r"Unknown format 'driod'\. Did you mean 'droid'"):
        import_recording(test_data / "droid", tmp_path / "out", format="driod")
    with pytest.raises(ImportFailure, match=r"--fps has no meaning for droid: its rows come at 15 Hz"):
        import_recording(test_data / "droid", tmp_path / "out", fps=5)
    with pytest.raises(ImportFailure, match=r"no episode 'val/198'\. Did you mean 'val/199'"):
        import_recording(test_data / "droid", tmp_path / "out", episodes=["val/198"])
    made = make_synthetic_dataset(tmp_path / "made", episodes=1, length=2)
    with pytest.raises(ImportFailure, match=r"LeRobotDataset v3 already"):
        detect(made.root)


def test_names_in_a_persons_order():
    assert numbered(["val/10", "val/9", "train/2", "val/b"]) == ["train/2", "val/9", "val/10", "val/b"]
    assert compressed(["0", "3", "4", "5", "a"]) == "0, 3-5, a"
