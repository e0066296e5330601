"""The smallest LaWAM policy that acts and imagines, on pictures of 32 px; made in no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from micro_lawam import LAWAM

from wamkit.configuration import to_dict
from wamkit.data.contract_terms import BodyContract, CameraContract, Contract, VectorContract
from wamkit.data.normalize import ACTION, STATE, Normalizer
from wamkit.inference.policy import Policy
from wamkit.json_files import write_json
from wamkit.models.lawam import LaWAM
from wamkit.training.checkpoint import WEIGHTS, save_weights

CAMERA, SIDE, HORIZON = "front", LAWAM.encoder.resolution, LAWAM.horizon_s
CONFIG = replace(
    LAWAM,
    latent_action=replace(LAWAM.latent_action, encoder_layers=1, decoder_layers=1, embodiments=16),
    vlm=replace(LAWAM.vlm, max_instruction_tokens=40),
    action=replace(LAWAM.action, action_dim=3, embodiments=16, denoise_steps=2),
    cameras=(CAMERA,),
)


def body(
    rate_hz: float, embodiment: str = "metaworld", scale: float = 1.0, action_dim: int = 2
) -> tuple[BodyContract, dict[str, Any]]:
    """A robot of two joints, or of one, and its statistics."""
    key = f"{embodiment}@{rate_hz:g}Hz"

    def terms(count: int) -> tuple[VectorContract, dict[str, np.ndarray]]:
        low, zero, std, high = ((float(value),) * count for value in (-1, 0, scale, 1))
        vector = VectorContract(names=("x", "y")[:count], mean=zero, std=std, low=low, high=high)
        return vector, {"mean": np.zeros(count), "std": np.full(count, scale)}

    camera = CameraContract(name=CAMERA, recorded_as=CAMERA, size=(SIDE, SIDE))
    (state, state_statistics), (action, action_statistics) = terms(2), terms(action_dim)
    return (
        BodyContract(
            embodiment=embodiment, statistics=key, rate_hz=rate_hz, cameras=(camera,), state=state, action=action
        ),
        {STATE: state_statistics, ACTION: action_statistics},
    )


def micro_policy(
    *rates_hz: float,
    others: tuple[str, ...] = (),
    scale: float = 1.0,
    action_dim: int = 2,
    runtime: Any = False,
    **changes: Any,
) -> Policy:
    """A policy of one robot at these rates (20 Hz), each with its own statistics, and of others at 20 Hz."""
    bodies = [body(rate, scale=scale * 20.0 / rate, action_dim=action_dim) for rate in rates_hz or (20.0,)]
    bodies += [body(20.0, embodiment=name) for name in others]
    normalizer = Normalizer({terms.statistics: statistics for terms, statistics in bodies})
    contract = Contract(
        cameras=((CAMERA, (SIDE, SIDE)),),
        resolution=(SIDE, SIDE),
        resize="stretch",
        horizon_s=HORIZON,
        bodies=tuple(terms for terms, _ in bodies),
        statistics_hash=normalizer.statistics_hash(),
    )
    torch.manual_seed(0)
    model = LaWAM(replace(CONFIG, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # no gate is shut
    return Policy(model, normalizer, contract, stage="policy", precision="fp32", runtime=runtime)


def seen(seed: int = 0, task: str = "open the door") -> dict[str, Any]:
    """An observation of it, under LeRobot's keys."""
    rng = np.random.default_rng(seed)
    return {
        f"observation.images.{CAMERA}": rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
        "observation.state": rng.uniform(-1, 1, 2).astype(np.float32),
        "task": task,
    }


def save(policy: Policy, folder: Path) -> Path:
    """As a training run would have left it."""
    policy.normalizer.save(folder)
    save_weights(policy.model.state_dict(), folder / WEIGHTS)
    described = {"type": policy.model.name, "stage": "policy", **to_dict(policy.model.config)}
    write_json(folder / "config.json", described | {"contract": to_dict(policy.contract)})
    return folder
