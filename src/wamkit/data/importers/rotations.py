"""Euler angles without jumps.

A gripper that points down has a roll near pi, where the angle jumps between pi and -pi in the middle of a motion.
"""

from __future__ import annotations

import numpy as np


def continuous_angles(angles: np.ndarray) -> np.ndarray:
    """The same rotations without jumps, on the same branch in every episode.

    The first row's roll lies in [0, 2 pi), its pitch and yaw in [-pi, pi); later rows differ from the one before by
    less than pi.

    Args:
        angles: Roll, pitch, yaw in radians ``[rows, 3]``.

    Returns:
        ``[rows, 3]``, equal to ``angles`` modulo 2 pi.
    """
    unwrapped = np.unwrap(angles, axis=0)
    lowest = np.array([0.0, -np.pi, -np.pi])
    return unwrapped - 2 * np.pi * np.floor((unwrapped[0] - lowest) / (2 * np.pi))


def nearest_angles(angles: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The same angles modulo 2 pi, each within pi of its reference (a commanded pose beside the measured one)."""
    return reference + (angles - reference + np.pi) % (2 * np.pi) - np.pi
