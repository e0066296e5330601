"""RepWAM's configuration and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from wamkit.actions.grouped_actions import OwnExpert
from wamkit.dynamics.latent_actions import LatentDynamicsConfig
from wamkit.dynamics.linear_transition import LinearTransitionConfig
from wamkit.dynamics.video_dit import VideoDiTConfig
from wamkit.encoders.dinov3 import DINOv3Config
from wamkit.encoders.patch_encoder import PatchEncoderConfig
from wamkit.encoders.repvitok import RepViTokConfig
from wamkit.encoders.repvitok_objective import RepViTokObjectiveConfig
from wamkit.encoders.umt5 import UMT5Settings
from wamkit.errors import WamkitError, suggest
from wamkit.models.causal.config import CausalModelConfig, CausalModelError
from wamkit.models.video.config import byte_text


@dataclass(frozen=True)
class RepWAMConfig(CausalModelConfig):
    """Everything that fixes RepWAM's computation."""

    representation: DINOv3Config | PatchEncoderConfig | None = field(default_factory=DINOv3Config)
    """The frozen encoder that the tokenizer's latents are aligned with; None where the tokenizer only reconstructs.
    One without published weights is trained first, on the run's own frames."""
    latent_action: LatentDynamicsConfig = field(default_factory=LinearTransitionConfig)
    """RepWAM's own, or LaWAM's: either serves."""
    latent_actions: Literal["two_stage", "joint", "none"] = "two_stage"
    """``two_stage``: learned on the frozen tokenizer, in a stage of their own. ``joint``: together with the tokenizer.
    ``none``: no latent actions; then pretraining is on video alone. The paper's ablation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        aligned = isinstance(self.tokenizer, RepViTokConfig) and self.tokenizer.objective.alignment != "none"
        if aligned != (self.representation is not None):
            raise CausalModelError(
                "a tokenizer that is aligned needs a representation, and one that only reconstructs must have none:"
                f" representation is {'set' if self.representation is not None else 'None'} and the tokenizer is"
                f" {'aligned' if aligned else 'not'}"
            )


def wide(width: int, mlp_width: int) -> VideoDiTConfig:
    """A visual expert over RepViTok's latents, each cell a token (papers.md 3.4)."""
    return VideoDiTConfig(
        weights=None, patch=(1, 1, 1), channels=96, heads=width // 128, head_width=128, mlp_width=mlp_width, layers=30
    )


def paper_5b() -> RepWAMConfig:
    """RepWAM-5B: visual width 3072; the feed-forward's width is Wan2.2-5B's, which gives the stated size."""
    return replace(preset("paper"), video=wide(3072, 14336))


def preset(name: str) -> RepWAMConfig:
    """RepWAM in one of its sizes.

    ``paper``: RepWAM-1.3B's published dimensions; no weights are public, so every stage has to be trained. `paper_5b`
    is the larger one. ``small``: tens of millions of parameters, one GPU for minutes. ``tiny``: a CPU for minutes; the
    same classes throughout.

    Raises:
        WamkitError: the preset does not exist.
    """
    if name == "paper":
        # The feed-forward's width is not in the paper: with 5 x 1536 the visual expert has 1.30 billion parameters.
        return RepWAMConfig(
            video=wide(1536, 7680), text=UMT5Settings(weights="Wan-AI/Wan2.1-T2V-1.3B-Diffusers"), frame_s=0.4
        )
    if name == "small":
        return RepWAMConfig(
            **_own(latent_width=32, width=256, layers=4, representation=192, window=5),
            text=byte_text(256, max_tokens=128),
            video=_video(32, heads=6, head_width=64, mlp_width=1024, layers=12, text_width=256),
            action=OwnExpert(action_dim=16, width=192, mlp_width=768),
            **_metaworld(training_frames=8, window=4),
        )
    if name == "tiny":
        return RepWAMConfig(
            # Clips of 5 latent frames: with a wider window every frame would see its first picture in training, and
            # hardly one does while a robot acts.
            **_own(latent_width=16, width=96, layers=2, representation=64, window=2),
            text=byte_text(64, max_tokens=64),
            video=_video(16, heads=4, head_width=32, mlp_width=384, layers=6, text_width=64),
            action=OwnExpert(action_dim=32, width=96, mlp_width=256),
            **_metaworld(training_frames=4, window=2),
        )
    raise WamkitError(f"RepWAM has no preset {name!r}.{suggest(name, ('tiny', 'small', 'paper'))}")


def _own(*, latent_width: int, width: int, layers: int, representation: int, window: int) -> dict[str, Any]:
    """Tokenizer and representation that are trained on the run's own frames."""
    heads = width // 32
    objective = RepViTokObjectiveConfig(
        perceptual_weight=0.0,
        adversarial_weight=0.0,
        discriminator=None,
        representation_width=representation,
    )
    return dict(
        tokenizer=RepViTokConfig(
            width=width,
            heads=heads,
            encoder_layers=layers,
            decoder_layers=layers,
            latent_width=latent_width,
            window=window,
            objective=objective,
        ),
        representation=PatchEncoderConfig(resolution=128, patch=16, width=representation, layers=layers + 1, heads=4),
    )


def _video(channels: int, **sizes: int) -> VideoDiTConfig:
    """Four cells a token: a quarter of the paper's tokens, for presets that must be cheap.

    Few channels, so that a token takes at most half of the expert's width: the velocity holds the token's own noise,
    which an expert can only predict where it fits through.
    """
    return VideoDiTConfig(weights=None, patch=(1, 2, 2), channels=channels, **sizes)


def _metaworld(*, training_frames: int, window: int) -> dict[str, Any]:
    """One near view; a latent frame is the tenth of a second, 8 actions at MetaWorld's 80 Hz, and shows its end."""
    return dict(
        cameras=("corner2_near",),
        resolution=(128, 128),
        frame_s=0.1,
        pictures="held",
        actions_per_frame=8,
        training_frames=training_frames,
        window=window,
        action_dropout=0.2,
        # At this size frames imagined in few steps are a worse guide than none (an estimate, not measured).
        mode="action_only",
    )
