"""Random windows of a robot, for tests and for counting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wamkit.models.chunk import StepRounding, chunk_times
from wamkit.types import Window


def fake_robot_window(
    *,
    batch_size: int,
    cameras: Sequence[str],
    size: tuple[int, int],
    frame_times: Sequence[float],
    horizon_s: float,
    max_actions: int,
    valid_steps: StepRounding,
    state_dim: int,
    action_dim: int,
    seed: int,
) -> Window:
    """Random frames, states and actions of a robot at half its padded chunk's rate.

    Args:
        batch_size: B.
        cameras: names.
        size: height and width of each camera's frames.
        frame_times: seconds from the present.
        horizon_s: tau.
        max_actions: K, padding included.
        valid_steps: see `chunk_times`.
        state_dim: S.
        action_dim: A.
        seed: of everything that is random.
    """
    generator, frames = torch.Generator().manual_seed(seed), len(frame_times)
    rate = torch.full((batch_size,), round(0.5 * max_actions) / horizon_s)
    times, inside = chunk_times(rate, horizon_s=horizon_s, max_actions=max_actions, valid_steps=valid_steps)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shape = (batch_size, frames, 3, *size)
    return Window(
        frames={camera: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for camera in cameras},
        frame_times=torch.tensor(frame_times, dtype=torch.float32).expand(batch_size, -1),
        frame_valid={camera: torch.ones(batch_size, frames, dtype=torch.bool) for camera in cameras},
        state=normal(batch_size, frames, state_dim),
        state_valid=torch.ones(batch_size, frames, state_dim, dtype=torch.bool),
        actions=normal(batch_size, max_actions, action_dim),
        action_valid=inside[:, :, None].expand(-1, -1, action_dim),
        action_times=times,
        rate_hz=rate,
        task=("open the drawer",) * batch_size,
        embodiment=torch.ones(batch_size, dtype=torch.long),
    )
