"""What a robot sees, under LeRobot's keys, as the `Observation` that a model takes: checked, resized and normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from wamkit.data.contract_terms import BodyContract, Contract
from wamkit.data.embodiments import embodiment_id
from wamkit.data.frames import resize_frames
from wamkit.data.normalize import Normalizer
from wamkit.errors import suggest
from wamkit.inference.errors import PolicyError
from wamkit.types import Observation

IMAGE_PREFIX = "observation.images."
STATE_KEY = "observation.state"


def observation_of(
    seen: Sequence[Mapping[str, Any]],
    cameras: Sequence[str],
    body: BodyContract,
    contract: Contract,
    normalizer: Normalizer,
) -> Observation:
    """Some samples as one batch, on the CPU.

    Args:
        seen: One mapping for each sample: ``observation.images.<camera>``, ``observation.state``, ``task``.
        cameras: The model's.
        body: The robot that sees this.
        contract: Of the policy.
        normalizer: Of the policy.

    Raises:
        PolicyError: A camera is missing, or its picture is none.
    """
    state = None
    images = pictures_of(seen, cameras, contract)
    if body.state is not None and all(STATE_KEY in entry for entry in seen):
        raw = np.stack([np.asarray(entry[STATE_KEY], np.float32) for entry in seen])
        state = normalizer.normalize_state(torch.from_numpy(raw), body.statistics)
    return Observation(
        images=images,
        task=tuple(str(entry.get("task", "")) for entry in seen),
        embodiment=torch.full((len(seen),), embodiment_id(body.embodiment), dtype=torch.long),
        state=state,
        rate_hz=torch.full((len(seen),), float(body.rate_hz)),
    )


def pictures_of(
    seen: Sequence[Mapping[str, Any]], cameras: Sequence[str], contract: Contract
) -> dict[str, UInt8[Tensor, "n 3 H W"]]:
    """Each camera's pictures, as the recordings' were made.

    Raises:
        PolicyError: A camera is missing, or its picture is none.
    """
    for entry in seen:
        for camera in cameras:
            if IMAGE_PREFIX + camera not in entry:
                had = [key.removeprefix(IMAGE_PREFIX) for key in entry if key.startswith(IMAGE_PREFIX)]
                raise PolicyError(
                    f"the policy needs camera {camera!r}; the observation has {', '.join(had) or 'none'}."
                    f"{suggest(camera, had)}"
                )
    return {
        camera: torch.cat([picture_of(entry[IMAGE_PREFIX + camera], camera, contract) for entry in seen])
        for camera in cameras
    }


def picture_of(value: Any, camera: str, contract: Contract) -> UInt8[Tensor, "1 3 H W"]:
    """A camera's picture as the recordings' were made: at the contract's resolution.

    Args:
        value: uint8 [h, w, 3].
        camera: Its name.
        contract: Of the policy.

    Raises:
        PolicyError: It is no such array.
    """
    picture = np.asarray(value)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise PolicyError(
            f"camera {camera!r} must be uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}:"
            " convert it to RGB in 0..255 with the channels last"
        )
    return resize_frames(picture[None], contract.resolution, contract.resize)
