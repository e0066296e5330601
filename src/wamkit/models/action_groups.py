"""Chunks of actions as groups, one for each latent frame, and back; by physical time, whatever the control rate."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wamkit.errors import WamkitError
from wamkit.models.chunk import StepRounding


class ActionGroupError(WamkitError, ValueError):
    """A control rate at which latent frames hold no whole number of actions, or more than the model has tokens for."""


def steps_of(rate_hz: Float[Tensor, "B"], *, frame_s: float, slots: int, valid_steps: StepRounding) -> Int[Tensor, "B"]:
    """Actions of one latent frame at each sample's rate, tau_frame * h.

    Args:
        rate_hz: h.
        frame_s: seconds of one latent frame.
        slots: action tokens of a latent frame.
        valid_steps: how a product that is no whole number becomes one. Over many frames the actions then drift
            against the frames by the difference, so it may be a tenth of an action at most.

    Raises:
        ActionGroupError: the rate does not fit.
    """
    exact = frame_s * rate_hz.double()
    # A window of 0.1 s at 80 Hz is 8.000000119 in single precision: round what is meant, not what is stored.
    steps = exact.round() if valid_steps == "round" else (exact + 1e-4).floor()
    for rate, wanted, chosen in zip(rate_hz.tolist(), exact.tolist(), steps.tolist(), strict=True):
        if abs(wanted - chosen) > 0.1 or not 1 <= chosen <= slots:
            raise ActionGroupError(
                f"a latent frame of {frame_s:g} s holds {wanted:.2f} actions at {rate:g} Hz, and this model takes a"
                f" whole number from 1 to {slots}: set frame_s to a multiple of {1 / rate:.4g}, or actions_per_frame"
                " higher"
            )
    return steps.long()


def grouped(
    actions: Float[Tensor, "B K A"], steps: Int[Tensor, "B"], frames: int, slots: int
) -> tuple[Float[Tensor, "B F n A"], Bool[Tensor, "B F n"]]:
    """Action i of a chunk as action i mod m of group i div m, and which places hold one of the chunk's K."""
    frame = torch.arange(frames, device=actions.device)[None, :, None]
    slot = torch.arange(slots, device=actions.device)
    index = frame * steps[:, None, None] + slot
    held = (slot < steps[:, None, None]) & (index < actions.shape[1])
    flat = index.clamp(max=actions.shape[1] - 1).flatten(1)
    values = actions.gather(1, flat[:, :, None].expand(-1, -1, actions.shape[2])).unflatten(1, (frames, slots))
    return torch.where(held[..., None], values, 0.0), held.expand(len(actions), -1, -1)


def flattened(groups: Float[Tensor, "B F n A"], steps: Int[Tensor, "B"]) -> Float[Tensor, "B K A"]:
    """The inverse of `grouped`, K = F n places of which the first F m are real and the others zero."""
    frames, slots, width = groups.shape[1:]
    index = torch.arange(frames * slots, device=groups.device)
    frame, slot = index // steps[:, None], index % steps[:, None]
    place = (frame.clamp(max=frames - 1) * slots + slot)[:, :, None].expand(-1, -1, width)
    return torch.where((frame < frames)[..., None], groups.flatten(1, 2).gather(1, place), 0.0)
