"""One LIBERO step, bit for bit what robosuite computes, in two thirds of its time.

robosuite runs its controller in 25 physics steps for each action, and before each of them computes kinematics, contacts
and dynamics of the same state three times over: ``mj_forward``, ``mj_forward`` in the controller's update, ``mj_step``.
All that the second and third time can change is the solver's warm start. So only the stages that depend on it (and
on the command) are run again. The rest is reading the same quantities once instead of twice, and leaving out buffers
that nobody reads.

LIBERO's observations are 2 ms older than the state after an action: a reset sets its sensors' clock so that they look
after 24 of the 25 physics steps. That moment is kept too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wamkit.envs.rendering import import_mujoco


class FastStep:
    """Steps a LIBERO problem with one arm under OSC_POSE.

    Args:
        env: The problem, built by robosuite.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._mujoco: Any = import_mujoco()
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._substeps = int(env.control_timestep / env.model_timestep)
        shape = (3, self._model.nv)
        self._jacobians = np.zeros(shape), np.zeros(shape)
        self._mass = np.zeros((self._model.nv, self._model.nv))
        gripper = [env.sim.model.actuator_name2id(name) for name in env.robots[0].gripper.actuators]
        limits = self._model.actuator_ctrlrange[gripper]
        self._gripper, self._middle = gripper, 0.5 * (limits[:, 1] + limits[:, 0])
        self._half = 0.5 * (limits[:, 1] - limits[:, 0])
        self._fresh = True
        self.seen: Any = self._mujoco.MjData(self._model)
        """The moment that LIBERO's cameras and sensors show."""

    def reset(self) -> None:
        """Call after each of the environment's own resets."""
        self._fresh = True

    def __call__(self, action: np.ndarray) -> bool:
        """Execute one action.

        Args:
            action: float64 [7], as robosuite takes it.

        Returns:
            Whether the task is solved in the state that it leads to.
        """
        if self._fresh:  # its first step acts on what its reset left in the controller
            self._fresh = False
            solved = bool(self._env.step(action)[2])
            self._mujoco.mj_copyData(self.seen, self._model, self._data)
            return solved
        env, robot = self._env, self._env.robots[0]
        controller, low_high = robot.controller, robot.torque_limits
        step = np.array([-1.0, 1.0]) * robot.gripper.speed * np.sign(action[6:])
        env.timestep += 1
        for substep in range(self._substeps):
            self._mujoco.mj_forward(self._model, self._data)
            self._update(controller)
            if substep == 0:
                controller.set_goal(action[:6])
            torques = np.clip(controller.run_controller(), *low_high)
            robot.gripper.current_action = np.clip(robot.gripper.current_action + step, -1.0, 1.0)
            self._data.ctrl[self._gripper] = self._middle + self._half * robot.gripper.current_action
            self._data.ctrl[robot._ref_joint_actuator_indexes] = torques
            self._mujoco.mj_step2(self._model, self._data)
            if substep == self._substeps - 2:
                self._mujoco.mj_copyData(self.seen, self._model, self._data)
        env.cur_time += env.control_timestep
        env._post_process()
        return bool(env._check_success())

    def _update(self, controller: Any) -> None:
        """What the controller's own update reads, after what its second ``mj_forward`` changes."""
        mujoco, model, data = self._mujoco, self._model, self._data
        mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL.value, 1)
        site = self._env.robots[0].eef_site_id
        linear, angular = self._jacobians
        mujoco.mj_jacSite(model, data, linear, angular, site)
        mujoco.mj_fullM(model, self._mass, data.qM)
        columns = controller.qvel_index
        controller.ee_pos = data.site_xpos[site].copy()
        controller.ee_ori_mat = data.site_xmat[site].reshape(3, 3).copy()
        controller.ee_pos_vel, controller.ee_ori_vel = np.dot(linear, data.qvel), np.dot(angular, data.qvel)
        controller.joint_pos, controller.joint_vel = data.qpos[controller.qpos_index], data.qvel[columns]
        controller.J_pos, controller.J_ori = linear[:, columns], angular[:, columns]
        controller.J_full = np.vstack([controller.J_pos, controller.J_ori])
        controller.mass_matrix = self._mass[columns, :][:, columns]
        controller.new_update = False
