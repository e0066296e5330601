"""LIBERO (hf-libero on robosuite and MuJoCo): 130 tasks of a Panda arm, in five suites.

Conventions, beside those of `wamkit.envs.libero_conventions`:

- Trial i of the split ``eval`` is LIBERO's initial state i, 0..49, after ten steps in which the scene settles. Trials
  of ``train`` are drawn from the same regions by LIBERO's own samplers; there is no end of them.
- Fixtures (cabinet, stove) stand where LIBERO's reset puts them, which its initial states do not say; here the trial
  fixes this too.
- The model is built once. Each trial starts from all that LIBERO's reset of a new model sets, so results are those of
  rebuilding it, which takes seconds.
- Success is LIBERO's own check after each action. Observations are 2 ms older, as LIBERO's are (`libero_control`).
- Pictures are drawn when they are asked for. LIBERO draws both cameras after each action, and that does not change what
  they show: physics and drawing share no state.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from wamkit.envs import libero_assets
from wamkit.envs.base import EnvError, Environment, EnvSpec, Split, checked_action, trial_seed
from wamkit.envs.libero_control import FastStep
from wamkit.envs.libero_conventions import (
    ACTION_NAMES,
    NO_OP,
    RATE_HZ,
    SETTLE_STEPS,
    STATE_NAMES,
    GripperRange,
    checked_gripper_range,
    from_libero_gripper,
    gripper_bounds,
    state_vector,
    to_libero_gripper,
    turned,
)
from wamkit.envs.libero_expert import PickAndPlace, Scene, Shapes, expert_for
from wamkit.envs.libero_tasks import EVAL_TRIALS, find_task
from wamkit.envs.rendering import Camera
from wamkit.errors import suggest

CAMERAS: dict[str, str] = {"image": "agentview", "image2": "robot0_eye_in_hand"}
"""LeRobot's name -> LIBERO's: the view from the front, and the wrist's."""
PLAIN_CAMERAS: dict[str, str] = {f"{name}_plain": view for name, view in CAMERAS.items()}
"""The same views without shadows, reflections and smoothing, about twice as quick on a CPU. They have names of their
own, so that no policy is trained on the one kind and unknowingly shown the other."""
_VIEWS = {**CAMERAS, **PLAIN_CAMERAS}

# What a reset or a step writes into the MuJoCo model, where mj_resetData does not reach.
_MODEL_FIELDS = ("body_pos", "body_quat", "site_rgba", "geom_rgba")
_PLACEMENT_ATTEMPTS = 100


class LiberoEnvironment(Environment):
    """One LIBERO task with LeRobot's keys.

    Args:
        task: Such as ``"libero_object_3"``.
        resolution: Side of the square pictures, or (height, width); published data sets have 256.
        cameras: Names out of ``CAMERAS`` or ``PLAIN_CAMERAS``; the first is the primary view.
        max_steps: Time limit in steps; None for the suite's.
        seed: Namespace of the ``train`` trials. Those of ``eval`` are LIBERO's and do not depend on it.
        gripper: What the policy's last number means; ``open_-1_close_1`` is LIBERO's own.

    Raises:
        EnvError: An unknown task, camera or gripper range; LIBERO or its meshes are absent.
    """

    def __init__(
        self,
        task: str,
        *,
        resolution: int | tuple[int, int] = 128,
        cameras: tuple[str, ...] = tuple(CAMERAS),
        max_steps: int | None = None,
        seed: int = 0,
        gripper: GripperRange = "open_-1_close_1",
    ) -> None:
        for camera in cameras:
            if camera not in _VIEWS:
                raise EnvError(f"LIBERO has no camera {camera!r}.{suggest(camera, _VIEWS)}")
        self._task = find_task(task)
        self._gripper: GripperRange = checked_gripper_range(gripper)
        self._sim_env, self._built = _simulation(self._task.bddl_file)
        self._advance = FastStep(self._sim_env)
        size = (resolution, resolution) if isinstance(resolution, int) else (int(resolution[0]), int(resolution[1]))
        low, high = gripper_bounds(self._gripper)
        problem = self._sim_env.parsed_problem
        kinds = tuple(problem["objects"]) + tuple(problem["fixtures"])
        self.stand_ins = libero_assets.stand_ins(libero_assets.assets_folder(), kinds)
        """Files in this scene that are not LIBERO's own scans."""
        self._spec = EnvSpec(
            name="libero",
            task=task,
            instruction=self._task.instruction,
            cameras=dict.fromkeys(cameras, size),
            state_names=STATE_NAMES,
            action_names=ACTION_NAMES,
            action_low=(-1.0,) * 6 + (low,),
            action_high=(1.0,) * 6 + (high,),
            rate_hz=RATE_HZ,
            max_steps=max_steps or self._task.max_steps,
            embodiment="libero",
            versions={name: version(name) for name in ("hf-libero", "robosuite", "mujoco", "gymnasium")},
            notes=(libero_assets.STAND_IN_NOTE,) if self.stand_ins else (),
        )
        self._seed = seed
        self._initial_states: np.ndarray | None = None
        self._expert: tuple[PickAndPlace, str, str] | None = None
        self._shapes: Shapes | None = None
        self._steps: int | None = None
        model = self._sim_env.sim.model._model
        # As LIBERO draws: scanned surfaces, not the shapes that collide.
        self._cameras = {
            plain: Camera(model, f"libero:{task}:{'plain' if plain else 'full'}", hidden_groups=(0,), plain=plain)
            for plain in (False, True)
        }

    @property
    def description(self) -> EnvSpec:
        """What this environment gives and takes."""
        return self._spec

    def reset_trial(self, trial: int, *, split: Split = "eval", render: bool = True) -> dict[str, Any]:
        """See the base class.

        Raises:
            EnvError: An unknown split, or an ``eval`` trial beyond LIBERO's fifty.
        """
        if split not in ("train", "eval"):
            raise EnvError(f"There is no split {split!r}.{suggest(split, ('train', 'eval'))}")
        if split == "eval" and not 0 <= trial < EVAL_TRIALS:
            raise EnvError(
                f"LIBERO has {EVAL_TRIALS} initial states for each task, 0..{EVAL_TRIALS - 1}, and no number {trial}: "
                "evaluate at most those, or use the split train."
            )
        names = ("libero", self._task.name, split, trial) + ((self._seed,) if split == "train" else ())
        self._place(trial_seed(*names))
        if split == "eval":
            self._set_initial_state(trial)
        for _ in range(SETTLE_STEPS):
            self._advance(np.array(NO_OP))
        self._steps, self._expert = 0, None
        return self.observe(images=render)

    def _place(self, seed: int) -> None:
        """LIBERO's own reset, from what a newly built model would hold."""
        from robosuite.utils.errors import RandomizationError

        env = self._sim_env
        for name, value in self._built.items():
            getattr(env.sim.model._model, name)[:] = value
        # LIBERO's samplers draw from numpy's global state, which belongs to everybody in this process.
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            for attempt in range(_PLACEMENT_ATTEMPTS):
                # Remembered by the gripper's model, which a soft reset keeps.
                env.robots[0].gripper.current_action = np.zeros(2)
                try:
                    env.reset()
                    self._advance.reset()
                    break
                except RandomizationError:
                    if attempt == _PLACEMENT_ATTEMPTS - 1:
                        raise EnvError(f"LIBERO finds no room for the objects of {self._spec.task}.") from None
        finally:
            np.random.set_state(before)  # noqa: NPY002

    def _set_initial_state(self, trial: int) -> None:
        if self._initial_states is None:
            self._initial_states = libero_assets.initial_states(self._task.suite, self._task.name)
        env, state = self._sim_env, self._initial_states[trial]
        if len(state) != 1 + env.sim.model.nq + env.sim.model.nv:
            raise EnvError(
                f"The initial states of {self._task.name} have {len(state)} numbers and its model "
                f"{1 + env.sim.model.nq + env.sim.model.nv}: install hf-libero 0.1.4 with the assets that belong to it."
            )
        env.sim.set_state_from_flattened(state)
        env.sim.forward()
        env._post_process()

    def step_action(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, Any] | None, bool, bool]:
        """See the base class."""
        if self._steps is None:
            raise EnvError("Call reset_trial (or reset) before the first step.")
        if self._steps >= self._spec.max_steps:
            raise EnvError(f"The time limit of {self._spec.max_steps} steps is reached: call reset_trial.")
        checked = checked_action(action, self._spec).astype(np.float64)
        checked[-1] = to_libero_gripper(float(checked[-1]), self._gripper)
        success = self._advance(checked)
        self._steps += 1
        observation = self.observe() if render else None
        return observation, success, self._steps >= self._spec.max_steps

    def observe(self, *, images: bool = True) -> dict[str, Any]:
        """See the base class."""
        if self._steps is None:
            raise EnvError("Call reset_trial (or reset) before the first observation.")
        observation: dict[str, Any] = {}
        if images:
            for camera in self._spec.cameras:
                observation[f"observation.images.{camera}"] = self.render_frame(camera)
        seen, robot = self._advance.seen, self._sim_env.robots[0]
        w, x, y, z = seen.body(robot.robot_model.eef_name).xquat
        fingers = seen.qpos[robot._ref_gripper_joint_pos_indexes]
        position = seen.site_xpos[robot.eef_site_id]
        observation["observation.state"] = state_vector(position, np.array([x, y, z, w]), np.asarray(fingers))
        observation["task"] = self._spec.instruction
        return observation

    def expert_action(self, rng: np.random.Generator | None = None) -> np.ndarray:
        """The pick-and-place expert's action; ``rng`` is not used.

        Raises:
            EnvError: Before a reset, or the task is more than pick and place.
        """
        if self._steps is None:
            raise EnvError("Call reset_trial (or reset) before asking the expert.")
        if self._expert is None:
            self._expert = expert_for(self._sim_env.parsed_problem["goal_state"])
        action = self._expert[0].act(self._scene(*self._expert[1:]))
        action[-1] = from_libero_gripper(float(action[-1]), self._gripper)
        return action

    def _scene(self, target: str, place: str) -> Scene:
        env = self._sim_env
        sites = env.object_sites_dict
        goal = sites[place].parent_name if place in sites else place
        if self._shapes is None:
            self._shapes = Shapes(env.sim, {name: env.get_object(name).root_body for name in env.obj_body_id})
        bodies = {name: self._shapes.body(name) for name in env.obj_body_id}
        robot = env.robots[0]
        fingers = env.sim.data.qpos[robot._ref_gripper_joint_pos_indexes]
        return Scene(
            hand=env.sim.data.site_xpos[robot.eef_site_id].copy(),
            opening=float(fingers[0] - fingers[1]),
            target=bodies.pop(target),
            goal=bodies.pop(goal),
            others=tuple(bodies.values()),
        )

    def privileged_state(self) -> dict[str, np.ndarray]:
        """Positions [n, 3] of the objects that the task is about, in LIBERO's order, metres in the world's frame."""
        env = self._sim_env
        positions = [env.sim.data.body_xpos[env.obj_body_id[name]] for name in env.obj_of_interest]
        return {"object_positions": np.asarray(positions, np.float32).reshape(-1, 3)}

    def render_frame(self, camera: str | None = None, resolution: int | tuple[int, int] | None = None) -> np.ndarray:
        """See the base class. Left and right are exchanged, as in LIBERO's data sets."""
        if camera is None:
            camera = next(iter(self._spec.cameras), "image")
        if camera not in _VIEWS:
            raise EnvError(f"LIBERO has no camera {camera!r}.{suggest(camera, _VIEWS)}")
        if resolution is None:
            resolution = self._spec.cameras.get(camera, (128, 128))
        size = (resolution, resolution) if isinstance(resolution, int) else resolution
        drawing = self._cameras[camera in PLAIN_CAMERAS]
        upright = drawing.draw(self._advance.seen, _VIEWS[camera], size)
        return turned(upright[::-1])  # back to MuJoCo's order of rows, then as everybody turns it

    def close(self) -> None:
        """Free the renderers."""
        for camera in self._cameras.values():
            camera.close()


def _simulation(bddl_file: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """LIBERO's problem of a task, without its renderer and its 37 observables; and what its new model held."""
    envs = libero_assets.import_libero()
    from libero.libero.envs import bddl_utils
    from robosuite import load_controller_config

    problem = envs.TASK_MAPPING[bddl_utils.get_problem_info(str(bddl_file))["problem_name"]]
    env, built = problem.__new__(problem), {}
    place = env._reset_internal

    def remember_and_place() -> None:
        # Called first at the end of building, when no fixture has been moved yet: samplers look at where they stand.
        built.update({name: getattr(env.sim.model._model, name).copy() for name in _MODEL_FIELDS if name not in built})
        place()

    env._reset_internal = remember_and_place
    with libero_assets.named_where_missing():
        env.__init__(
            str(bddl_file),
            robots=["Panda"],
            controller_configs=load_controller_config(default_controller="OSC_POSE"),
            gripper_types="default",
            initialization_noise=None,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            control_freq=int(RATE_HZ),
            ignore_done=True,
            hard_reset=False,
        )
    # robosuite refreshes these 500 times a second; we read the state from the simulation when it is asked for.
    env._update_observables = lambda force=False: None
    env._get_observations = lambda force_update=False: {}
    return env, built
