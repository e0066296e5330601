"""RepWAM: a tokenizer aligned with a representation, latent actions between its frames, a causal world action model.

arXiv 2606.13674; dimensions and open questions in papers.md 3. No code or weights are public: where the paper is
silent, the README beside this file says what was chosen.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.dynamics.base import FramePairs
from wamkit.dynamics.latent_actions import infer_along, latent_dynamics
from wamkit.dynamics.video_flow import latent_frame_valid
from wamkit.encoders.base import VisualEncoder
from wamkit.encoders.dinov3 import DINOv3, DINOv3Config
from wamkit.encoders.patch_encoder import PatchEncoder
from wamkit.models.base import Capabilities
from wamkit.models.causal.sampler import Groups
from wamkit.models.causal.world_model import CausalWorldModel
from wamkit.models.repwam.config import RepWAMConfig, preset
from wamkit.types import Losses, LossTerm, Window


class RepWAM(CausalWorldModel):
    """RepWAM whole: representation encoder, tokenizer, latent actions, both experts."""

    name = "repwam"
    config_class = RepWAMConfig
    capabilities = Capabilities(
        coupling="joint",
        modality="latent",
        paradigm="joint_video_action",
        act_needs_future=True,
        imagines=("pixels",),
        action_conditioned=True,
        trains_action_free=True,
        inpaints_actions=True,
        remembers=True,
        rolls_out=True,
    )

    def __init__(self, config: RepWAMConfig) -> None:
        width = getattr(config.latent_action, "latent_width", None)
        super().__init__(config, latent_width=None if config.latent_actions == "none" else width)
        chosen = config.representation
        self.representation: VisualEncoder | None = None
        if chosen is not None:
            self.representation = DINOv3(chosen) if isinstance(chosen, DINOv3Config) else PatchEncoder(chosen)
        self.latent_actions = None
        if config.latent_actions != "none":
            self.latent_actions = latent_dynamics(config.latent_action, self.latent_size, self.tokenizer.latent_width)

    @classmethod
    def preset(cls, name: str) -> RepWAMConfig:
        """See `wamkit.models.repwam.config.preset`."""
        return preset(name)

    def load_pretrained_trunks(self) -> None:
        """Load the representation encoder's published weights, where it has some; nothing of RepWAM's is public."""
        super().load_pretrained_trunks()
        if isinstance(self.representation, DINOv3):
            self.representation.load_pretrained()

    # Stages

    @property
    def stages(self) -> tuple[str, ...]:
        """In order, without what is not needed.

        ``encoder`` only for a representation of our own, ``tokenizer`` only for one without published weights, and
        ``latent_action`` only where it is a stage of its own.
        """
        own = ("encoder",) if isinstance(self.representation, PatchEncoder) else ()
        tokenizer = ("tokenizer",) if self.trains_tokenizer else ()
        latent = ("latent_action",) if self.config.latent_actions == "two_stage" else ()
        return (*own, *tokenizer, *latent, "pretrain", "adapt")

    def prepare_stage(self, stage: str) -> None:
        """Each stage's own part; the experts' head for latent actions in ``pretrain``, for real ones in ``adapt``."""
        self.check_stage(stage)
        if stage == "encoder":
            assert self.representation is not None
            self.train_only(self.representation)
        elif stage == "tokenizer":
            joint = self.config.latent_actions == "joint"
            self.train_only(self.tokenizer, *([self.latent_actions] if joint and self.latent_actions else []))
        elif stage == "latent_action":
            assert self.latent_actions is not None
            self.train_only(self.latent_actions)
        elif stage == "pretrain" and self.latent_actions is None:
            self.train_only(self.transformer.video)
        else:
            self.train_transformer("latent" if stage == "pretrain" else "real")

    def parts(self) -> dict[str, list[nn.Module]]:
        """The published parts."""
        parts: dict[str, list[nn.Module]] = {}
        if self.representation is not None:
            parts["representation"] = [self.representation]
        parts |= super().parts()
        if self.latent_actions is not None:
            parts["latent_actions"] = [self.latent_actions]
        return parts

    # Losses

    def loss(self, window: Window, stage: str, generator: torch.Generator | None = None) -> Losses:
        """The losses of one stage."""
        self.check_stage(stage)
        if stage == "encoder":
            return self._encoder_losses(window, generator)
        if stage == "tokenizer":
            return self._tokenizer_losses(window, generator)
        latents, valid = self.latents_of(window)
        if stage == "latent_action":
            assert self.latent_actions is not None
            pairs = FramePairs.consecutive(_cells(latents), valid)
            found = self.latent_actions.losses(pairs, generator)
            still = (latents[:, :, 1:] - latents[:, :, :-1]).square().mean().detach()
            return Losses(terms=found.by_sample(len(latents)), metrics={"copy_previous": still})
        if stage == "pretrain":
            return self._pretrain_losses(window, latents, valid, generator)
        actions, counts = self.real_actions(window, latents.shape[2] - 1)
        return self.sequence_losses(window, latents, valid, actions, counts, generator)

    def _pretrain_losses(
        self,
        window: Window,
        latents: Float[Tensor, "B C G h w"],
        valid: Bool[Tensor, "B G"],
        generator: torch.Generator | None,
    ) -> Losses:
        """Frames and the latent actions between them; no action of the window is looked at.

        Without latent actions the action tokens stand there unread, and frames alone are learned.
        """
        batch, frames = len(latents), latents.shape[2] - 1
        steps = torch.ones(batch, dtype=torch.long, device=latents.device)
        if self.latent_actions is None:
            nothing = latents.new_zeros(batch, frames, 1, self.action_width)
            unread = torch.zeros(batch, frames, 1, dtype=torch.bool, device=latents.device)
            groups = Groups(nothing, unread, steps)
        else:
            with torch.no_grad():
                values = infer_along(self.latent_actions, _cells(latents))
            both = (valid[:, 1:] & valid[:, :-1])[:, :, None].expand(-1, -1, values.shape[2])
            groups = Groups(values, both, steps * values.shape[2])
        counts = groups.valid[..., None].expand_as(groups.values)
        losses = self.sequence_losses(window, latents, valid, groups, counts, generator)
        if self.latent_actions is None:
            return Losses(terms={"video": losses.terms["video"]}, metrics=losses.metrics)
        return losses

    def _encoder_losses(self, window: Window, generator: torch.Generator | None) -> Losses:
        assert isinstance(self.representation, PatchEncoder)
        picture = self._for_representation(self.clip_of(window.frames)[:, 0])
        valid = window.frame_valid[self.config.cameras[0]][:, 0]
        losses = self.representation.pretrain_losses(picture, generator)
        return Losses(terms={name: LossTerm(value=value, valid=valid) for name, value in losses.items()})

    def _tokenizer_losses(self, window: Window, generator: torch.Generator | None) -> Losses:
        """The tokenizer's own objective; of a joint run also the latent actions', which then bend the latents."""
        clip = self.clip_of(window.frames)
        frame_valid = window.frame_valid[self.config.cameras[0]]
        losses = self.tokenizer.pretrain_losses(clip, generator, self._targets(clip))
        terms = {name: LossTerm(value=value, valid=frame_valid[:, 0]) for name, value in losses.items()}
        if self.config.latent_actions == "joint":
            assert self.latent_actions is not None
            latents = self.tokenizer.encode(clip)
            pairs = FramePairs.consecutive(_cells(latents), latent_frame_valid(frame_valid))
            terms |= self.latent_actions.losses(pairs, generator).by_sample(len(clip))
        return Losses(terms=terms)

    @torch.no_grad()
    def _targets(self, clip: Tensor) -> Float[Tensor, "B P N D"] | None:
        """Features of the representation, brought to the latent's grid."""
        if self.representation is None or self.tokenizer.target_width is None:
            return None
        pictures = self.distinct(clip)
        features = self.representation(self._for_representation(pictures.flatten(0, 1))).float()
        if self.representation.grid != tuple(self.latent_size):
            grid = features.transpose(1, 2).unflatten(-1, self.representation.grid)
            grid = F.interpolate(grid, size=tuple(self.latent_size), mode="bilinear", align_corners=False)
            features = grid.flatten(2).transpose(1, 2)
        return features.unflatten(0, pictures.shape[:2])

    def _for_representation(self, pictures: Tensor) -> Tensor:
        """The canvas in the encoder's own size, uint8 [n, 3, R, R]."""
        assert self.representation is not None
        side = self.representation.resolution
        if tuple(pictures.shape[-2:]) == (side, side):
            return pictures
        resized = F.interpolate(pictures.float(), size=(side, side), mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).to(torch.uint8)


def _cells(latents: Float[Tensor, "B C G h w"]) -> Float[Tensor, "B G N C"]:
    """Cell by cell, as the latent actions read frames."""
    return latents.flatten(3).permute(0, 2, 3, 1)
