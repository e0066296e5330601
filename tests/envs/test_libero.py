from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wamkit.envs.base import EnvError
from wamkit.envs.libero_assets import STAND_IN_NOTE, initial_states, task_names
from wamkit.envs.libero_conventions import NO_OP, state_vector
from wamkit.envs.registry import instruction, make_env, tasks
from wamkit.envs.rendering import choose_backend

pytestmark = pytest.mark.sim
needs_rendering = pytest.mark.skipif(choose_backend() == "disable", reason="no EGL and no OSMesa on this machine")
TASK = "libero_object_4"


@pytest.fixture(scope="module")
def env(libero):
    env = make_env("libero", TASK, resolution=32)
    yield env
    env.close()


def everything(env) -> np.ndarray:
    """All that the next step depends on, and what is drawn."""
    data, robot = env._sim_env.sim.data, env._sim_env.robots[0]
    fixtures = env._sim_env.sim.model._model.body_pos.ravel()
    parts = (data.qpos, data.qvel, data.ctrl, data.qacc_warmstart, fixtures, robot.gripper.current_action)
    return np.concatenate([np.ravel(part) for part in parts])


def random_actions(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (count, 7))
    actions[::2, 3:6] = 0  # no rotation is a case of its own in the controller
    return actions


def test_the_whole_package_is_there(libero):
    names = task_names()
    assert all(instruction("libero", task) for task in tasks("libero"))
    assert instruction("libero", TASK) == "pick up the ketchup and place it in the basket"
    states = initial_states("libero_object", names["libero_object"][4])
    assert states.shape[0] == 50
    assert len(np.unique(states[:, 10:], axis=0)) == 50


def test_the_import_asks_nothing_and_leaves_the_home_alone(libero, tmp_path):
    code = (
        "from wamkit.envs.libero_assets import import_libero; import sys; import_libero();"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("LIBERO_CONFIG_PATH", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b""
    assert done.stderr == b""
    assert not [path for path in tmp_path.rglob("*") if "libero" in path.name]  # matplotlib keeps its own there


def test_description(env):
    spec = env.description
    assert set(spec.versions) == {"hf-libero", "robosuite", "mujoco", "gymnasium"}
    assert (spec.rate_hz, spec.embodiment) == (20.0, "libero")
    assert list(spec.cameras) == ["image", "image2"]
    assert spec.notes == ((STAND_IN_NOTE,) if env.stand_ins else ())
    assert spec.max_steps == 280


def test_an_eval_trial_is_liberos_initial_state_after_ten_steps(env):
    state = initial_states("libero_object", env._task.name)[7]
    env._place(0)
    env._set_initial_state(7)
    data = env._sim_env.sim.data
    np.testing.assert_array_equal(np.concatenate([data.qpos, data.qvel]), state[1:])
    for _ in range(10):
        env._sim_env.step(np.array(NO_OP))  # robosuite's own, not ours
    expected = data.qpos.copy()
    observation = env.reset_trial(7, render=False)
    np.testing.assert_array_equal(data.qpos, expected)
    assert observation["observation.state"].shape == (8,)
    assert observation["observation.state"].dtype == np.float32
    assert observation["task"] == "pick up the ketchup and place it in the basket"


def test_trials_repeat_to_the_bit_whatever_came_before(env):
    seen = {}
    for split, trial in (("eval", 0), ("eval", 1), ("train", 0), ("train", 1)):
        env.reset_trial(trial, split=split, render=False)
        seen[split, trial] = everything(env)
        for action in random_actions(3):
            env.step_action(action, render=False)
    for key, before in seen.items():
        env.reset_trial(key[1], split=key[0], render=False)
        np.testing.assert_array_equal(everything(env), before)
        assert sum(np.array_equal(before, other) for other in seen.values()) == 1


def test_the_fast_step_is_robosuites_to_the_bit(env):
    histories = []
    for fast in (False, True):
        env.reset_trial(3, render=False)
        history = []
        for action in random_actions(12):
            if fast:
                solved = env.step_action(action, render=False)[1]
            else:
                solved = bool(env._sim_env.step(action.astype(np.float32).astype(float))[2])
            history.append([*everything(env), solved])
        histories.append(history)
    np.testing.assert_array_equal(histories[0], histories[1])


def test_states_are_what_liberos_own_sensors_say(env):
    sim = env._sim_env
    off = sim.__dict__.pop("_update_observables"), sim.__dict__.pop("_get_observations")
    try:
        env._place(0)
        env._set_initial_state(3)
        sim._update_observables(force=True)  # as LIBERO's set_init_state does
        robosuites = []
        for action in [np.array(NO_OP)] * 10 + list(random_actions(5)):
            seen = sim.step(action.astype(np.float32).astype(float))[0]
            names = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
            robosuites.append(state_vector(*(seen[name] for name in names)))
    finally:
        sim._update_observables, sim._get_observations = off
    ours = [env.reset_trial(3, render=False)["observation.state"]]
    for action in random_actions(5):
        env.step_action(action, render=False)
        ours.append(env.observe(images=False)["observation.state"])
    np.testing.assert_array_equal(ours, robosuites[9:])


def test_the_gripper_opens_at_minus_one_and_closes_at_plus_one(env):
    for command, closes in ((1.0, True), (-1.0, False)):
        before = env.reset_trial(2, render=False)["observation.state"]
        for _ in range(12):
            env.step_action(np.array([0, 0, 0, 0, 0, 0, command]), render=False)
        fingers = env.observe(images=False)["observation.state"][6:] - before[6:]
        assert (fingers[0] < -0.02) == closes


def test_actions_move_the_hand_in_the_worlds_frame(env):
    for axis in range(3):
        before = env.reset_trial(2, render=False)["observation.state"]
        for _ in range(8):
            env.step_action(np.eye(7)[axis] * 0.5 + np.array(NO_OP), render=False)
        moved = (env.observe(images=False)["observation.state"] - before)[:3]
        assert moved[axis] > 0.02
        assert np.abs(np.delete(moved, axis)).max() < 0.01


@needs_rendering
def test_episodes_are_the_same_with_and_without_rendering(env):
    ends = []
    for every in (1, 5, 1000):
        env.reset_trial(4, render=True)
        for step, action in enumerate(random_actions(10, seed=1)):
            observation, *_ = env.step_action(action, render=(step + 1) % every == 0)
        ends.append((everything(env), env.observe()))
    assert observation is None
    for other in ends[1:]:
        np.testing.assert_array_equal(ends[0][0], other[0])
        for key, value in ends[0][1].items():
            np.testing.assert_array_equal(value, other[1][key])


@needs_rendering
def test_pictures_stand_upright_and_are_mirrored(env):
    env.reset_trial(0, render=False)
    picture = env.render_frame("image", 96).astype(int)
    assert picture.shape == (96, 96, 3)
    # From the front of the table the basket, at positive y, lies to the camera's right; mirrored, to the left. Checked
    # against the projection of its position rather than by eye.
    data, model = env._sim_env.sim.data, env._sim_env.sim.model._model
    camera = model.camera("agentview").id
    axes, origin = data.cam_xmat[camera].reshape(3, 3), data.cam_xpos[camera]
    ketchup = data.body_xpos[env._sim_env.obj_body_id["ketchup_1"]]
    seen = axes.T @ (ketchup - origin)
    scale = 0.5 * 96 / np.tan(np.radians(model.cam_fovy[camera]) / 2)
    right, up = seen[0] / -seen[2] * scale, seen[1] / -seen[2] * scale
    row, column = round(47.5 - up), round(47.5 - right)
    red = picture[..., 0] - picture[..., 1:].max(axis=-1)
    around = red[row - 6 : row + 7, column - 4 : column + 5]
    mirrored = red[row - 6 : row + 7, 95 - column - 4 : 95 - column + 5]
    assert around.max() > mirrored.max() + 30  # the ketchup is red
    wrist = env.render_frame("image2")
    assert wrist.shape == (32, 32, 3)
    assert wrist.std() > 5
    plain = env.render_frame("image_plain", 96).astype(int)
    assert 0.5 < np.abs(plain - picture).mean() < 40  # the same scene, lit otherwise
    np.testing.assert_array_equal(env.render_frame("image", 96), picture)  # neither kind changes the other


def test_time_limit_and_bad_input(env):
    with pytest.raises(EnvError, match="50 initial states"):
        env.reset_trial(50)
    with pytest.raises(EnvError, match="split"):
        env.reset_trial(0, split="evall")
    env.reset_trial(0, render=False)
    with pytest.raises(EnvError, match="7 numbers"):
        env.step_action(np.zeros(4), render=False)
    env._steps = 279
    assert env.step_action(np.array(NO_OP), render=False)[2]
    with pytest.raises(EnvError, match="time limit of 280"):
        env.step_action(np.array(NO_OP), render=False)
    with pytest.raises(EnvError, match="LIBERO has no camera 'imag'. Did you mean 'image'"):
        make_env("libero", TASK, cameras=("imag",))


def test_a_file_of_states_may_hold_nothing_but_numbers(libero, tmp_path, monkeypatch):
    import io
    import pickle
    import zipfile

    from wamkit.envs import libero_assets

    folder = tmp_path / "init_files" / "s"
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    pickle.dump(Path("x"), buffer)
    with zipfile.ZipFile(folder / "t.pruned_init", "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
    monkeypatch.setattr(libero_assets, "package_folder", lambda: tmp_path)
    with pytest.raises(EnvError, match="no table of numbers needs"):
        initial_states("s", "t")
    with pytest.raises(EnvError, match=r"install hf-libero 0\.1\.4"):
        initial_states("s", "u")


def test_which_tasks_have_an_expert_is_known_without_building_them(env):
    from wamkit.envs.libero_tasks import goal_of, has_expert

    assert goal_of(env._task.bddl_file) == env._sim_env.parsed_problem["goal_state"]
    assert has_expert("libero_object_3")
    assert has_expert("libero_spatial_0")
    assert not has_expert("libero_goal_0")  # a drawer


def test_the_expert_solves_a_trial(env):
    env.reset_trial(0, split="train", render=False)
    success = truncated = False
    while not (success or truncated):
        _, success, truncated = env.step_action(env.expert_action(), render=False)
    assert success
