"""LaWAM's config small enough for tests by the dozen."""

from __future__ import annotations

from dataclasses import replace

from micro_weights import named_weights

from wamkit.actions.flow_expert import FlowExpertConfig
from wamkit.dynamics.latent_action import LatentActionConfig
from wamkit.encoders.byte_text import ByteTokenizer
from wamkit.encoders.patch_encoder import PatchEncoderConfig
from wamkit.encoders.qwen3_vl import Qwen3VLSettings
from wamkit.models.lawam import LaWAM, LaWAMConfig

LAWAM = LaWAMConfig(
    encoder=PatchEncoderConfig(resolution=32, patch=8, width=24, layers=1, heads=2, decoder_width=16, decoder_layers=1),
    latent_action=LatentActionConfig(
        width=32, heads=4, encoder_layers=2, decoder_layers=2, latent_width=8, max_state_dim=6, embodiments=4
    ),
    vlm=Qwen3VLSettings(
        weights=None,
        resolution=32,
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
    ),
    action=FlowExpertConfig(
        width=32, layers=4, heads=4, action_dim=6, embodiments=4, dropout=0.0, time_unit_s=0.05, denoise_steps=4
    ),
    cameras=("front", "wrist"),
    latent_queries=2,
    action_queries=2,
    horizon_s=0.4,
    max_actions=8,
)


def lawam(**changes) -> LaWAM:
    return named_weights(LaWAM(replace(LAWAM, **changes)))
