"""A scripted expert for LIBERO's pick-and-place tasks, which sees the simulator's own poses. For recording only.

It works with OSC_POSE displacements alone and keeps the gripper pointing straight down, as it starts. Whatever is
disturbed or dropped, it looks at the scene anew at each step and goes back to the phase that fits.

Distances were chosen on initial states of the split ``train``; docs/log.md says how often it succeeds on LIBERO's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wamkit.envs.base import EnvError

Phase = Literal["approach", "descend", "close", "lift", "carry", "lower", "open", "leave"]

_UNIT_M = 0.05
"""Displacement of an action of 1."""
_COLLISION_GROUP = 0
"""Of robosuite's shapes; the others are only seen."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """An object as the expert sees it, metres in the world's frame."""

    centre: np.ndarray
    """[3]: the origin of its body, which LIBERO's goals speak of."""
    low: np.ndarray
    """[3]: lower corner of the box around its collision shapes."""
    high: np.ndarray
    """[3]: upper corner."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the expert looks at in one step."""

    hand: np.ndarray
    """[3]: between the finger tips."""
    opening: float
    """Distance of the fingers, metres; 0.08 is wide open."""
    target: Body
    """What is to be moved."""
    goal: Body
    """Where it is to be put."""
    others: tuple[Body, ...]
    """What stands about."""


@dataclass(frozen=True, kw_only=True)
class Grasp:
    """Where to take hold of a kind of object."""

    rim: bool = False
    """By its rim (a bowl, wider than the gripper) rather than across its middle."""
    rim_radius_m: float = 0.048
    depth_m: float = 0.035
    """Finger tips below the object's top."""
    into: bool = False
    """The goal is hollow: let go inside of it, not on top."""


class PickAndPlace:
    """Approach, descend, close, lift, carry, lower, open, leave: one action each step.

    Args:
        grasp: How to take hold.
    """

    def __init__(self, grasp: Grasp) -> None:
        self._grasp = grasp
        self.phase: Phase = "approach"
        self._since = 0
        self._side = 1.0
        self._side_chosen = False

    def act(self, scene: Scene) -> np.ndarray:
        """The action in this scene, float32 [7] in [-1, 1]."""
        self._since += 1
        aim, grip = self._aim(scene)
        displacement = np.clip((aim - scene.hand) / _UNIT_M, -1.0, 1.0)
        return np.array([*displacement, 0.0, 0.0, 0.0, grip], np.float32)

    def _go(self, phase: Phase) -> None:
        self.phase, self._since = phase, 0

    def _grasp_point(self, scene: Scene) -> np.ndarray:
        target, grasp = scene.target, self._grasp
        middle = (target.low + target.high) / 2
        height = max(target.high[2] - grasp.depth_m, target.low[2] + 0.008)
        if not grasp.rim:
            return np.array([middle[0], middle[1], height])
        if not self._side_chosen:
            self._side, self._side_chosen = self._clearer_side(scene), True
        return np.array([middle[0], middle[1] + self._side * grasp.rim_radius_m, height])

    def _clearer_side(self, scene: Scene) -> float:
        """Of the two ends of the bowl along the fingers, the one with more room outside."""

        def room(side: float) -> float:
            middle = (scene.target.low + scene.target.high) / 2
            finger = middle[:2] + np.array([0.0, side * (self._grasp.rim_radius_m + 0.045)])
            gaps = [
                float(np.linalg.norm(np.maximum(0.0, np.maximum(body.low[:2] - finger, finger - body.high[:2]))))
                for body in (*scene.others, scene.goal)
                if body.high[2] > scene.target.low[2] + 0.01
            ]
            return min(gaps, default=1.0)

        return 1.0 if room(1.0) >= room(-1.0) else -1.0

    def _held(self, scene: Scene) -> bool:
        gap = np.maximum(0.0, np.maximum(scene.target.low - scene.hand, scene.hand - scene.target.high))
        return float(np.linalg.norm(gap)) < 0.03

    def _aim(self, scene: Scene) -> tuple[np.ndarray, float]:
        """Where the hand should go and what the gripper should do, after any change of phase."""
        for _ in range(4):  # a phase whose end is already reached passes at once to the next
            before = self.phase
            aim, grip = getattr(self, f"_{self.phase}")(scene)
            if self.phase == before:
                break
        return aim, grip

    def _approach(self, scene: Scene) -> tuple[np.ndarray, float]:
        point = self._grasp_point(scene)
        hover = np.array([*point[:2], max(scene.target.high[2], point[2]) + 0.06])
        away = float(np.linalg.norm(scene.hand[:2] - point[:2]))
        if away < 0.012 and scene.opening > 0.07 and scene.hand[2] < hover[2] + 0.03:
            self._go("descend")
        if away > 0.05:  # over what stands about, not through it
            hover[2] = max(hover[2], *(body.high[2] + 0.07 for body in scene.others), point[2] + 0.1)
        return hover, -1.0

    def _descend(self, scene: Scene) -> tuple[np.ndarray, float]:
        point = self._grasp_point(scene)
        if scene.hand[2] - point[2] < 0.006 or self._since > 30:
            self._go("close")
        if float(np.linalg.norm(scene.hand[:2] - point[:2])) > 0.03:
            self._go("approach")
        return point, -1.0

    def _close(self, scene: Scene) -> tuple[np.ndarray, float]:
        if self._since > 10:
            self._go("lift")
        return scene.hand * np.array([1, 1, 0]) + np.array([0, 0, self._grasp_point(scene)[2]]), 1.0

    def _lift(self, scene: Scene) -> tuple[np.ndarray, float]:
        if not self._held(scene):
            self._drop()
        hang = scene.hand[2] - scene.target.low[2]
        height = self._clearance(scene) + hang
        if scene.hand[2] > height - 0.02:
            self._go("carry")
        return np.array([*scene.hand[:2], height + 0.02]), 1.0

    def _clearance(self, scene: Scene) -> float:
        """Height of the lowest point of what is carried on its way."""
        return max(scene.goal.high[2], *(body.high[2] for body in scene.others), 0.0) + 0.03

    def _release_point(self, scene: Scene) -> np.ndarray:
        """Where the hand must be for the object's origin to be over the goal's."""
        return scene.hand[:2] + scene.goal.centre[:2] - scene.target.centre[:2]

    def _carry(self, scene: Scene) -> tuple[np.ndarray, float]:
        if not self._held(scene):
            self._drop()
        over = self._release_point(scene)
        if float(np.linalg.norm(over - scene.hand[:2])) < 0.012:
            self._go("lower")
        hang = scene.hand[2] - scene.target.low[2]
        return np.array([*over, self._clearance(scene) + hang]), 1.0

    def _lower(self, scene: Scene) -> tuple[np.ndarray, float]:
        if not self._held(scene):
            self._drop()
        hang = scene.hand[2] - scene.target.low[2]
        floor = scene.goal.low[2] + 0.06 if self._grasp.into else scene.goal.high[2]
        height = floor + hang + 0.004
        if scene.hand[2] < height + 0.008 or self._since > 40:
            self._go("open")
        return np.array([*self._release_point(scene), height]), 1.0

    def _open(self, scene: Scene) -> tuple[np.ndarray, float]:
        if self._since > 8:
            self._go("leave")
        return scene.hand, -1.0

    def _leave(self, scene: Scene) -> tuple[np.ndarray, float]:
        if self._since > 25:  # not solved by now: begin again
            self._drop()
        return scene.hand + np.array([0.0, 0.0, 0.05]), -1.0

    def _drop(self) -> None:
        self._side_chosen = False
        self._go("approach")


def expert_for(goal: list[list[str]]) -> tuple[PickAndPlace, str, str]:
    """The expert of a goal, and the names of what it moves and of where.

    Args:
        goal: LIBERO's goal as lists of words, such as ``[["in", "ketchup_1", "basket_1_contain_region"]]``.

    Raises:
        EnvError: The task is more than putting one object in or on another.
    """
    if len(goal) != 1 or len(goal[0]) != 3 or goal[0][0] not in ("in", "on"):
        words = "; ".join(" ".join(part) for part in goal)
        raise EnvError(
            f"There is no expert for the goal ({words}): it puts one object in or on another, as in libero_object and "
            "libero_spatial."
        )
    relation, target, place = goal[0]
    bowl = "bowl" in target
    grasp = Grasp(rim=bowl, depth_m=0.015 if bowl else 0.035, into=relation == "in")
    return PickAndPlace(grasp), target, place


class Shapes:
    """Boxes around the bodies of a robosuite simulation.

    Args:
        sim: The simulation.
        roots: Object's name -> name of its root body; all that hangs on it belongs to it.

    Raises:
        EnvError: An object has no shape that collides.
    """

    def __init__(self, sim: Any, roots: Mapping[str, str]) -> None:
        self._model, self._data = sim.model._model, sim.data._data
        self._roots = {name: self._model.body(root).id for name, root in roots.items()}
        self._geoms = {name: self._geoms_of(root) for name, root in self._roots.items()}
        for name, geoms in self._geoms.items():
            if not len(geoms):
                raise EnvError(f"LIBERO's object {name!r} has no shape that collides.")

    def _geoms_of(self, root: int) -> np.ndarray:
        members = {root}
        for index in range(root + 1, self._model.nbody):  # a child's number is above its parent's
            if self._model.body_parentid[index] in members:
                members.add(index)
        inside = np.isin(self._model.geom_bodyid, list(members))
        return np.flatnonzero(inside & (self._model.geom_group == _COLLISION_GROUP))

    def body(self, name: str) -> Body:
        """One of the objects, as it lies now."""
        geoms = self._geoms[name]
        rotation = self._data.geom_xmat[geoms].reshape(-1, 3, 3)
        boxes = self._model.geom_aabb[geoms]
        middle = self._data.geom_xpos[geoms] + np.einsum("gij,gj->gi", rotation, boxes[:, :3])
        half = np.einsum("gij,gj->gi", np.abs(rotation), boxes[:, 3:])
        centre = self._data.xpos[self._roots[name]].copy()
        return Body(centre=centre, low=(middle - half).min(axis=0), high=(middle + half).max(axis=0))
