"""LingBot-VA's configuration and its presets: `CausalModelConfig` with other numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wamkit.actions.grouped_actions import OwnExpert, SharedBlocks
from wamkit.dynamics.video_dit import VideoDiTConfig, wan22_5b
from wamkit.encoders.umt5 import UMT5Settings
from wamkit.encoders.wan_vae import wan22_vae
from wamkit.errors import WamkitError, suggest
from wamkit.models.causal.config import CausalModelConfig
from wamkit.models.video.config import byte_text, compact_vae


@dataclass(frozen=True)
class LingBotVAConfig(CausalModelConfig):
    """Everything that fixes LingBot-VA's computation."""


def _published() -> dict[str, Any]:
    """What its papers and code have in common at every size (papers.md 5)."""
    return dict(
        order="after_video",
        forward_share=0.0,
        noisy_history=0.5,
        noisy_history_level=0.5,
        levels="frame",
        weighting="bell",
        video_shift=5.0,
    )


def preset(name: str) -> LingBotVAConfig:
    """LingBot-VA in one of its sizes.

    ``paper``: the released code's dimensions (one backbone for both modalities) and LIBERO settings. ``small`` and
    ``tiny``: an action expert of its own, as the paper draws it, own VAE and backbone; the same classes throughout.

    Raises:
        WamkitError: the preset does not exist.
    """
    if name == "paper":
        return LingBotVAConfig(
            tokenizer=wan22_vae(),
            text=UMT5Settings(weights="Wan-AI/Wan2.2-TI2V-5B-Diffusers", max_tokens=512, prompt="{task}"),
            video=wan22_5b(),
            action=SharedBlocks(),
            cameras=("image", "image2"),
            canvas="side_by_side",
            resolution=(128, 128),
            frame_s=0.2,
            actions_per_frame=4,
            chunk_frames=4,
            window=60,
            video_steps=20,
            action_steps=50,
            action_shift=0.05,
            video_guidance=5.0,
            **_published(),
        )
    if name == "small":
        video = VideoDiTConfig(
            weights=None,
            patch=(1, 2, 2),
            channels=48,
            heads=6,
            head_width=64,
            mlp_width=1024,
            layers=12,
            text_width=256,
        )
        return LingBotVAConfig(
            tokenizer=compact_vae(48),
            text=byte_text(256, max_tokens=128),
            video=video,
            action=OwnExpert(action_dim=16, width=192, mlp_width=768),
            **_metaworld(training_frames=8),
        )
    if name == "tiny":
        video = VideoDiTConfig(
            weights=None,
            patch=(1, 2, 2),
            channels=16,
            heads=4,
            head_width=32,
            mlp_width=384,
            layers=6,
            text_width=64,
        )
        return LingBotVAConfig(
            # Four cells a token: with 48 channels their noise would not fit through the expert.
            tokenizer=compact_vae(16, channels=16),
            text=byte_text(64, max_tokens=64),
            video=video,
            action=OwnExpert(action_dim=32, width=96, mlp_width=256),
            **_metaworld(training_frames=4),
        )
    raise WamkitError(f"LingBot-VA has no preset {name!r}.{suggest(name, ('tiny', 'small', 'paper'))}")


def _metaworld(*, training_frames: int) -> dict[str, Any]:
    """One near view; a latent frame is the tenth of a second, 8 actions at MetaWorld's 80 Hz, and shows its end.

    Video is denoised in three steps to the noise level 0.4, as the paper has it, and the actions are read off that.
    """
    return _published() | dict(
        cameras=("corner2_near",),
        resolution=(128, 128),
        frame_s=0.1,
        pictures="held",
        actions_per_frame=8,
        training_frames=training_frames,
        window=training_frames // 2,
        action_dropout=0.2,
        video_steps=3,
        video_until=0.4,
    )
