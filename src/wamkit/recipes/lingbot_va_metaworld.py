"""LingBot-VA on recorded MetaWorld demonstrations, from the VAE to the policy."""

from __future__ import annotations

from wamkit.models.lingbot_va.config import LingBotVAConfig, preset
from wamkit.recipes._causal_metaworld import causal_metaworld, windows
from wamkit.recipes._stage import stage
from wamkit.training.config import StageConfig, TrainConfig


def lingbot_va_metaworld() -> TrainConfig:
    """LingBot-VA ``tiny``; steps are estimates of what two slow cores do in 45 minutes, no result stands behind them.

    The VAE, then the transformer on frames alone, then on frames and actions.
    Record first: ``wam record --env.type metaworld --env.task TASK,TASK --episodes 25 --output_dir DIR``, then
    ``wam train lingbot_va_metaworld --dataset.roots DIR``.
    """
    return causal_metaworld("lingbot_va", lingbot_va_stages(preset("tiny")))


def lingbot_va_stages(model: LingBotVAConfig) -> tuple[StageConfig, ...]:
    """The stages of a model whose VAE is trained in the run."""
    own = windows(model)
    return (
        # Two frames after the first: with one the VAE would never meet its own cache of a later frame.
        stage("vae", own["short"], 400, 5),
        stage("pretrain", own["frames"], 300, 32, optimizer="muon"),
        stage("adapt", own["sequence"], 700, 32, optimizer="muon"),
    )
