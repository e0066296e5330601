"""Configs of the causal models small enough for tests by the dozen."""

from __future__ import annotations

from dataclasses import replace

from micro_video import VAE
from micro_weights import named_weights

from wamkit.actions.grouped_actions import OwnExpert, SharedBlocks
from wamkit.dynamics.linear_transition import LinearTransitionConfig
from wamkit.dynamics.video_dit import VideoDiTConfig
from wamkit.encoders.patch_encoder import PatchEncoderConfig
from wamkit.encoders.repvitok import RepViTokConfig
from wamkit.encoders.repvitok_objective import RepViTokObjectiveConfig
from wamkit.models.lingbot_va import LingBotVA, LingBotVAConfig
from wamkit.models.repwam import RepWAM, RepWAMConfig
from wamkit.models.video.config import byte_text

OBJECTIVE = RepViTokObjectiveConfig(
    perceptual_weight=0.0, adversarial_weight=0.0, discriminator=None, representation_width=8
)
TOKENIZER = RepViTokConfig(
    patch=8, width=16, heads=2, encoder_layers=1, decoder_layers=1, latent_width=6, objective=OBJECTIVE
)
ENCODER = PatchEncoderConfig(resolution=16, patch=8, width=8, layers=1, heads=2, decoder_width=8, decoder_layers=1)
OWN = OwnExpert(action_dim=5, width=12, mlp_width=16)


def video(channels: int) -> VideoDiTConfig:
    return VideoDiTConfig(
        weights=None,
        patch=(1, 1, 1),
        channels=channels,
        heads=2,
        head_width=12,
        mlp_width=32,
        layers=2,
        text_width=16,
        time_width=16,
    )


COMMON = dict(
    text=byte_text(16, max_tokens=24, layers=1),
    cameras=("front",),
    resolution=(16, 16),
    frame_s=0.2,
    actions_per_frame=4,
    training_frames=4,
    window=3,
    video_steps=2,
    action_steps=3,
)
REPWAM = RepWAMConfig(
    tokenizer=TOKENIZER,
    representation=ENCODER,
    latent_action=LinearTransitionConfig(hidden=8, layers=2),
    video=video(6),
    action=OWN,
    **COMMON,
)
LINGBOT = LingBotVAConfig(
    tokenizer=VAE,
    video=replace(video(4), patch=(1, 2, 2)),
    action=SharedBlocks(action_dim=5),
    order="after_video",
    forward_share=0.0,
    noisy_history=0.5,
    levels="frame",
    weighting="bell",
    video_shift=5.0,
    video_until=0.4,
    **COMMON,
)


def repwam(**changes) -> RepWAM:
    return named_weights(RepWAM(replace(REPWAM, **changes)))


def lingbot(**changes) -> LingBotVA:
    return named_weights(LingBotVA(replace(LINGBOT, **changes)))
