"""Object positions of a recording: its trials run again, and refused where they do not come out as recorded."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("metaworld")

from wamkit.data.lerobot import EXTRA_PATH, LeRobotSource
from wamkit.data.recorder import LeRobotRecorder
from wamkit.envs.recording import TRIALS_PATH, record_episodes
from wamkit.envs.registry import make_env
from wamkit.evaluation.recorded_objects import object_positions, recorded_objects
from wamkit.evaluation.world_metrics import WorldMetricsError

pytestmark = [pytest.mark.sim, pytest.mark.usefixtures("rendering")]
TASKS = ("faucet-open-v3", "window-open-v3")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    root = tmp_path_factory.mktemp("recording") / "data"
    record_episodes(
        "metaworld", TASKS, root, episodes=2, seed=7, resolution=16, action_noise=0.3, video_rate_hz=20, workers=0
    )
    return root


def test_objects_are_where_the_recording_left_them(recording):
    source = LeRobotSource(recording)
    episodes = np.array([3, 0, 0, 1, 2])
    last = source.episodes[0].length - 1
    found = recorded_objects(source, episodes, np.array([0, last, 0, 5, 0]))
    assert found.shape == (5, 3)
    # Each episode begins where its trial puts the object; the faucet's handle is elsewhere once it is open.
    for place, (task, trial) in ((0, (TASKS[1], 1)), (2, (TASKS[0], 0)), (4, (TASKS[1], 0))):
        env = make_env("metaworld", task, seed=7)
        env.reset_trial(trial, split="train", render=False)
        np.testing.assert_allclose(found[place], env.privileged_state()["object_positions"][0], atol=1e-6)
        env.close()
    assert np.abs(found[1] - found[2]).max() > 0.02

    positions = object_positions(source, episodes, np.zeros(5, int))
    assert positions.keys() == {"object", "object_within_task"}
    tasks = np.array([source.episodes[episode].task for episode in episodes])
    for task in np.unique(tasks):
        within = positions["object_within_task"][tasks == task]
        np.testing.assert_allclose(within.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(
            np.ptp(within, axis=0), np.ptp(positions["object"][tasks == task], axis=0), atol=1e-6
        )
    assert object_positions(source, [0, 1], [0, 0]).keys() == {"object"}


def changed(recording, folder, path, edit):
    shutil.copytree(recording, folder)
    edit(folder / path)
    return LeRobotSource(folder)


def test_a_recording_that_comes_out_otherwise_is_refused(recording, tmp_path):
    def other_trials(path):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["trial"] += 5
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    with pytest.raises(WorldMetricsError, match=r"Episode 0, run again, is .* mm from its recording after \d+ actions"):
        recorded_objects(changed(recording, tmp_path / "a", TRIALS_PATH, other_trials), [0], [60])

    fewer = changed(recording, tmp_path / "b", TRIALS_PATH, lambda path: path.write_text(""))
    with pytest.raises(WorldMetricsError, match="knows 0 episodes and the recording has 4"):
        recorded_objects(fewer, [0], [0])

    def foreign(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"source": "droid"}))

    with pytest.raises(WorldMetricsError, match="no recording of a simulator's expert"):
        recorded_objects(changed(recording, tmp_path / "c", EXTRA_PATH, foreign), [0], [0])


def test_a_robots_recording_has_no_known_objects(tmp_path):
    with LeRobotRecorder(tmp_path / "r", 10, {}, ("x",), ("dx",), "metaworld") as recorder:
        recorder.add_frame({}, [0.0], [1.0], "push")
        recorder.save_episode()
    with pytest.raises(WorldMetricsError, match="nobody knows its objects"):
        recorded_objects(LeRobotSource(tmp_path / "r"), [0], [0])
