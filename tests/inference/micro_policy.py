"""The smallest LaWAM policy that acts and imagines, on pictures of 32 px; made in no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wamkit.actions.flow_expert import FlowExpertConfig
from wamkit.configuration import to_dict
from wamkit.data.contract_terms import BodyContract, CameraContract, Contract, VectorContract
from wamkit.data.normalize import ACTION, STATE, Normalizer
from wamkit.dynamics.latent_action import LatentActionConfig
from wamkit.encoders.byte_text import ByteTokenizer
from wamkit.encoders.patch_encoder import PatchEncoderConfig
from wamkit.encoders.qwen3_vl import Qwen3VLSettings
from wamkit.inference.policy import Policy
from wamkit.models.lawam import LaWAM, LaWAMConfig
from wamkit.training.checkpoint import WEIGHTS, save_weights, write_json

CAMERA, SIDE, HORIZON = "front", 32, 0.4
CONFIG = LaWAMConfig(
    encoder=PatchEncoderConfig(
        resolution=SIDE, patch=8, width=24, layers=1, heads=2, decoder_width=16, decoder_layers=1
    ),
    latent_action=LatentActionConfig(
        width=32, heads=4, encoder_layers=1, decoder_layers=1, latent_width=8, max_state_dim=6, embodiments=16
    ),
    vlm=Qwen3VLSettings(
        weights=None,
        resolution=SIDE,
        width=32,
        layers=2,
        heads=2,
        key_value_heads=1,
        head_dim=24,
        mlp_width=48,
        vocabulary=ByteTokenizer.vocabulary,
        rope_theta=1e4,
        rope_sections=(4, 4, 4),
        vision_width=16,
        vision_layers=2,
        vision_heads=2,
        vision_mlp_width=32,
        vision_patch=8,
        vision_position_grid=4,
        deepstack_layers=(0,),
        freeze_token_embeddings=False,
        max_instruction_tokens=40,
    ),
    action=FlowExpertConfig(
        width=32, layers=4, heads=4, action_dim=3, embodiments=16, dropout=0.0, time_unit_s=0.05, denoise_steps=2
    ),
    cameras=(CAMERA,),
    latent_queries=2,
    action_queries=2,
    horizon_s=HORIZON,
    max_actions=8,
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
