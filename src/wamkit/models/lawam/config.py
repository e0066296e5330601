"""LaWAM's configuration and its presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from wamkit.actions.flow_expert import FlowExpertConfig
from wamkit.dynamics.latent_action import LatentActionConfig
from wamkit.dynamics.latent_actions import LatentDynamicsConfig
from wamkit.encoders.byte_text import ByteTokenizer
from wamkit.encoders.dinov3 import DINOv3Config
from wamkit.encoders.patch_encoder import PatchEncoderConfig
from wamkit.encoders.qwen3_vl import Qwen3VLSettings
from wamkit.errors import WamkitError, suggest
from wamkit.losses.reconstruction import ReconstructionKind
from wamkit.models.chunk import StepRounding


@dataclass(frozen=True)
class LaWAMConfig:
    """Everything that fixes LaWAM's computation. Where paper and code differ (papers.md 1.9), the paper is default."""

    encoder: DINOv3Config | PatchEncoderConfig = field(default_factory=DINOv3Config)
    latent_action: LatentDynamicsConfig = field(default_factory=LatentActionConfig)
    """LaWAM's own, or RepWAM's: `wamkit.dynamics.linear_transition.LinearTransitionConfig`."""
    vlm: Qwen3VLSettings = field(default_factory=Qwen3VLSettings)
    action: FlowExpertConfig = field(default_factory=FlowExpertConfig)

    cameras: tuple[str, ...] = ("image",)
    """The primary view first (LAM and VLM); the others are auxiliary (VLM only, after the latent-action queries)."""
    latent_queries: int = 8
    action_queries: int = 8
    horizon_s: float = 1.2
    """tau: the chunk's length and the subgoal's distance in physical time."""
    max_actions: int = 50
    """Action tokens of a chunk, padding included."""
    valid_steps: StepRounding = "round"
    """How tau * rate becomes a number of actions: the paper rounds (Eq. 6), the code floors."""

    subgoal: Literal["insulated", "coupled", "latent_action_only", "none"] = "insulated"
    """Where the action expert's future comes from. ``insulated``: LaWM's subgoal, detached (knowledge insulation).
    ``coupled``: not detached. ``latent_action_only``: the latent action as one token, without LaWM (the paper's
    ablation). ``none``: no latent action and no world model (the control)."""

    reconstruction: ReconstructionKind = "squared"
    """Paper: squared. Code: smooth_l1 with beta 0.1."""
    kl_weight: float = 1e-5
    """Paper: 1e-5. Code: 5e-5."""
    state_weight: float = 1.0
    dual_view: bool = True
    """Stage ``latent_action`` in training: the encoder and LaWM see each clip under crops and colours of their own
    (appendix C.5), drawn anew at every step. Where a feature store hands out features, its views count instead."""
    distillation_weight: float = 0.1
    subgoal_weight: float = 0.1
    noise_draws: int = 2
    """Noise levels drawn per sample and step (repeated_diffusion_steps)."""
    trunk_image_shift: int = 0
    """Largest random shift, in pixels, of the trunk's pictures in training."""
    trunk_lr_scale: float = 0.3
    """Learning rate of all but the action expert, relative to it (pretraining: 3e-5 against 1e-4)."""


def preset(name: str) -> LaWAMConfig:
    """LaWAM in one of its sizes.

    ``paper``: the published dimensions, pretrained trunks. ``small``: tens of millions of parameters, random
    trunks, self-trained encoder, one GPU for minutes. ``tiny``: a CPU for minutes; the same classes throughout.

    Raises:
        WamkitError: the preset does not exist.
    """
    if name == "paper":
        return LaWAMConfig()
    if name == "small":
        return LaWAMConfig(
            encoder=PatchEncoderConfig(resolution=128, patch=8, width=256, layers=6, heads=8),
            latent_action=LatentActionConfig(
                width=384,
                heads=6,
                encoder_layers=6,
                decoder_layers=6,
                latent_width=32,
                max_state_dim=16,
                state_readout="shared",
            ),
            vlm=Qwen3VLSettings(
                weights=None,
                resolution=128,
                width=384,
                layers=6,
                heads=6,
                key_value_heads=6,
                head_dim=64,
                mlp_width=1024,
                vocabulary=ByteTokenizer.vocabulary,
                rope_theta=1e4,
                rope_sections=(12, 10, 10),
                vision_width=256,
                vision_layers=6,
                vision_heads=4,
                vision_mlp_width=1024,
                vision_patch=8,
                vision_position_grid=16,
                deepstack_layers=(3,),
                freeze_token_embeddings=False,
            ),
            action=FlowExpertConfig(width=384, layers=8, heads=6, action_dim=16, dropout=0.1, time_unit_s=0.05),
            cameras=("corner2_near",),
            horizon_s=0.2,
            max_actions=16,
            noise_draws=4,
            trunk_lr_scale=1.0,
        )
    if name == "tiny":
        return LaWAMConfig(
            encoder=PatchEncoderConfig(resolution=128, patch=16, width=128, layers=4, heads=4),
            latent_action=LatentActionConfig(
                width=128,
                heads=4,
                encoder_layers=2,
                decoder_layers=3,
                latent_width=16,
                max_state_dim=32,
                state_readout="shared",
            ),
            vlm=Qwen3VLSettings(
                weights=None,
                resolution=128,
                width=128,
                layers=2,
                heads=4,
                key_value_heads=4,
                head_dim=32,
                mlp_width=384,
                vocabulary=ByteTokenizer.vocabulary,
                rope_theta=1e4,
                rope_sections=(6, 5, 5),
                vision_width=128,
                vision_layers=2,
                vision_heads=4,
                vision_mlp_width=512,
                vision_patch=16,
                vision_position_grid=8,
                deepstack_layers=(0,),
                freeze_token_embeddings=False,
            ),
            action=FlowExpertConfig(width=128, layers=8, heads=4, action_dim=32, dropout=0.0, time_unit_s=0.0125),
            cameras=("corner2_near",),
            horizon_s=0.2,
            max_actions=16,
            noise_draws=2,
            trunk_lr_scale=1.0,
        )
    raise WamkitError(f"LaWAM has no preset {name!r}.{suggest(name, ('tiny', 'small', 'paper'))}")
