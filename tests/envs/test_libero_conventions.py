"""LIBERO's conventions and names: what can be said without the simulator, on every machine."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from wamkit.envs import libero_assets, libero_tasks
from wamkit.envs.base import EnvError
from wamkit.envs.libero_conventions import (
    ACTION_NAMES,
    GRIPPER_RANGES,
    NO_OP,
    STATE_NAMES,
    axis_angle,
    checked_gripper_range,
    from_libero_gripper,
    gripper_bounds,
    state_vector,
    to_libero_gripper,
    turned,
)
from wamkit.envs.libero_expert import Body, Scene, expert_for
from wamkit.envs.registry import ENV_TYPES, expand_tasks, make_env, tasks
from wamkit.envs.rendering import import_mujoco


@pytest.mark.parametrize(
    ("quaternion", "expected"),
    [
        ((0, 0, 0, 1), (0, 0, 0)),
        ((1, 0, 0, 0), (np.pi, 0, 0)),
        ((0, np.sin(0.2), 0, np.cos(0.2)), (0, 0.4, 0)),
        ((0, -np.sin(0.2), 0, -np.cos(0.2)), (0, -(2 * np.pi - 0.4), 0)),  # the same rotation, LeRobot's other branch
    ],
)
def test_axis_angle(quaternion, expected):
    np.testing.assert_allclose(axis_angle(np.array(quaternion, float)), expected, atol=1e-12)


def test_axis_angle_is_the_same_rotation_on_the_branch_from_0_to_2_pi():
    quaternions = np.random.default_rng(0).standard_normal((200, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    vectors = np.array([axis_angle(quaternion) for quaternion in quaternions])
    turned_by = Rotation.from_quat(quaternions).inv() * Rotation.from_rotvec(vectors)
    assert turned_by.magnitude().max() < 1e-6
    angles = np.linalg.norm(vectors, axis=1)
    assert np.pi < angles.max() < 2 * np.pi  # not the shortest turn: LeRobot does not take it either
    np.testing.assert_allclose(np.cos(angles / 2), quaternions[:, 3], atol=1e-9)


def test_the_state_has_eight_numbers_and_the_action_seven():
    state = state_vector(np.array([1.0, 2, 3]), np.array([0.0, 0, 0, 1]), np.array([0.04, -0.04]))
    assert state.dtype == np.float32
    np.testing.assert_allclose(state, [1, 2, 3, 0, 0, 0, 0.04, -0.04])
    assert len(STATE_NAMES) == 8
    assert len(ACTION_NAMES) == len(NO_OP) == 7
    assert NO_OP[-1] == -1  # the gripper stays open while the scene settles


def test_pictures_turn_by_half_a_turn_and_back():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    picture = turned(pixels)
    np.testing.assert_array_equal(picture[0, 0], pixels[1, 3])
    np.testing.assert_array_equal(picture[1, 0], pixels[0, 3])
    np.testing.assert_array_equal(turned(picture), pixels)


@pytest.mark.parametrize(
    ("convention", "opens", "closes"),
    [("open_-1_close_1", -1, 1), ("open_0_close_1", 0, 1), ("close_0_open_1", 1, 0)],
)
def test_gripper_ranges(convention, opens, closes):
    assert to_libero_gripper(opens, convention) == -1
    assert to_libero_gripper(closes, convention) == 1
    for value in np.linspace(-1, 1, 9):
        assert to_libero_gripper(from_libero_gripper(value, convention), convention) == pytest.approx(value)
    assert gripper_bounds(convention) == (min(opens, closes), max(opens, closes))


def test_an_unknown_gripper_range_gets_a_suggestion():
    assert [checked_gripper_range(name) for name in GRIPPER_RANGES] == list(GRIPPER_RANGES)
    with pytest.raises(EnvError, match="Did you mean 'open_0_close_1'"):
        checked_gripper_range("open_0_close1")


def test_suites_tasks_and_time_limits():
    assert "libero" in ENV_TYPES
    assert len(tasks("libero")) == 130
    assert {suite: limit for suite, (_, limit) in libero_tasks.SUITES.items()} == {
        "libero_spatial": 280,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }
    assert expand_tasks("libero", ("libero_goal", "libero_90_89"))[-2:] == ("libero_goal_9", "libero_90_89")
    assert expand_tasks("metaworld", ("reach-v3",)) == ("reach-v3",)
    with pytest.raises(EnvError, match="no environment type 'libro'"):
        expand_tasks("libro", ("x",))
    with pytest.raises(EnvError, match="Did you mean 'libero_object_1'"):
        make_env("libero", "libero_objet_1")
    with pytest.raises(EnvError, match=r"leave --env\.gripper out"):
        make_env("metaworld", "reach-v3", gripper="open_0_close_1")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("put_the_bowl_on_the_plate", "put the bowl on the plate"),
        ("KITCHEN_SCENE10_close_the_top_drawer", "close the top drawer"),
        ("LIVING_ROOM_SCENE2_pick_up_the_milk", "pick up the milk"),
    ],
)
def test_instructions_are_in_the_names(name, sentence):
    assert libero_tasks.instruction_of(name) == sentence


def test_absent_package_and_absent_meshes_are_one_line_each(tmp_path, monkeypatch):
    monkeypatch.setattr(libero_assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvError, match=r"pip install 'wamkit\[libero\]'") as told:
        make_env("libero", "libero_object_0")
    assert "\n" not in str(told.value)
    monkeypatch.setattr(libero_assets, "package_folder", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(libero_assets.ASSETS_VARIABLE, raising=False)
    with pytest.raises(EnvError, match=libero_assets.ASSETS_VARIABLE) as told:
        libero_assets.assets_folder()
    assert "\n" not in str(told.value)
    assert "fetch_assets" in str(told.value)
    monkeypatch.setenv(libero_assets.ASSETS_VARIABLE, str(tmp_path))
    with pytest.raises(EnvError, match="holds no scenes/"):
        libero_assets.assets_folder()
    (tmp_path / "scenes").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(libero_assets.ASSETS_VARIABLE, ".")
    assert libero_assets.assets_folder() == tmp_path


def test_a_folder_with_a_part_of_the_meshes_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    (tmp_path / "scenes").mkdir()
    monkeypatch.setenv(libero_assets.ASSETS_VARIABLE, str(tmp_path))
    with (
        pytest.raises(EnvError, match=r"lack .*/pot_vis\.msh.*fetch_assets") as told,
        libero_assets.named_where_missing(),
    ):
        import_mujoco().MjModel.from_xml_string(
            f'<mujoco><asset><mesh file="{tmp_path}/scenes/pot_vis.msh"/></asset></mujoco>'
        )
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="some other"), libero_assets.named_where_missing():
        raise ValueError("some other")


def test_stand_ins_are_small_files_among_the_objects_of_the_scene(tmp_path):
    for name, size in {
        "bowl/visual/bowl.msh": 256,
        "bowl/texture.png": 5000,
        "can/can.msh": 90,
        "pot/x.xml": 10,
    }.items():
        file = tmp_path / "stable_scanned_objects" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
    found = libero_assets.stand_ins(tmp_path, ("bowl", "pot", "table"))
    assert found == ("stable_scanned_objects/bowl/visual/bowl.msh",)


def scene(hand, target, goal, opening=0.08) -> Scene:
    def body(middle, size=0.03):
        middle = np.asarray(middle, float)
        return Body(centre=middle, low=middle - size, high=middle + size)

    return Scene(hand=np.asarray(hand, float), opening=opening, target=body(target), goal=body(goal), others=())


def test_the_expert_carries_a_point_mass_to_its_goal():
    """In a world without physics: the hand goes where it is told, and what it holds goes along."""
    expert, target_name, place = expert_for([["in", "can_1", "basket_1_contain_region"]])
    assert (target_name, place) == ("can_1", "basket_1_contain_region")
    hand, can, basket, seen = np.array([0.0, 0, 0.4]), np.array([0.1, -0.2, 0.03]), np.array([0.0, 0.25, 0.03]), []
    for _ in range(250):
        held = expert.phase in ("lift", "carry", "lower")
        action = expert.act(scene(hand, can, basket, 0.03 if held else 0.08))
        assert np.abs(action).max() <= 1
        np.testing.assert_array_equal(action[3:6], 0)
        seen += [expert.phase] if not seen or seen[-1] != expert.phase else []
        hand = hand + 0.3 * 0.05 * action[:3]
        if action[6] > 0 and held:
            can = can + 0.3 * 0.05 * action[:3]
        if expert.phase == "leave":
            break
    assert seen == ["approach", "descend", "close", "lift", "carry", "lower", "open", "leave"]
    assert np.abs(can - basket)[:2].max() < 0.02


def test_the_expert_begins_again_where_it_lost_the_object():
    expert, *_ = expert_for([["on", "bowl_1", "plate_1"]])
    expert.phase = "carry"
    held = expert.act(scene([0.0, 0, 0.4], [0.0, 0.05, 0.4], [0, 0.25, 0.03]))
    assert (expert.phase, held[6]) == ("carry", 1)
    lost = expert.act(scene([0.0, 0, 0.4], [0.3, 0, 0.03], [0, 0.25, 0.03]))
    assert (expert.phase, lost[6]) == ("approach", -1)
    assert lost[0] == 1  # back to where it lies


def test_goals_beyond_pick_and_place_have_no_expert():
    with pytest.raises(EnvError, match="There is no expert for the goal \\(open drawer_1\\)"):
        expert_for([["open", "drawer_1"]])
