"""LIBERO's conventions as pure functions of arrays: pictures, state, gripper. They need no simulator.

They are LeRobot's for LIBERO (and so those of the published data sets and checkpoints):

- State [8]: position of the end effector in metres, its orientation as axis times angle in radians, the two fingers'
  joint positions in metres.
- Action [7]: displacement of the end effector in units of 5 cm, its rotation in units of 0.5 rad, both in the world's
  frame (OSC_POSE), and the gripper: -1 opens, +1 closes. One action is held for 50 ms.
- Pictures are MuJoCo's pixels, whose first row is the lowest, turned by 180 degrees. That stands upright but exchanges
  left and right, as every published LIBERO data set does.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from wamkit.data.embodiments import LIBERO_ACTION, LIBERO_STATE
from wamkit.envs.base import EnvError
from wamkit.errors import suggest

ACTION_NAMES, STATE_NAMES = LIBERO_ACTION, LIBERO_STATE
NO_OP = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
"""Stay, with the gripper open: what LIBERO does while a scene settles."""
SETTLE_STEPS = 10
RATE_HZ = 20.0

GripperRange = Literal["open_-1_close_1", "open_0_close_1", "close_0_open_1"]
"""What a policy's last number means. The first is LIBERO's own; data sets that went through RLDS hold the others."""
GRIPPER_RANGES: tuple[str, ...] = ("open_-1_close_1", "open_0_close_1", "close_0_open_1")


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """A rotation as axis times angle, with the angle in 0..2 pi: LeRobot's branch.

    It jumps where the quaternion changes its sign, as the recorded states do.

    Args:
        quaternion: x, y, z, w, float [4], of norm 1.

    Returns:
        float64 [3], radians.
    """
    imaginary, real = np.asarray(quaternion[:3], np.float64), float(np.clip(quaternion[3], -1.0, 1.0))
    size = np.sqrt(1.0 - real * real)
    return np.zeros(3) if size <= 1e-10 else imaginary / size * (2.0 * np.arccos(real))


def state_vector(position: np.ndarray, quaternion: np.ndarray, fingers: np.ndarray) -> np.ndarray:
    """The state, float32 [8].

    Args:
        position: Of the end effector, metres [3].
        quaternion: Its orientation x, y, z, w.
        fingers: Joint positions of the two fingers, metres [2].
    """
    return np.concatenate([position, axis_angle(quaternion), fingers]).astype(np.float32)


def turned(pixels: np.ndarray) -> np.ndarray:
    """Rows and columns reversed: uint8 [H, W, 3] turned by 180 degrees."""
    return np.ascontiguousarray(pixels[::-1, ::-1])


def checked_gripper_range(name: str) -> GripperRange:
    """One of ``GRIPPER_RANGES``.

    Raises:
        EnvError: It is none of them.
    """
    if name not in GRIPPER_RANGES:
        raise EnvError(f"There is no gripper range {name!r}.{suggest(name, GRIPPER_RANGES)}")
    return name  # type: ignore[return-value]


def gripper_bounds(convention: GripperRange) -> tuple[float, float]:
    """(least, greatest) of a gripper command under a convention."""
    return (-1.0, 1.0) if convention == "open_-1_close_1" else (0.0, 1.0)


def to_libero_gripper(value: float, convention: GripperRange) -> float:
    """A command under a convention as LIBERO's: -1 opens, +1 closes.

    The middle of a range is LIBERO's 0, which moves no finger.
    """
    if convention == "open_-1_close_1":
        return value
    return 2.0 * value - 1.0 if convention == "open_0_close_1" else 1.0 - 2.0 * value


def from_libero_gripper(value: float, convention: GripperRange) -> float:
    """The inverse of :func:`to_libero_gripper`."""
    if convention == "open_-1_close_1":
        return value
    return (value + 1.0) / 2.0 if convention == "open_0_close_1" else (1.0 - value) / 2.0
