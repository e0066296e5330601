"""LaWAM in its published size, or any other, on recordings of one's own robot."""

from __future__ import annotations

from dataclasses import replace

from wamkit.data.windows import WindowSpec
from wamkit.encoders.patch_encoder import PatchEncoderConfig
from wamkit.models.lawam.config import LaWAMConfig, preset
from wamkit.recipes._stage import stage
from wamkit.training.config import DatasetConfig, StageConfig, TrainConfig


def lawam_robot(model: LaWAMConfig | None = None) -> TrainConfig:
    """LaWAM ``paper`` from the published DINOv3 and Qwen3-VL; lengths, rates and batches are the paper's.

    Stage ``latent_action`` as it was pretrained (papers.md 1.3), stage ``policy`` as it was post-trained (1.4), states
    and actions scaled to their range (1.6). Frames are encoded as they are read, since two fresh augmentations of each
    clip cannot be stored. The paper had 16 and 64 GPUs; with fewer, accumulate:
    ``--stages.policy.batch_size 32 --stages.policy.accumulate 8``.

    Args:
        model: Its cameras, horizon and chunk are what the windows hold; None: ``paper``, whose one camera is called
            ``image``. One with an encoder of its own (``small``) trains that first.
    """
    chosen = preset("paper") if model is None else model
    own_encoder = isinstance(chosen.encoder, PatchEncoderConfig)
    here = WindowSpec(cameras=chosen.cameras, resolution=chosen.encoder.resolution, valid_steps=chosen.valid_steps)
    horizon = replace(here, frame_offsets_s=(0.0, chosen.horizon_s))
    acting = replace(horizon, chunk_s=chosen.horizon_s, max_actions=chosen.max_actions)
    stages = (
        StageConfig(
            name="latent_action",
            # The horizon is a true one: a frame repeated at an episode's end would teach that nothing moves.
            window=replace(horizon, cameras=chosen.cameras[:1], past_end="drop"),
            steps=100_000,
            batch_size=1024,
            learning_rate=3e-4,
            weight_decay=1e-2,
            warmup_steps=10_000,
            schedule="constant",
        ),
        StageConfig(
            name="policy",
            window=acting,
            steps=30_000,
            batch_size=256,
            learning_rate=1e-4,
            betas=(0.9, 0.95),
            weight_decay=1e-8,
            warmup_steps=1500,
            final_lr_fraction=0.005,
        ),
    )
    # Not of the paper, whose encoder is never trained; its length is an estimate, no result stands behind it.
    encoder = (stage("encoder", replace(here, cameras=chosen.cameras[:1]), 20_000, 256),) if own_encoder else ()
    return TrainConfig(
        name="lawam_robot",
        model="lawam",
        preset="paper",
        model_config=model,
        dataset=DatasetConfig(holdout_episodes=3, state_normalization="MIN_MAX", action_normalization="MIN_MAX"),
        stages=(*encoder, *stages),
        validate_every=5000,
        workers=4,
        output_dir="outputs/lawam_robot",
    )
