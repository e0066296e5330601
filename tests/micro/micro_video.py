"""Configs of the video models small enough for tests by the dozen."""

from __future__ import annotations

from dataclasses import replace

from micro_weights import named_weights

from wamkit.actions.action_dit import ActionDiTConfig
from wamkit.actions.state_fusion import StateFusionConfig
from wamkit.dynamics.video_dit import LoRASettings, VideoDiTConfig
from wamkit.encoders.wan_vae import WanVAEConfig
from wamkit.models.fast_wam import FastWAM, FastWAMConfig
from wamkit.models.light_wam import LightWAM, LightWAMConfig
from wamkit.models.video.config import byte_text

VAE = WanVAEConfig(
    weights=None,
    channels=4,
    width=4,
    multipliers=(1, 1, 1),
    residual_blocks=1,
    temporal_downsample=(True, True),
    kl_weight=1e-3,
)
VIDEO = VideoDiTConfig(
    weights=None, channels=4, heads=2, head_width=12, mlp_width=32, layers=3, text_width=16, time_width=16
)
COMMON = dict(
    vae=VAE,
    text=byte_text(16, max_tokens=24, layers=1),
    video=VIDEO,
    cameras=("front", "wrist"),
    canvas="side_by_side",
    resolution=(16, 16),
    horizon_s=0.4,
    video_frames=5,
    max_actions=8,
    max_state_dim=6,
    imagine_steps=2,
)
LIGHT = LightWAMConfig(
    **COMMON,
    lora=LoRASettings(rank=2, alpha=4.0),
    adapters=(0, 1),
    adapter_width=8,
    expert=StateFusionConfig(action_dim=6, queries=3, heads=2, layer_width=16, trunk_width=24, step_width=16),
)
FAST = FastWAMConfig(**COMMON, action=ActionDiTConfig(action_dim=6, width=16, mlp_width=24, time_width=16))


def light(**changes) -> LightWAM:
    return named_weights(LightWAM(replace(LIGHT, **changes)))


def fast(**changes) -> FastWAM:
    return named_weights(FastWAM(replace(FAST, **changes)))
