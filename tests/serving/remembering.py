"""A model with a memory, small enough to compute by hand: its chunk tells what it remembers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from wamkit.data.contract_terms import BodyContract, CameraContract, Contract, VectorContract
from wamkit.data.normalize import ACTION, Normalizer
from wamkit.inference.policy import Policy
from wamkit.models.base import Capabilities, WorldActionModel
from wamkit.types import ActionChunk, Observation

CHUNK, RATE = 4, 10.0
MEAN, STD = np.array([1.0, -2.0]), np.array([0.5, 4.0])
SIZE = (8, 8)


class Remembering(WorldActionModel):
    """Chunk row k: the normalised sum of all that was executed in the episode, + looks so far, + k."""

    name = "remembering"
    capabilities = Capabilities(
        coupling="joint",
        modality="latent",
        paradigm="joint_video_action",
        act_needs_future=False,
        imagines=(),
        action_conditioned=False,
        trains_action_free=False,
        remembers=True,
    )
    stages = ("policy",)
    preset = prepare_stage = loss = fake_window = imagine = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.config = SimpleNamespace(cameras=("front",))
        self.recall(None)

    def executed(self, actions: torch.Tensor) -> None:
        self._total = self._total + actions.sum(dim=1)

    def act(self, observation: Observation, *, noise: Any = None, generator: Any = None) -> ActionChunk:
        if observation.task[0] == "explode":
            raise ZeroDivisionError("in the middle of a batch")
        self._looks = self._looks + 1
        rows = self._total[:, None] + self._looks + torch.arange(CHUNK)[:, None]
        times = torch.arange(CHUNK)[None] / observation.rate_hz[:, None]
        return ActionChunk(actions=rows.float(), times=times, valid=torch.ones(1, CHUNK, dtype=torch.bool))

    def remember(self) -> Any:
        return ((self._total, self._looks),)  # one entry for each row; this model has one row

    def recall(self, memory: Any) -> None:
        self._total, self._looks = (torch.zeros(1, 2), 0) if memory is None else memory[0]


class Watching(Remembering):
    """Must see a picture every 0.1 s: each adds its brightness, times its place in the row of pictures, to the sum."""

    picture_interval_s = 0.1  # type: ignore[assignment]

    def observed(self, images: Any) -> None:
        brightness = images["front"].float().mean(dim=(2, 3, 4))
        places = torch.arange(1, brightness.shape[1] + 1)
        self._total = self._total + (brightness * places).sum(dim=1)[:, None]


def remembering_policy(model: type[Remembering] = Remembering) -> Policy:
    numbers = lambda value: (float(value),) * 2  # noqa: E731
    action = VectorContract(names=("x", "y"), mean=tuple(MEAN), std=tuple(STD), low=numbers(-9), high=numbers(9))
    camera = CameraContract(name="front", recorded_as="front", size=SIZE)
    body = BodyContract(embodiment="custom", statistics="custom", rate_hz=RATE, cameras=(camera,), action=action)
    contract = Contract(cameras=(("front", SIZE),), resolution=SIZE, resize="stretch", horizon_s=0.4, bodies=(body,))
    normalizer = Normalizer({"custom": {ACTION: {"mean": MEAN, "std": STD}}})
    return Policy(model().eval(), normalizer, contract, precision="fp32")


def expected(executed: np.ndarray, looks: int) -> np.ndarray:
    """The chunk in physical units, computed without any of the above: [K, 2]."""
    total = ((executed - MEAN) / STD).sum(axis=0) if len(executed) else np.zeros(2)
    return (total + looks + np.arange(CHUNK)[:, None]) * STD + MEAN


def seen(task: str = "go", gray: int = 0) -> dict[str, Any]:
    return {"observation.images.front": np.full((*SIZE, 3), gray, np.uint8), "task": task}
