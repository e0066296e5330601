from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("metaworld")

from wamkit.data.lerobot import EXTRA_PATH, LeRobotSource
from wamkit.envs.base import EnvError, trial_seed
from wamkit.envs.demonstration import ActionNoise, DemonstrationSettings, demonstrate, picture_stride
from wamkit.envs.recording import TRIALS_PATH, record_episodes
from wamkit.envs.registry import instruction, make_env
from wamkit.envs.rendering import choose_backend

pytestmark = [
    pytest.mark.sim,
    pytest.mark.skipif(choose_backend() == "disable", reason="no EGL and no OSMesa on this machine"),
]
TASKS = ("reach-v3", "drawer-close-v3")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two tasks, two episodes each, with noise, simulated in two processes, pictures at 20 Hz."""
    root = tmp_path_factory.mktemp("recording") / "data"
    calls = []
    summary = record_episodes(
        "metaworld",
        TASKS,
        root,
        episodes=2,
        resolution=32,
        action_noise=0.3,
        hold_steps=4,
        video_rate_hz=20,
        workers=2,
        progress=lambda done, total, note="": calls.append((done, total, note)),
    )
    return root, summary, calls


def test_rows_are_the_demonstrations_in_order(recorded):
    root, summary, calls = recorded
    source = LeRobotSource(root)
    assert source.fps == 80
    assert source.video_rate_hz == 20
    assert source.embodiment == "metaworld"
    assert source.cameras == ("corner2_near",)
    assert [episode.task for episode in source.episodes] == [
        instruction("metaworld", t) for t in TASKS for _ in range(2)
    ]
    assert calls == [(1, 4, TASKS[0]), (2, 4, TASKS[0]), (3, 4, TASKS[1]), (4, 4, TASKS[1])]
    assert summary.episodes == 4
    assert summary.frames == sum(episode.length for episode in source.episodes)
    assert "4 episodes" in str(summary)

    settings = DemonstrationSettings(action_noise=0.3, hold_steps=4, video_rate_hz=20)
    for episode, (task, trial) in zip((0, 3), ((TASKS[0], 0), (TASKS[1], 1)), strict=True):
        env = make_env("metaworld", task, resolution=32)
        again = demonstrate(env, trial, settings)
        env.close()
        rows = slice(source.episodes[episode].from_row, source.episodes[episode].from_row + again.length)
        assert source.episodes[episode].length == again.length
        np.testing.assert_array_equal(source.column("action")[rows], again.actions)
        np.testing.assert_array_equal(source.column("action_executed")[rows], again.executed)
        np.testing.assert_array_equal(source.column("observation.state")[rows], again.states)
        times = np.arange(again.length) / 80
        frames = source.decode("corner2_near", episode, times)
        wanted = again.images["corner2_near"][np.arange(again.length) // 4]
        assert np.abs(frames.astype(int) - wanted).mean() < 12  # lossy video of few pixels
        # Nearer to its own picture than to the next ones.
        shifted = np.abs(frames[:-8].astype(int) - wanted[8:]).mean()
        assert np.abs(frames[:-8].astype(int) - wanted[:-8]).mean() < shifted


def test_the_clean_action_is_the_label_and_the_noisy_one_was_executed(recorded):
    source = LeRobotSource(recorded[0])
    clean, executed = source.column("action"), source.column("action_executed")
    difference = executed - clean
    assert np.abs(clean).max() <= 1
    assert np.abs(executed).max() <= 1
    assert 0.05 < difference[:, :3].std() < 0.4
    np.testing.assert_array_equal(difference[:, 3], 0)  # the gripper is not disturbed


def test_an_interrupted_recording_goes_on_to_the_same_data(recorded, tmp_path):
    whole, _, _ = recorded
    root = tmp_path / "data"
    arguments = {"resolution": 32, "action_noise": 0.3, "hold_steps": 4, "video_rate_hz": 20, "workers": 0}

    def stop(done, total, note=""):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_episodes("metaworld", TASKS, root, episodes=2, progress=stop, **arguments)
    assert len(LeRobotSource(root).episodes) == 1
    with pytest.raises(EnvError, match=r"action_noise=0\.3"):
        record_episodes("metaworld", TASKS, root, episodes=2, resume=True, **(arguments | {"action_noise": 0.1}))
    # As if killed after the episode was written and while it was logged: half a line, which must not stay.
    (root / TRIALS_PATH).write_text('{"task": "reach')
    record_episodes("metaworld", TASKS, root, episodes=2, resume=True, **arguments)
    for name in ("action", "observation.state", "episode_index"):
        np.testing.assert_array_equal(LeRobotSource(root).column(name), LeRobotSource(whole).column(name))
    assert (root / TRIALS_PATH).read_text() == (whole / TRIALS_PATH).read_text()
    assert json.loads((root / EXTRA_PATH).read_text())["recording"]["action_noise"] == 0.3


def test_failures_are_dropped_counted_and_hopeless_tasks_refused(tmp_path):
    # Reach takes 35 to 60 steps, depending on the trial: a limit of 46 drops some.
    summary = record_episodes(
        "metaworld", "reach-v3", tmp_path / "some", episodes=2, resolution=16, max_steps=LIMIT, hold_steps=1, workers=0
    )
    assert summary.episodes == 2
    assert summary.dropped["reach-v3"] > 0
    lines = [json.loads(line) for line in (tmp_path / "some" / TRIALS_PATH).read_text().splitlines()]
    assert [line["trial"] for line in lines] == list(range(len(lines)))
    assert sum(not line["success"] for line in lines) == summary.dropped["reach-v3"]
    with pytest.raises(EnvError, match="allow more steps"):
        record_episodes("metaworld", "reach-v3", tmp_path / "none", episodes=1, resolution=16, max_steps=2, workers=0)


LIMIT = 46


def test_bad_arguments_are_told_before_anything_is_written(tmp_path):
    for arguments, message in (
        ({"tasks": "reech-v3"}, "reach-v3"),
        ({"tasks": ("reach-v3", "reach-v3")}, "once"),
        ({"tasks": "reach-v3", "cameras": ("corner9",)}, "no camera"),
        ({"tasks": "reach-v3", "video_rate_hz": 30}, "does not divide"),
    ):
        with pytest.raises(EnvError, match=message):
            record_episodes("metaworld", output_dir=tmp_path / "x", workers=0, **arguments)
        assert not (tmp_path / "x").exists()


def test_noise_has_the_stated_deviation_and_correlation():
    env = make_env("metaworld", "reach-v3")
    spec = env.description
    env.close()
    settings = DemonstrationSettings(action_noise=0.2, noise_time_s=0.1)
    noise = ActionNoise(settings, spec, np.random.default_rng(trial_seed("test")))
    values = np.array([noise.next() for _ in range(20000)])
    np.testing.assert_allclose(values[:, :3].std(axis=0), 0.2, rtol=0.1)
    correlation = np.corrcoef(values[:-8, 0], values[8:, 0])[0, 1]  # 8 steps at 80 Hz = 0.1 s
    assert abs(correlation - np.exp(-1)) < 0.08
    assert picture_stride(spec, 16) == 5
