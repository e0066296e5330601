"""What a client may ask: an observation under openpi's or LeRobot's names, and a few words beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wamkit.errors import suggest
from wamkit.serving.wire import WireError, decode_jpeg

IMAGES, STATE, PROMPT = "observation/images/", "observation/state", "prompt"
_WORDS: dict[str, Any] = {
    "reset": bool,
    "seed": int,
    "echo": (int, float, str),
    "robot": dict,
    "previous": np.ndarray,
    "delay": int,
    "executed": np.ndarray,
    "timestamp": (int, float),
    "observed": dict,
}
"""Keys beside the observation, all optional; see `Request`."""
_MAX_PROMPT, _MAX_ECHO, _MAX_ROWS = 4096, 256, 4096


@dataclass(frozen=True, kw_only=True)
class Request:
    """One message of a client, read and checked."""

    observation: dict[str, Any]
    """LeRobot's keys: pictures uint8 [H, W, 3], the state float32 [S], ``task``."""
    reset: bool = False
    """An episode begins with this observation: forget the session's last one."""
    seed: int | None = None
    """What is sampled depends on it alone; None: on the server's seed, the session and the request's number."""
    echo: int | float | str | None = None
    """Comes back with the reply."""
    robot: Mapping[str, Any] | None = None
    """What the client says of its robot, for the contract check (see `RobotDescription`)."""
    previous: np.ndarray | None = None
    """In-painting: float32 [M, A], the plan from this observation on that the chunk must go on from."""
    delay: int = 0
    """In-painting: how many of ``previous`` will have been executed when the answer comes."""
    executed: np.ndarray | None = None
    """float32 [n, A], physical units: what was executed since the session's last request, for models that remember."""
    observed: tuple[dict[str, np.ndarray], ...] = ()
    """Under LeRobot's keys: pictures of each camera, uint8 [H, W, 3], seen since then, oldest first."""
    timestamp: float | None = None
    """Seconds since the episode's start by the robot's clock, for the live page; None: the server's clock."""


@dataclass(frozen=True, kw_only=True)
class RequestFormat:
    """The observation that a policy takes, and how a message is read into it."""

    cameras: Mapping[str, tuple[int, int]]
    """Name -> (height, width)."""
    state_names: tuple[str, ...] = ()
    """Dimensions of the state; empty where the policy takes none."""
    action_dim: int
    inpaints: bool = False
    """Whether a request may ask to go on from a plan."""
    pictures: int = 0
    """Most pictures of a camera that a request may show of the time since the one before; 0: the policy wants none."""

    def metadata(self) -> dict[str, Any]:
        """Each key with its shape and type, as the first frame of a session tells it."""
        keys: dict[str, Any] = {
            IMAGES + camera: {"shape": [*size, 3], "dtype": "uint8", "jpeg": True}
            for camera, size in self.cameras.items()
        }
        if self.state_names:
            keys[STATE] = {"shape": [len(self.state_names)], "dtype": "float32", "names": list(self.state_names)}
        return keys | {PROMPT: {"shape": [], "dtype": "str"}}

    def raw_bytes(self) -> int:
        """Bytes of an observation without JPEG: pictures, state and the longest prompt."""
        pictures = sum(3 * height * width for height, width in self.cameras.values())
        return pictures * (1 + self.pictures) + 8 * len(self.state_names) + 4 * _MAX_PROMPT

    def read(self, message: Any) -> Request:
        """A message as a request.

        Raises:
            WireError: It is no dictionary, a key is missing, unknown or given twice, or a value has another type,
                another shape, or is not finite.
        """
        if not isinstance(message, dict):
            raise WireError(f"a request is a dictionary, not a {type(message).__name__}.")
        spellings, given = self._spellings(), dict[str, Any]()
        for key, value in message.items():
            if not isinstance(key, str):
                raise WireError(f"a key of a request is a string, not {str(key)[:40]!r}.")
            name = spellings.get(key, key)
            if name in given:
                raise WireError(f"{name!r} is given twice, under two spellings.")
            given[name] = value
        wanted = self.metadata()
        for name in given:
            if name not in wanted and name not in _WORDS:
                raise WireError(f"the policy takes no {name[:80]!r}.{suggest(name[:80], wanted)}")
        if missing := [name for name in wanted if name not in given]:
            raise WireError(f"missing {', '.join(missing)}; the policy takes {', '.join(wanted)}.")
        observation: dict[str, Any] = {
            f"observation.images.{camera}": _picture(camera, given[IMAGES + camera], size)
            for camera, size in self.cameras.items()
        }
        if self.state_names:
            observation["observation.state"] = _state(given[STATE], self.state_names)
        prompt = given[PROMPT]
        if not isinstance(prompt, str) or len(prompt) > _MAX_PROMPT:
            raise WireError(f"{PROMPT} must be a string of at most {_MAX_PROMPT} characters.")
        words = _words(given)
        if "previous" in words:
            words["previous"] = self._plan(words["previous"], words.get("delay", 0))
        elif "delay" in words:
            raise WireError("'delay' belongs to 'previous', which is missing.")
        for name in {"executed", "observed"} & words.keys():
            if words.get("reset"):
                raise WireError(f"{name!r} speaks of the episode that 'reset' ends: leave it out at the start of one.")
        if "executed" in words:
            words["executed"] = self._actions("executed", words["executed"])
        if "observed" in words:
            words["observed"] = self._pictures(words["observed"], spellings)
        return Request(observation=observation | {"task": prompt}, **words)

    def _plan(self, value: np.ndarray, delay: int) -> np.ndarray:
        if not self.inpaints:
            raise WireError("this policy cannot go on from a 'previous' plan: execute it without in-painting.")
        plan = self._actions("previous", value)
        if not 0 <= delay <= len(plan):
            raise WireError(f"'delay' must lie in 0..{len(plan)}, the rows of 'previous', not at {delay}.")
        return plan

    def _pictures(self, value: dict[Any, Any], spellings: Mapping[str, str]) -> tuple[dict[str, np.ndarray], ...]:
        """Camera -> pictures, as one dictionary for each moment."""
        if not self.pictures:
            raise WireError("this policy takes no 'observed' pictures between requests.")
        given = {spellings.get(key, key) if isinstance(key, str) else "": pictures for key, pictures in value.items()}
        if given.keys() != {IMAGES + camera for camera in self.cameras}:
            raise WireError(f"'observed' must hold {', '.join(IMAGES + camera for camera in self.cameras)}.")
        counts = {
            len(p) if isinstance(p, list) or (isinstance(p, np.ndarray) and p.ndim) else 0 for p in given.values()
        }
        if len(counts) != 1 or not 1 <= min(counts) <= self.pictures:
            raise WireError(f"'observed' must hold 1 to {self.pictures} pictures of each camera, as many of each.")
        return tuple(
            {
                f"observation.images.{camera}": _picture(camera, given[IMAGES + camera][moment], size)
                for camera, size in self.cameras.items()
            }
            for moment in range(min(counts))
        )

    def _actions(self, name: str, value: np.ndarray) -> np.ndarray:
        """Rows of actions, physical units."""
        fits = value.dtype.kind == "f" and value.ndim == 2 and value.shape[1] == self.action_dim
        if not fits or not 1 <= len(value) <= _MAX_ROWS:
            raise WireError(
                f"{name!r} must be float32 [n, {self.action_dim}] with 1 to {_MAX_ROWS} rows, got {value.dtype} "
                f"{list(value.shape)}."
            )
        actions = _as_float32(value)
        if not np.isfinite(actions).all():
            raise WireError(f"{name!r} is not finite.")
        return actions

    def _spellings(self) -> dict[str, str]:
        """LeRobot's names -> those of the wire."""
        cameras = {f"observation.images.{camera}": IMAGES + camera for camera in self.cameras}
        return cameras | {"observation.state": STATE, "task": PROMPT}


def holds_jpeg(message: Any) -> bool:
    """Whether reading this message means decoding pictures, which takes long enough to do it aside."""
    if not isinstance(message, dict):
        return False
    return "observed" in message or any(isinstance(value, bytes) for value in message.values())


def _picture(camera: str, value: Any, size: tuple[int, int]) -> np.ndarray:
    if isinstance(value, bytes):
        try:
            return decode_jpeg(value, size)
        except WireError as error:
            raise WireError(f"camera {camera!r}: {error}") from error
    if not isinstance(value, np.ndarray):
        raise WireError(f"camera {camera!r} must be an array uint8 [H, W, 3] or a JPEG, not {type(value).__name__}.")
    if value.dtype != np.uint8 or value.shape != (*size, 3):
        raise WireError(
            f"camera {camera!r} must be uint8 {[*size, 3]}, got {value.dtype} {list(value.shape)}: send RGB in 0..255,"
            f" channels last, {size[0]} high and {size[1]} wide, as the policy was trained."
        )
    return value


def _state(value: Any, names: tuple[str, ...]) -> np.ndarray:
    if isinstance(value, list):
        if not all(isinstance(number, int | float) for number in value):
            raise WireError(f"{STATE} must hold numbers.")
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf" or value.shape != (len(names),):
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise WireError(f"{STATE} must be float32 [{len(names)}] ({', '.join(names)}), got {got}.")
    state = _as_float32(value)
    if not np.isfinite(state).all():
        bad = [name for name, number in zip(names, state, strict=True) if not math.isfinite(number)]
        raise WireError(f"{STATE} is not finite in {', '.join(bad)}: look at the sensor before asking again.")
    return state


def _as_float32(value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused for that
        return value.astype(np.float32)


def _words(given: Mapping[str, Any]) -> dict[str, Any]:
    words = {}
    for name, kind in _WORDS.items():
        value = given.get(name)
        if isinstance(value, np.generic):
            value = value.item()
        if value is None:
            continue
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise WireError(f"{name!r} must not be a {type(value).__name__}.")
        words[name] = value
    if not 0 <= words.get("seed", 0) < 1 << 63:
        raise WireError("'seed' must be a whole number from 0 to 2**63 - 1.")
    if not 0.0 <= words.get("timestamp", 0.0) < 1e9:  # neither is NaN
        raise WireError("'timestamp' must be seconds since the episode's start, 0 or more.")
    if len(str(words.get("echo", ""))) > _MAX_ECHO:
        raise WireError(f"'echo' must be a number or at most {_MAX_ECHO} characters.")
    return words
