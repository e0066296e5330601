"""Fast-WAM's configuration and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wamkit.actions.action_dit import ActionDiTConfig
from wamkit.dynamics.video_dit import VideoDiTConfig, wan22_5b
from wamkit.encoders.umt5 import UMT5Settings
from wamkit.encoders.wan_vae import wan22_vae
from wamkit.errors import WamkitError, suggest
from wamkit.models.video.config import VideoModelConfig, compact_vae, self_trained, tiny_video

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
        video = VideoDiTConfig(
            weights=None,
            patch=(1, 1, 1),
            channels=48,
            heads=6,
            head_width=64,
            mlp_width=1024,
            layers=12,
            text_width=256,
        )
        return FastWAMConfig(
            **self_trained(compact_vae(48), video, max_tokens=128, max_state_dim=16),
            action=ActionDiTConfig(action_dim=16, width=192, mlp_width=768),
        )
    if name == "tiny":
        return FastWAMConfig(**tiny_video(), action=ActionDiTConfig(action_dim=32, width=96, mlp_width=256))
    raise WamkitError(f"Fast-WAM has no preset {name!r}.{suggest(name, ('tiny', 'small', 'paper'))}")
