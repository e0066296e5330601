"""Forward dynamics under true, swapped and no actions, of models whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from wamkit.evaluation.forward_dynamics import forward_dynamics
from wamkit.evaluation.world_metrics import WorldMetricsError
from wamkit.models.fake_window import fake_robot_window
from wamkit.types import Future


class Bright(nn.Module):
    """A world in which a picture's brightness is the running sum of the actions; the model knows, or copies."""

    name = "bright"
    capabilities = SimpleNamespace(action_conditioned=True, imagines=("pixels",))
    config = SimpleNamespace(cameras=("front",))

    def __init__(self, *, listens: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.listens = listens

    def pictures_of(self, frames, size):
        return frames["front"].float() / 255.0

    def imagine(self, observation, actions=None):
        present = observation.images["front"].float() / 255.0
        video = present.unsqueeze(1).repeat(1, 4, 1, 1, 1)
        if self.listens and actions is not None:
            video = video + actions[..., 0].cumsum(dim=1)[:, :, None, None, None]
        times = torch.arange(1, 5) / 10.0
        return Future(space="pixels", values=video, times=times.expand(len(video), -1), present=present)


def window(seed: int):
    made = fake_robot_window(
        batch_size=6, cameras=("front",), size=(4, 4), frame_times=(0.0, 0.1, 0.2, 0.3, 0.4), horizon_s=0.4,
        max_actions=8, valid_steps="round", state_dim=2, action_dim=1, seed=seed,
    )  # fmt: skip
    actions = torch.rand(6, 8, 1, generator=torch.Generator().manual_seed(seed)) * 0.1
    levels = torch.cat([torch.zeros(6, 1), actions[:, :4, 0].cumsum(dim=1)], dim=1) + 0.2
    pictures = (levels[:, :, None, None, None].expand(-1, -1, 3, 4, 4) * 255).round().to(torch.uint8)
    from dataclasses import replace

    return replace(made, frames={"front": pictures}, actions=actions)


def test_a_model_that_listens_and_one_that_copies():
    windows, episodes = [window(0), window(1)], [0] * 6 + [1] * 6
    found = forward_dynamics(Bright(listens=True), windows, episodes)
    assert found["n"] == 12
    assert found["horizon_s"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert found["over_copy"] < 0.01
    assert found["swapped_over_true"] > 10
    assert found["squared_error"]["none"] == pytest.approx(found["squared_error"]["copy_present"])
    deaf = forward_dynamics(Bright(listens=False), windows, episodes)
    assert deaf["over_copy"] == pytest.approx(1.0)
    assert deaf["swapped_over_true_ci95"] == pytest.approx([1.0, 1.0])


def test_models_that_cannot_be_told_actions_are_refused():
    deaf = Bright(listens=False)
    deaf.capabilities = SimpleNamespace(action_conditioned=False, imagines=("pixels",))
    with pytest.raises(WorldMetricsError, match="does not imagine pixels under given actions"):
        forward_dynamics(deaf, [window(0)], [0] * 6)
