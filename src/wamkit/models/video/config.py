"""What every model on a video backbone is configured by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from wamkit.data.canvas import CanvasKind
from wamkit.dynamics.video_dit import VideoDiTConfig
from wamkit.encoders.umt5 import UMT5Settings
from wamkit.encoders.wan_vae import WanVAEConfig
from wamkit.models.chunk import StepRounding


@dataclass(frozen=True)
class VideoModelConfig:
    """VAE, words, backbone, cameras and times; the defaults are Light-WAM's on LIBERO (papers.md 2.2)."""

    vae: WanVAEConfig = field(default_factory=WanVAEConfig)
    text: UMT5Settings = field(default_factory=UMT5Settings)
    video: VideoDiTConfig = field(default_factory=VideoDiTConfig)

    cameras: tuple[str, ...] = ("image", "image2")
    """In the canvas's order."""
    canvas: CanvasKind = "side_by_side"
    resolution: tuple[int, int] = (224, 224)
    """Height and width of each camera's frames."""
    horizon_s: float = 1.6
    """tau: the chunk's and the video's length in physical time."""
    video_frames: int = 9
    """Pictures of a clip, the present included, evenly spread over the horizon; 4 n + 1."""
    max_actions: int = 32
    """Action tokens of a chunk, padding included."""
    valid_steps: StepRounding = "round"
    """How tau * rate becomes a number of actions."""
    max_state_dim: int = 8
    """Proprioception is padded to this and becomes one more token among the words."""
    shift: float = 5.0
    """Of the noise schedule, in training and in sampling."""
    imagine_steps: int = 20
    """Euler steps of `imagine`."""
    video_supervision: Literal["flow_matching", "none"] = "flow_matching"
    """``none``: the policy stage without its video loss, the control of equal size."""
    video_weight: float = 1.0
    action_weight: float = 1.0

    @property
    def frame_offsets_s(self) -> tuple[float, ...]:
        """Seconds from the present of a clip's pictures: what the stages' windows must ask for."""
        last = self.video_frames - 1
        return tuple(self.horizon_s * index / last for index in range(self.video_frames))


def byte_text(width: int, *, max_tokens: int, layers: int = 2) -> UMT5Settings:
    """A frozen random UMT5 over bytes, for presets that are trained from scratch."""
    return UMT5Settings(
        weights=None,
        width=width,
        layers=layers,
        heads=4,
        key_width=width // 4,
        mlp_width=2 * width,
        max_tokens=max_tokens,
        prompt="{task}",
    )


def compact_vae(width: int, *, channels: int = 48) -> WanVAEConfig:
    """A VAE of Wan2.2's kind, 16 x 16 x 4 pixels to a cell, at a small width, trained on the run's own frames."""
    return WanVAEConfig(
        weights=None,
        channels=channels,
        width=width,
        multipliers=(1, 2, 2),
        residual_blocks=1,
        temporal_downsample=(True, True),
        residual=True,
        patch=4,
    )


def self_trained(vae: WanVAEConfig, video: VideoDiTConfig, *, max_tokens: int, max_state_dim: int) -> dict[str, Any]:
    """Fields of a preset without published weights: one near view of MetaWorld, five pictures over 0.2 s."""
    return dict(
        vae=vae,
        text=byte_text(video.text_width, max_tokens=max_tokens),
        video=video,
        cameras=("corner2_near",),
        canvas="single",
        resolution=(128, 128),
        horizon_s=0.2,
        video_frames=5,
        max_actions=16,
        max_state_dim=max_state_dim,
        imagine_steps=10,
    )


def tiny_video() -> dict[str, Any]:
    """`self_trained` in the size of the ``tiny`` presets."""
    video = VideoDiTConfig(
        weights=None, patch=(1, 1, 1), channels=48, heads=4, head_width=32, mlp_width=384, layers=6, text_width=64
    )
    return self_trained(compact_vae(16), video, max_tokens=64, max_state_dim=32)
