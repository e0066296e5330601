from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("metaworld")

from wamkit.envs.base import EnvError, trial_seed
from wamkit.envs.metaworld import CAMERAS, MetaWorldEnvironment
from wamkit.envs.registry import instruction, make_env, tasks
from wamkit.envs.rendering import RenderingError, _Context, choose_backend

pytestmark = pytest.mark.sim
needs_rendering = pytest.mark.skipif(choose_backend() == "disable", reason="no EGL and no OSMesa on this machine")


def state_of(env: MetaWorldEnvironment) -> np.ndarray:
    privileged = env.privileged_state()
    robot = env.observe(images=False)["observation.state"]
    return np.concatenate([robot, privileged["object_positions"].ravel(), privileged["goal"], env._sim.data.qpos])


@pytest.mark.parametrize("task", tasks("metaworld"))
def test_every_task_resets_exactly_and_steps(task):
    env = make_env("metaworld", task)
    try:
        env.reset_trial(0, render=False)
        first = state_of(env)
        # Leave the state far behind, then come back.
        env.reset_trial(1, render=False)
        other = state_of(env)
        for _ in range(3):
            observation, success, truncated = env.step_action(env.expert_action(), render=False)
        assert observation is None
        assert isinstance(success, bool)
        assert not truncated
        env.reset_trial(0, split="train", render=False)
        assert not np.array_equal(state_of(env), first)
        env.reset_trial(0, render=False)
        np.testing.assert_array_equal(state_of(env), first)
        assert not np.array_equal(other, first)
        assert env.description.instruction == instruction("metaworld", task) != ""
        assert np.abs(env.expert_action()).max() <= 1
    finally:
        env.close()


def test_a_fresh_environment_has_the_same_trials_and_another_seed_has_others():
    states = []
    for seed, before in ((0, ()), (0, (5, 9)), (1, ())):
        env = make_env("metaworld", "pick-place-v3", seed=seed)
        for trial in before:
            env.reset_trial(trial, render=False)
            env.step_action(np.ones(4), render=False)
        env.reset_trial(2, render=False)
        states.append(state_of(env))
        env.close()
    np.testing.assert_array_equal(states[0], states[1])
    assert not np.array_equal(states[0], states[2])


def test_trial_seeds_are_pinned():
    # A change here changes every published trial.
    assert trial_seed("metaworld", "reach-v3", 0, "eval", 0) == PINNED
    assert trial_seed("a", "bc") != trial_seed("ab", "c")


PINNED = 6823547799051822615


def test_state_is_hand_and_gripper_and_actions_move_them():
    env = make_env("metaworld", "reach-v3")
    before = env.reset_trial(0, render=False)["observation.state"]
    assert before.shape == (4,)
    assert before.dtype == np.float32
    for _ in range(20):
        env.step_action(np.array([1.0, 0.0, 0.0, 1.0]), render=False)
    after = env.observe(images=False)["observation.state"]
    assert after[0] - before[0] > 0.1  # 20 steps of 1 cm, less the lag of the arm
    assert abs(after[1] - before[1]) < 0.03
    assert after[3] < before[3] - 0.2
    env.close()


def test_expert_solves_reach_and_the_gymnasium_door_ends_there():
    env = make_env("metaworld", "reach-v3", resolution=16, max_steps=200)
    env.reset(options={"trial": 4})
    for _ in range(200):
        _, reward, terminated, truncated, info = env.step(env.expert_action())
        if terminated:
            break
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)
    env.close()


def test_time_limit_and_bad_input():
    env = make_env("metaworld", "reach-v3", max_steps=3)
    with pytest.raises(EnvError, match="reset_trial"):
        env.step_action(np.zeros(4), render=False)
    env.reset_trial(0, render=False)
    assert [env.step_action(np.zeros(4), render=False)[2] for _ in range(3)] == [False, False, True]
    with pytest.raises(EnvError, match="time limit of 3"):
        env.step_action(np.zeros(4), render=False)
    env.reset_trial(0, render=False)
    with pytest.raises(EnvError, match="4 numbers"):
        env.step_action(np.zeros(7), render=False)
    with pytest.raises(EnvError, match="not finite"):
        env.step_action(np.array([0, np.nan, 0, 0]), render=False)
    with pytest.raises(EnvError, match="split"):
        env.reset_trial(0, split="evall")
    env.close()
    with pytest.raises(EnvError, match="Did you mean 'reach-v3'"):
        make_env("metaworld", "reech-v3")
    with pytest.raises(EnvError, match="Did you mean 'metaworld'"):
        make_env("metawrld", "reach-v3")
    with pytest.raises(EnvError, match="Did you mean 'corner2'"):
        make_env("metaworld", "reach-v3", cameras=("corner22",))


@needs_rendering
def test_pictures_are_rendered_at_the_asked_size_and_stand_upright():
    env = make_env("metaworld", "button-press-topdown-v3", resolution=(48, 64), cameras=CAMERAS)
    observation = env.reset_trial(0)
    for camera in CAMERAS:
        picture = observation[f"observation.images.{camera}"]
        assert picture.shape == (48, 64, 3)
        assert picture.dtype == np.uint8
        assert picture.std() > 10
    # The yellow housing of the button stands on its black base: yellow above black wherever the view is from a side.
    picture = env.render_frame("corner2_near", 96).astype(int)
    yellow = (picture[..., 0] > 150) & (picture[..., 2] < 60) & (picture[..., 1] > 90)
    black = picture.max(axis=-1) < 45
    columns = np.nonzero(yellow)[1]
    black[:, : columns.min()] = black[:, columns.max() :] = False
    assert np.nonzero(yellow)[0].mean() < np.nonzero(black)[0].mean()
    # Not resized: a pixel-doubled small picture would have equal neighbours everywhere.
    assert (picture[::2, ::2] != picture[1::2, 1::2]).mean() > 0.05
    np.testing.assert_array_equal(picture, env.render_frame("corner2_near", 96))
    env.close()
    assert env.render_frame("topview", 32).shape == (32, 32, 3)
    env.close()


@needs_rendering
def test_environments_share_meshes_but_not_pictures():
    drawers = [make_env("metaworld", task, resolution=48) for task in ("drawer-open-v3", "drawer-close-v3")]
    other = make_env("metaworld", "reach-v3", resolution=48)
    alone = {}
    for env in (*drawers, other):
        alone[env.description.task] = env.reset_trial(0)["observation.images.corner2_near"]
        env.close()
    assert not _Context.shared
    first = [env.reset_trial(0)["observation.images.corner2_near"] for env in (*drawers, other)]
    assert len(_Context.shared) == 2
    drawers[0].render_frame(None, (64, 96))  # the shared buffer grows
    again = [env.render_frame() for env in (*drawers, other)]
    drawers[0].close()
    last = drawers[1].render_frame()
    for env, one, two in zip((*drawers, other), first, again, strict=True):
        np.testing.assert_array_equal(one, alone[env.description.task])
        np.testing.assert_array_equal(two, one)
    np.testing.assert_array_equal(last, first[1])
    assert not np.array_equal(first[0], first[1])
    for env in (*drawers, other):
        env.close()
        env.close()
    assert not _Context.shared


@needs_rendering
def test_observations_fit_the_gymnasium_spaces():
    env = make_env("metaworld", "reach-v3", resolution=32)
    observation, info = env.reset(seed=3)
    assert info["trial"] == 3
    assert env.observation_space.contains(observation)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert env.reset()[1]["trial"] == 4
    with pytest.raises(EnvError, match="trail"):
        env.reset(options={"trail": 3})
    env.close()


def test_without_rendering_libraries_physics_runs_and_pictures_say_what_to_install(monkeypatch):
    env = make_env("metaworld", "reach-v3")
    monkeypatch.setenv("MUJOCO_GL", "disable")
    env.reset_trial(0, render=False)
    env.step_action(np.zeros(4), render=False)
    with pytest.raises(RenderingError, match="apt-get install libegl1"):
        env.observe()
    env.close()


@pytest.mark.parametrize("task", ["faucet-open-v3", "faucet-close-v3", "window-open-v3"])
def test_a_fixture_moves_with_its_goal_and_comes_back_at_reset(task):
    env = make_env("metaworld", task)
    env.reset_trial(0, render=False)
    first = state_of(env)
    for _ in range(20):
        env.step_action(env.expert_action(), render=False)
    before = env.privileged_state()
    env.displace_fixture(np.array([0.1, 0.0, 0.0]))
    after = env.privileged_state()
    for name in ("object_positions", "goal"):
        moved = (after[name] - before[name]).reshape(-1, 3)
        np.testing.assert_allclose(moved, np.broadcast_to([0.1, 0.0, 0.0], moved.shape), atol=1e-5)
    success = truncated = False
    while not (success or truncated):  # the expert sees where it went
        _, success, truncated = env.step_action(env.expert_action(), render=False)
    assert success
    env.reset_trial(0, render=False)
    np.testing.assert_array_equal(state_of(env), first)
    env.close()


def test_only_a_placed_fixture_can_be_moved():
    env = make_env("metaworld", "pick-place-v3")
    with pytest.raises(EnvError, match="reset_trial"):
        env.displace_fixture(np.zeros(3))
    env.reset_trial(0, render=False)
    with pytest.raises(EnvError, match="places no single fixture"):
        env.displace_fixture(np.zeros(3))
    env.close()


@needs_rendering
def test_light_falls_and_comes_back_at_reset():
    env = make_env("metaworld", "faucet-open-v3", resolution=32)
    env.reset_trial(0, render=False)
    bright = env.render_frame()
    env.set_light(0.4)
    assert 0.2 < env.render_frame().mean() / bright.mean() < 0.7
    env.reset_trial(0, render=False)
    np.testing.assert_array_equal(env.render_frame(), bright)
    env.close()
