"""Numbers for bodies: which row of a model's per-embodiment tables belongs to which robot.

The range 0..31 and the fixed points human = 0 and LIBERO = 25 are those of the published LaWAM checkpoints
(32 embodiments; state and action losses skip embodiment 0). The other numbers are this library's own and never change:
a checkpoint stores only the number.
"""

from __future__ import annotations

from wamkit.errors import WamkitError, suggest

EMBODIMENTS: dict[str, int] = {
    "human": 0,
    "metaworld": 1,
    "droid": 2,
    "bridge": 3,
    "rt1": 4,
    "unitree_g1": 5,
    "pusht": 6,
    "robotwin": 7,
    "aloha": 8,
    "so100": 9,
    "so101": 10,
    "koch": 11,
    "xarm": 12,
    "ur5": 13,
    "franka": 14,
    "agibot": 15,
    "robocasa": 16,
    "calvin": 17,
    "maniskill": 18,
    "libero": 25,
    "custom": 31,
}
"""Name to number. ``custom`` is for a robot that has no name here yet; numbers not listed are free."""

LIBERO_ACTION: tuple[str, ...] = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper")
"""LIBERO's action: displacement, rotation and gripper command."""
LIBERO_STATE: tuple[str, ...] = (*LIBERO_ACTION, "gripper")
"""LIBERO's state: pose of the end effector and both fingers, which published data sets give one name."""

MAX_EMBODIMENTS = 32
"""Rows of every per-embodiment table."""


class UnknownEmbodimentError(WamkitError, KeyError):
    """An embodiment name or number that is not in the table."""

    __str__ = Exception.__str__  # KeyError would show the message in quotes


def embodiment_id(name: str) -> int:
    """The number of an embodiment.

    Args:
        name: A key of :data:`EMBODIMENTS`.

    Returns:
        A number in 0..31.

    Raises:
        UnknownEmbodimentError: If the name is not in the table; the message suggests the nearest.
    """
    try:
        return EMBODIMENTS[name]
    except KeyError:
        raise UnknownEmbodimentError(
            f"Unknown embodiment {name!r}.{suggest(name, EMBODIMENTS)} A robot without an entry is 'custom'."
        ) from None


def embodiment_name(number: int) -> str:
    """The name of an embodiment number: the inverse of :func:`embodiment_id`.

    Raises:
        UnknownEmbodimentError: If no embodiment has this number.
    """
    for name, known in EMBODIMENTS.items():
        if known == number:
            return name
    raise UnknownEmbodimentError(f"No embodiment has the number {number}; the known ones are {EMBODIMENTS}.")
