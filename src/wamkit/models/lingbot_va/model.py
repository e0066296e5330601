"""LingBot-VA: the causal model over Wan's latents, with noisy history and half-denoised video.

arXiv 2601.21998; papers.md 5. All that makes it LingBot-VA is in its config; the README beside this file says what of
the published system is reproduced.
"""

from __future__ import annotations

import torch

from wamkit.models.base import Capabilities
from wamkit.models.causal.world_model import CausalWorldModel
from wamkit.models.lingbot_va.config import LingBotVAConfig, preset
from wamkit.types import Losses, LossTerm, Window


class LingBotVA(CausalWorldModel):
    """LingBot-VA whole: VAE, words, transformer."""

    name = "lingbot_va"
    config_class = LingBotVAConfig
    capabilities = Capabilities(
        coupling="joint",
        modality="latent",
        paradigm="joint_video_action",
        act_needs_future=True,
        imagines=("pixels",),
        action_conditioned=False,
        trains_action_free=True,
        inpaints_actions=True,
        remembers=True,
        rolls_out=True,
    )

    @classmethod
    def preset(cls, name: str) -> LingBotVAConfig:
        """See `wamkit.models.lingbot_va.config.preset`."""
        return preset(name)

    @property
    def stages(self) -> tuple[str, ...]:
        """``vae`` only where no published weights stand in for it."""
        return ("vae", "pretrain", "adapt") if self.trains_tokenizer else ("pretrain", "adapt")

    def prepare_stage(self, stage: str) -> None:
        """The VAE; then the transformer, twice: on whatever data, then on the robot's own."""
        self.check_stage(stage)
        if stage == "vae":
            self.train_only(self.tokenizer)
        else:
            self.train_transformer("real")

    def loss(self, window: Window, stage: str, generator: torch.Generator | None = None) -> Losses:
        """The losses of one stage; windows without actions teach their frames alone."""
        self.check_stage(stage)
        if stage == "vae":
            losses = self.tokenizer.pretrain_losses(self.clip_of(window.frames), generator)
            valid = window.frame_valid[self.config.cameras[0]][:, 0]
            return Losses(terms={name: LossTerm(value=value, valid=valid) for name, value in losses.items()})
        latents, valid = self.latents_of(window)
        actions, counts = self.real_actions(window, latents.shape[2] - 1)
        return self.sequence_losses(window, latents, valid, actions, counts, generator)
