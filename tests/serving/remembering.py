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
        self._tell(actions.sum(dim=1))

    def _tell(self, added: torch.Tensor) -> None:
        assert self._rows is not None, "nothing is under way"
        self._rows = tuple((total + own, looks) for (total, looks), own in zip(self._rows, added, strict=True))

    def act(self, observation: Observation, *, noise: Any = None, generator: Any = None) -> ActionChunk:
        if "explode" in observation.task:
            raise ZeroDivisionError("in the middle of a batch")
        known = (None,) * observation.batch_size if self._rows is None else self._rows
        pairs = zip(known, range(observation.batch_size), strict=True)
        self._rows = tuple((torch.zeros(2), 1) if row is None else (row[0], row[1] + 1) for row, _ in pairs)
        chunk = torch.arange(CHUNK)[:, None]
        rows = torch.stack([total + looks + chunk for total, looks in self._rows])
        times = torch.arange(CHUNK)[None] / observation.rate_hz[:, None]
        return ActionChunk(actions=rows.float(), times=times, valid=torch.ones(len(rows), CHUNK, dtype=torch.bool))

    def remember(self) -> Any:
        return self._rows

    def recall(self, memory: Any) -> None:
        self._rows = memory


class Watching(Remembering):
    """Must see a picture every 0.1 s: each adds its brightness, times its place in the row of pictures, to the sum."""

    picture_interval_s = 0.1  # type: ignore[assignment]

    def observed(self, images: Any) -> None:
        brightness = images["front"].float().mean(dim=(2, 3, 4))
        places = torch.arange(1, brightness.shape[1] + 1)
        self._tell((brightness * places).sum(dim=1)[:, None].expand(-1, 2))


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
