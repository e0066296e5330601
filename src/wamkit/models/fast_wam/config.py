"""Fast-WAM's configuration and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wamkit.actions.action_dit import ActionDiTConfig
from wamkit.dynamics.video_dit import VideoDiTConfig, wan22_5b
from wamkit.encoders.umt5 import UMT5Settings
from wamkit.encoders.wan_vae import WanVAEConfig, wan22_vae
from wamkit.errors import WamkitError, suggest
from wamkit.models.video_config import VideoModelConfig, byte_text

Mode = Literal["uncond", "joint", "idm"]


@dataclass(frozen=True)
class FastWAMConfig(VideoModelConfig):
    """Everything that fixes Fast-WAM's computation."""

    action: ActionDiTConfig = field(default_factory=ActionDiTConfig)
    mode: Mode = "uncond"
    """What the actions see. ``uncond``: the first frame alone, so no video is made at test time. ``joint``: the video
    that is denoised beside them. ``idm``: a video that was made before. Three masks over one set of weights."""
    conditioning_noise: float = 0.5
    """In mode ``idm``: how often the video that actions are trained on is noisy."""


def preset(name: str) -> FastWAMConfig:
    """Fast-WAM in one of its sizes.

    ``paper``: the published dimensions on Wan2.2-TI2V-5B. ``small``: tens of millions of parameters, own VAE and
    backbone, one GPU for minutes. ``tiny``: a CPU for minutes; the same classes throughout.

    Raises:
        WamkitError: the preset does not exist.
    """
    if name == "paper":
        return FastWAMConfig(
            vae=wan22_vae(), video=wan22_5b(), text=UMT5Settings(weights="Wan-AI/Wan2.2-TI2V-5B-Diffusers")
        )
    if name == "small":
        return FastWAMConfig(
            vae=WanVAEConfig(
                weights=None,
                channels=48,
                width=48,
                multipliers=(1, 2, 2),
                residual_blocks=1,
                temporal_downsample=(True, True),
                residual=True,
                patch=4,
            ),
            text=byte_text(256, max_tokens=128),
            video=VideoDiTConfig(
                weights=None,
                patch=(1, 1, 1),
                channels=48,
                heads=6,
                head_width=64,
                mlp_width=1024,
                layers=12,
                text_width=256,
            ),
            cameras=("corner2_near",),
            canvas="single",
            resolution=(128, 128),
            horizon_s=0.2,
            video_frames=5,
            max_actions=16,
            max_state_dim=16,
            imagine_steps=10,
            action=ActionDiTConfig(action_dim=16, width=192, mlp_width=768),
        )
    if name == "tiny":
        return FastWAMConfig(
            vae=WanVAEConfig(
                weights=None,
                channels=48,
                width=16,
                multipliers=(1, 2, 2),
                residual_blocks=1,
                temporal_downsample=(True, True),
                residual=True,
                patch=4,
            ),
            text=byte_text(64, max_tokens=64),
            video=VideoDiTConfig(
                weights=None,
                patch=(1, 1, 1),
                channels=48,
                heads=4,
                head_width=32,
                mlp_width=384,
                layers=6,
                text_width=64,
            ),
            cameras=("corner2_near",),
            canvas="single",
            resolution=(128, 128),
            horizon_s=0.2,
            video_frames=5,
            max_actions=16,
            max_state_dim=32,
            imagine_steps=10,
            action=ActionDiTConfig(action_dim=32, width=96, mlp_width=256),
        )
    raise WamkitError(f"Fast-WAM has no preset {name!r}.{suggest(name, ('tiny', 'small', 'paper'))}")
