"""MetaWorld 3 (MuJoCo): 50 tasks of a Sawyer arm whose hand is moved in x, y, z and closed.

Conventions, each checked in tests/envs/test_metaworld.py:

- Action [4] in [-1, 1]: displacement of the commanded hand position in units of 1 cm along x, y, z of the world, then
  gripper effort (1 closes, -1 opens). State [4]: hand x, y, z in metres, gripper opening in 0..1 (1 is open).
- Rate: 5 physics steps of 2.5 ms per action, 80 Hz.
- Pictures are upright: the robot stands on the floor. MetaWorld's ``corner``, ``corner2`` and ``corner3`` hang upside
  down, so these three are turned by 180 degrees (which keeps left and right apart, as a vertical flip would not).
- ``corner2_near`` is no camera of MetaWorld's file: it is ``corner2`` moved to (0.75, 0.075, 0.7), from where objects
  appear about 1.6 times larger. LeRobot's MetaWorld wrapper shows this view under the name ``corner2``.
- Goals are visible where MetaWorld draws them, and nothing is added or hidden: 46 tasks have a site, a small coloured
  sphere, at or near the goal; assembly, bin-picking, disassemble and sweep have none there (their goals are objects).
- Success is MetaWorld's ``info["success"]``.
"""

from __future__ import annotations

import copy
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np

from wamkit.envs.base import EnvError, Environment, EnvSpec, Split, checked_action, trial_seed
from wamkit.envs.metaworld_tasks import INSTRUCTIONS
from wamkit.envs.rendering import Camera, import_mujoco
from wamkit.errors import suggest

_CORNER2_NEAR = np.array([0.75, 0.075, 0.7])
_HANGING = frozenset({"corner", "corner2", "corner2_near", "corner3"})
CAMERAS: tuple[str, ...] = ("corner2", "corner2_near", "corner", "corner3", "topview", "gripperPOV", "behindGripper")

# What a task's reset writes into the MuJoCo model, where mj_resetData does not reach.
_MODEL_FIELDS = ("body_pos", "body_quat", "site_pos", "site_quat", "geom_pos", "geom_quat")


class MetaWorldEnvironment(Environment):
    """One MetaWorld task with our cameras, seeded trials and observations without object poses.

    Args:
        task: Such as ``"reach-v3"``.
        resolution: Side of the square pictures, or (height, width).
        cameras: Names out of ``CAMERAS``; the first is the primary view.
        max_steps: Time limit in steps.
        seed: Namespace of the initial states: trials under another seed are other states.

    Raises:
        EnvError: An unknown task or camera.
    """

    def __init__(
        self,
        task: str,
        *,
        resolution: int | tuple[int, int] = 128,
        cameras: tuple[str, ...] = ("corner2_near",),
        max_steps: int = 500,
        seed: int = 0,
    ) -> None:
        if task not in INSTRUCTIONS:
            raise EnvError(f"MetaWorld has no task {task!r}.{suggest(task, INSTRUCTIONS)}")
        for camera in cameras:
            if camera not in CAMERAS:
                raise EnvError(f"MetaWorld has no camera {camera!r}.{suggest(camera, CAMERAS)}")
        size = (resolution, resolution) if isinstance(resolution, int) else (int(resolution[0]), int(resolution[1]))
        self._mujoco = import_mujoco()
        try:
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
            from metaworld.policies import ENV_POLICY_MAP
        except ModuleNotFoundError as error:
            raise EnvError("MetaWorld is not installed: pip install 'wamkit[sim]'.") from error
        self._spec = EnvSpec(
            name="metaworld",
            task=task,
            instruction=INSTRUCTIONS[task],
            cameras=dict.fromkeys(cameras, size),
            state_names=("hand_x", "hand_y", "hand_z", "gripper_opening"),
            action_names=("delta_x", "delta_y", "delta_z", "gripper_effort"),
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            rate_hz=80.0,
            max_steps=max_steps,
            embodiment="metaworld",
            versions={name: version(name) for name in ("metaworld", "mujoco", "gymnasium")},
        )
        self._seed = seed
        self._sim = ALL_V3_ENVIRONMENTS[task]()
        # The simulator's own observation shows the goal to the expert; no policy sees that observation.
        self._sim._partially_observable = False
        self._sim.__dict__.pop("sawyer_observation_space", None)
        self._sim._set_task_called = True
        self._sim.seeded_rand_vec = True
        self._sim.max_path_length = max_steps
        self._expert = ENV_POLICY_MAP[task]()
        self._camera = Camera(self._sim.model, self._sim.model_name)
        self._pristine_model = {name: getattr(self._sim.model, name).copy() for name in _MODEL_FIELDS}
        self._pristine = {
            name: copy.deepcopy(value)
            for name, value in vars(self._sim).items()
            if name not in {"model", "data", "mujoco_renderer", "_ezpickle_args", "_ezpickle_kwargs"}
        }
        lamps = [(self._sim.model, name) for name in ("light_ambient", "light_diffuse", "light_specular")]
        lamps += [(self._sim.model.vis.headlight, name) for name in ("ambient", "diffuse", "specular")]
        self._lights = [(owner, name, getattr(owner, name).copy()) for owner, name in lamps]
        self._raw: np.ndarray | None = None
        self._steps = 0

    @property
    def description(self) -> EnvSpec:
        """What this environment gives and takes."""
        return self._spec

    def reset_trial(self, trial: int, *, split: Split = "eval", render: bool = True) -> dict[str, Any]:
        """See the base class. Object and goal positions are drawn from the task's own reset space."""
        if split not in ("train", "eval"):
            raise EnvError(f"There is no split {split!r}.{suggest(split, ('train', 'eval'))}")
        sim = self._sim
        # A task's reset reads what the last one left in the model and in its attributes: start from what was built.
        for name, value in self._pristine_model.items():
            getattr(sim.model, name)[:] = value
        vars(sim).update(copy.deepcopy(self._pristine))
        self.set_light(1.0)
        self._mujoco.mj_resetData(sim.model, sim.data)
        # Some tasks draw again until objects lie apart. So the draw is made once by the task itself, and then frozen
        # for MetaWorld's reset, which resets the model twice.
        sim.np_random = np.random.default_rng(trial_seed("metaworld", self._spec.task, self._seed, split, trial))
        sim._freeze_rand_vec = False
        sim.reset_model()
        sim._freeze_rand_vec = True
        self._raw, _ = sim.reset()
        self._steps = 0
        return self.observe(images=render)

    def step_action(self, action: np.ndarray, render: bool = True) -> tuple[dict[str, Any] | None, bool, bool]:
        """See the base class."""
        if self._raw is None:
            raise EnvError("Call reset_trial (or reset) before the first step.")
        if self._steps >= self._spec.max_steps:
            raise EnvError(f"The time limit of {self._spec.max_steps} steps is reached: call reset_trial.")
        self._raw, _, _, _, info = self._sim.step(checked_action(action, self._spec))
        self._steps += 1
        observation = self.observe() if render else None
        return observation, bool(info["success"]), self._steps >= self._spec.max_steps

    def observe(self, *, images: bool = True) -> dict[str, Any]:
        """See the base class."""
        if self._raw is None:
            raise EnvError("Call reset_trial (or reset) before the first observation.")
        observation: dict[str, Any] = {}
        if images:
            for camera in self._spec.cameras:
                observation[f"observation.images.{camera}"] = self.render_frame(camera)
        observation["observation.state"] = self._raw[:4].astype(np.float32)
        observation["task"] = self._spec.instruction
        return observation

    def expert_action(self, rng: np.random.Generator | None = None) -> np.ndarray:
        """MetaWorld's scripted policy for this task, clipped to the bounds; ``rng`` is not used."""
        if self._raw is None:
            raise EnvError("Call reset_trial (or reset) before asking the expert.")
        with warnings.catch_warnings():
            # Scripted policies ask for more than the bounds and warn of it at each step.
            warnings.simplefilter("ignore")
            action = self._expert.get_action(self._raw)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def privileged_state(self) -> dict[str, np.ndarray]:
        """Object positions [n, 3] (n is 1 or 2) and the goal [3], metres in the world's frame."""
        objects = np.asarray(self._sim._get_pos_objects(), dtype=np.float32).reshape(-1, 3)
        return {"object_positions": objects, "goal": np.asarray(self._sim._get_pos_goal(), np.float32).reshape(-1)[:3]}

    def render_frame(self, camera: str | None = None, resolution: int | tuple[int, int] | None = None) -> np.ndarray:
        """See the base class; any camera out of ``CAMERAS``, not only those of the description."""
        if camera is None:
            camera = next(iter(self._spec.cameras), CAMERAS[0])
        if camera not in CAMERAS:
            raise EnvError(f"MetaWorld has no camera {camera!r}.{suggest(camera, CAMERAS)}")
        if resolution is None:
            resolution = self._spec.cameras.get(camera, (128, 128))
        size = (resolution, resolution) if isinstance(resolution, int) else resolution
        near = camera == "corner2_near"
        return self._camera.draw(
            self._sim.data,
            "corner2" if near else camera,
            size,
            position=_CORNER2_NEAR if near else None,
            hangs=camera in _HANGING,
        )

    # ---- changes of the scene under way, for tests of what should notice them; a reset takes them back --------------

    def displace_fixture(self, offset: np.ndarray) -> None:
        """Move what the task is about, and its goal with it, while the episode runs.

        Args:
            offset: [3], metres in the world's frame.

        Raises:
            EnvError: this task places no fixture (its object lies free), or no episode has begun.
        """
        if self._raw is None:
            raise EnvError("Call reset_trial (or reset) before moving anything.")
        model = self._sim.model
        placed = np.flatnonzero((model.body_pos != self._pristine_model["body_pos"]).any(axis=1))
        if len(placed) != 1:
            raise EnvError(
                f"{self._spec.task} places no single fixture: choose a task with a faucet, window, door, ..."
            )
        offset = np.asarray(offset, np.float64)
        model.body_pos[placed[0]] += offset
        self._sim._target_pos = self._sim._target_pos + offset
        # Markers of the goal that hang on the world and not on the fixture.
        marked = (model.site_pos != self._pristine_model["site_pos"]).any(axis=1) & (model.site_bodyid == 0)
        model.site_pos[marked] += offset
        self._mujoco.mj_forward(model, self._sim.data)
        self._raw = self._sim._get_obs()

    def set_light(self, brightness: float) -> None:
        """Scale every light of the scene: 1 is as built, 0 is dark."""
        for owner, name, value in self._lights:
            getattr(owner, name)[:] = brightness * value

    def close(self) -> None:
        """Free the renderers and the simulator."""
        self._camera.close()
        self._sim.close()
