"""RepWAM on recorded MetaWorld demonstrations, from the representation encoder to the policy."""

from __future__ import annotations

from wamkit.models.repwam.config import RepWAMConfig, preset
from wamkit.recipes._causal_metaworld import causal_metaworld, windows
from wamkit.recipes._stage import stage
from wamkit.training.config import StageConfig, TrainConfig


def repwam_metaworld() -> TrainConfig:
    """RepWAM ``tiny``; what it reached with these steps stands in docs/log.md.

    The self-trained representation, tokenizer, latent actions, pretraining on latent actions, adaptation to real ones.
    Record first: ``wam record --env.type metaworld --env.task TASK,TASK --episodes 25 --output_dir DIR``, then
    ``wam train repwam_metaworld --dataset.roots DIR``.
    """
    return causal_metaworld("repwam", repwam_stages(preset("tiny")))


def repwam_stages(model: RepWAMConfig) -> tuple[StageConfig, ...]:
    """The stages that a model of this config has, whichever of the paper's ablations it is."""
    own = windows(model)
    latent_action, reads_encoder = model.latent_actions == "two_stage", model.representation is not None
    every = {
        "encoder": stage("encoder", own["picture"], 300, 64),
        "tokenizer": stage("tokenizer", own["clip"], 400, 16),
        "latent_action": stage("latent_action", own["frames"], 300, 32),
        "pretrain": stage("pretrain", own["frames"], 400, 32, optimizer="muon"),
        "adapt": stage("adapt", own["sequence"], 700, 32, optimizer="muon"),
    }
    left_out = {"encoder": not reads_encoder, "latent_action": not latent_action}
    return tuple(chosen for name, chosen in every.items() if not left_out.get(name, False))
