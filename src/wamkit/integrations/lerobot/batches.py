"""LeRobot's batches, already renamed and normalised by its pipeline, as windows and observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_IMAGES, OBS_STATE
from torch import Tensor

from wamkit.data.contract_terms import BodyContract, Contract, VectorContract
from wamkit.data.embodiments import embodiment_id
from wamkit.data.frames import resize_frames
from wamkit.data.statistics import MIN_SCALE
from wamkit.errors import WamkitError, suggest
from wamkit.integrations.lerobot.configuration_wamkit import camera_name
from wamkit.integrations.lerobot.stage_view import StageView
from wamkit.types import Observation, Window


class BatchError(WamkitError, KeyError):
    """A batch that lacks what the policy needs."""

    __str__ = Exception.__str__  # KeyError would show the message in quotes


def window_of(
    batch: Mapping[str, Any], cameras: Sequence[str], view: StageView, contract: Contract, body: BodyContract
) -> Window:
    """A training batch as a window.

    Args:
        batch: LeRobot's keys; states and actions normalised, pictures in [0, 1] or uint8, with ``*_is_pad``.
        cameras: The model's, the primary one first.
        view: What the stage asked for.
        contract: Of the policy.
        body: The data set's robot.

    Raises:
        BatchError: a camera is missing.
    """
    frame_count = len(view.frame_offsets_s)
    frames, frame_valid = {}, {}
    for camera in cameras:
        key = _picture_key(batch, camera)
        pictures = _with_time(batch[key], 5)
        frames[camera] = _pictures(pictures, contract)
        frame_valid[camera] = _present(batch, key, pictures)
    size, device = len(frames[cameras[0]]), frames[cameras[0]].device
    shown = frame_valid[cameras[0]]
    if OBS_STATE in batch and body.state is not None:
        state = _constants_zeroed(_with_time(batch[OBS_STATE], 3).float(), body.state)
        state_valid = _present(batch, OBS_STATE, state)[..., None].expand_as(state)
    else:
        state = torch.zeros(size, frame_count, 0, device=device)
        state_valid = torch.zeros(state.shape, dtype=torch.bool, device=device)
    steps = torch.arange(view.max_actions, device=device)
    if ACTION in batch and batch[ACTION] is not None and body.action is not None:
        given = _constants_zeroed(batch[ACTION].float(), body.action)
        inside = (steps < view.spec.action_count(body.rate_hz)) & _present(batch, ACTION, given)
        action_valid = inside[..., None].expand_as(given)
        actions = torch.where(action_valid, given, 0.0)
    else:
        actions = torch.zeros(size, view.max_actions, 0, device=device)
        action_valid = torch.zeros(actions.shape, dtype=torch.bool, device=device)
    # The times of the frames that were really read, as in `SecondsAhead`.
    times = torch.tensor([round(offset * body.rate_hz) / body.rate_hz for offset in view.frame_offsets_s])
    return Window(
        frames=frames,
        frame_times=times.to(device).expand(size, -1),
        frame_valid=frame_valid,
        state=state,
        state_valid=state_valid & shown.any(dim=1)[:, None, None],
        actions=actions,
        action_valid=action_valid,
        action_times=(steps / body.rate_hz).expand(size, -1),
        rate_hz=torch.full((size,), body.rate_hz, device=device),
        task=_tasks(batch, size),
        embodiment=torch.full((size,), embodiment_id(body.embodiment), dtype=torch.long, device=device),
    )


def observation_of(
    batch: Mapping[str, Any], cameras: Sequence[str], contract: Contract, body: BodyContract
) -> Observation:
    """What a policy sees now; the batch as for `window_of`, without the axis of time.

    Raises:
        BatchError: a camera is missing.
    """
    images = {}
    for camera in cameras:
        pictures = batch[_picture_key(batch, camera)]
        images[camera] = _pictures(pictures.unsqueeze(1) if pictures.ndim == 4 else pictures, contract)[:, 0]
    first = images[cameras[0]]
    size, device = len(first), first.device
    state = None
    if OBS_STATE in batch and body.state is not None:
        state = _constants_zeroed(_with_time(batch[OBS_STATE], 3)[:, 0].float(), body.state)
    return Observation(
        images=images,
        task=_tasks(batch, size),
        embodiment=torch.full((size,), embodiment_id(body.embodiment), dtype=torch.long, device=device),
        state=state,
        rate_hz=torch.full((size,), body.rate_hz, device=device),
    )


def _picture_key(batch: Mapping[str, Any], camera: str) -> str:
    key = f"{OBS_IMAGES}.{camera}"
    if key in batch:
        return key
    if camera == camera_name(OBS_IMAGE) and OBS_IMAGE in batch:
        return OBS_IMAGE
    had = [camera_name(name) for name in batch if name.startswith(OBS_IMAGE) and not name.endswith("_is_pad")]
    raise BatchError(
        f"the policy needs camera {camera!r}; the observation has {', '.join(had) or 'none'}.{suggest(camera, had)}"
        f' Rename one: --rename_map=\'{{"observation.image": "{key}"}}\'.'
    )


def _with_time(values: Tensor, dimensions: int) -> Tensor:
    """LeRobot drops the axis of time where a video was asked for one frame."""
    return values.unsqueeze(1) if values.ndim == dimensions - 1 else values


def _pictures(pictures: Tensor, contract: Contract) -> Tensor:
    """uint8 ``[B, T, 3, H, W]`` at the model's resolution, as `wamkit.load` would make them."""
    if pictures.dtype != torch.uint8:
        pictures = (pictures.float() * 255.0).round_().clamp_(0, 255).to(torch.uint8)
    flat = pictures.flatten(0, 1)
    resized = resize_frames(flat.movedim(1, -1), contract.resolution, contract.resize)
    return resized.unflatten(0, pictures.shape[:2])


def _present(batch: Mapping[str, Any], key: str, values: Tensor) -> Tensor:
    """Bool ``[B, T]``: False where LeRobot repeated a frame or an action past the episode's end."""
    padded = batch.get(f"{key}_is_pad")
    if padded is None:
        return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    return ~padded.to(values.device).reshape(values.shape[:2])


def _constants_zeroed(values: Tensor, vector: VectorContract) -> Tensor:
    """LeRobot divides a constant by almost nothing; here it is 0, as in `wamkit.data.normalize`."""
    constant = torch.tensor([std < MIN_SCALE for std in vector.std], device=values.device)
    return torch.where(constant, 0.0, values)


def _tasks(batch: Mapping[str, Any], size: int) -> tuple[str, ...]:
    given = batch.get("task", "")
    return (given,) * size if isinstance(given, str) else tuple(str(task) for task in given)
