"""The small self-trained encoder that stands where DINOv3 stands when its weights are absent.

A ViT over patches, trained on the run's own frames in a first stage by one of two objectives: a masked
autoencoder (MAE, arXiv 2111.06377) or a joint-embedding predictor kept from collapse by SIGReg
(LeWorldModel, arXiv 2603.19312). Which serves better is measured by a linear probe of end-effector and object
position; the numbers are on the documentation's page of benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from wamkit.encoders.base import VisualEncoder
from wamkit.losses.reduction import sample_mean
from wamkit.losses.sigreg import random_directions, sigreg
from wamkit.nn.position import grid_sincos
from wamkit.nn.transformer_block import TransformerBlock


@dataclass(frozen=True)
class PatchEncoderConfig:
    """Dimensions and objective of the self-trained encoder."""

    kind: ClassVar[str] = "patch_encoder"
    resolution: int = 128
    patch: int = 16
    width: int = 128
    layers: int = 4
    heads: int = 4
    objective: Literal["masked_autoencoder", "joint_embedding"] = "masked_autoencoder"
    mask_ratio: float = 0.75
    decoder_width: int = 96
    decoder_layers: int = 2
    sigreg_weight: float = 0.09
    """Weight of the regulariser of the joint-embedding objective (LeWorldModel's value)."""


class PatchEncoder(VisualEncoder):
    """Patches, position code, transformer; features are its last tokens, LayerNorm-ed without affine weights."""

    position: Tensor

    def __init__(self, config: PatchEncoderConfig) -> None:
        super().__init__()
        if config.resolution % config.patch:
            raise ValueError(f"resolution {config.resolution} is not a multiple of the patch {config.patch}")
        side = config.resolution // config.patch
        self.config, self.resolution, self.grid, self.width = config, config.resolution, (side, side), config.width
        self.embed = nn.Linear(3 * config.patch**2, config.width)
        self.register_buffer("position", grid_sincos(self.grid, config.width), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(config.width, config.heads) for _ in range(config.layers))
        if config.objective == "masked_autoencoder":
            self.pretext: nn.Module = MaskedAutoencoder(config, self.tokens)
        else:
            self.pretext = JointEmbedding(config, self.tokens)

    @property
    def preprocessing(self) -> str:
        """Pixels are scaled to [-1, 1]."""
        return f"patch_encoder:{self.resolution}:x/127.5-1"

    def patchify(self, frames: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B N P"]:
        """Pixels of each patch in [-1, 1], channels last inside a patch."""
        self.check_frames(frames)
        patch = self.config.patch
        x = frames.to(self.embed.weight.dtype) / 127.5 - 1.0
        x = x.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def encode_patches(
        self, patches: Float[Tensor, "B M P"], position: Float[Tensor, "B M D"]
    ) -> Float[Tensor, "B M D"]:
        """Features of any subset of a frame's patches, given their position codes."""
        x = self.embed(patches) + position
        for block in self.blocks:
            x = block(x)
        return F.layer_norm(x, (self.width,))

    def forward(self, frames: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Features of whole frames."""
        patches = self.patchify(frames)
        return self.encode_patches(patches, self.position.expand(patches.shape[0], -1, -1))

    def pretrain_losses(
        self, frames: UInt8[Tensor, "B 3 H W"], generator: torch.Generator | None = None
    ) -> dict[str, Float[Tensor, "B"]]:
        """Per-sample losses of the first stage, already weighted."""
        return self.pretext(self, frames, generator)


def _gather(tokens: Float[Tensor, "B N D"], index: Tensor) -> Tensor:
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class _MaskedPrediction(nn.Module):
    """What both objectives share: a transformer that fills in for the hidden patches from the visible ones' features.

    Args:
        config: the encoder's.
        tokens: N, patches of a frame.
        answer_width: of what is predicted for each patch.
    """

    position: Tensor

    def __init__(self, config: PatchEncoderConfig, tokens: int, *, answer_width: int) -> None:
        super().__init__()
        self.keep = max(1, round(tokens * (1.0 - config.mask_ratio)))
        side = int(tokens**0.5)
        self.enter = nn.Linear(config.width, config.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(config.decoder_width))
        self.register_buffer("position", grid_sincos((side, side), config.decoder_width), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(config.decoder_width, 4) for _ in range(config.decoder_layers))
        self.leave = nn.Linear(config.decoder_width, answer_width)

    def fill_in(
        self, encoder: PatchEncoder, patches: Float[Tensor, "B N P"], generator: torch.Generator | None
    ) -> tuple[Float[Tensor, "B N E"], Int[Tensor, "B N"]]:
        """Tokens before `leave`, of the visible patches and then of the hidden, and which patch each one is."""
        batch, tokens, _ = patches.shape
        order = torch.rand(batch, tokens, device=patches.device, generator=generator).argsort(dim=1)
        visible = order[:, : self.keep]
        position = encoder.position.expand(batch, -1, -1)
        features = encoder.encode_patches(_gather(patches, visible), _gather(position, visible))
        hidden = self.mask_token.expand(batch, tokens - self.keep, -1).to(features.dtype)
        x = torch.cat([self.enter(features), hidden], dim=1)
        x = x + _gather(self.position.expand(batch, -1, -1), order)
        for block in self.blocks:
            x = block(x)
        return x, order


class MaskedAutoencoder(_MaskedPrediction):
    """Reconstructs the pixels of hidden patches from the visible ones."""

    def __init__(self, config: PatchEncoderConfig, tokens: int) -> None:
        super().__init__(config, tokens, answer_width=3 * config.patch**2)

    def forward(
        self, encoder: PatchEncoder, frames: UInt8[Tensor, "B 3 H W"], generator: torch.Generator | None
    ) -> dict[str, Float[Tensor, "B"]]:
        """Squared pixel error over the hidden patches, plus a tenth of it over the visible ones."""
        patches = encoder.patchify(frames)
        x, order = self.fill_in(encoder, patches, generator)
        error = (self.leave(x).float() - _gather(patches, order)).square().mean(dim=-1)
        return {
            "hidden_patches": sample_mean(error[:, self.keep :]),
            # The policy reads the features of whole frames: a little weight on the visible patches keeps each
            # token's own pixels in its feature.
            "visible_patches": 0.1 * sample_mean(error[:, : self.keep]),
        }


class JointEmbedding(_MaskedPrediction):
    """Predicts the features of hidden patches from the visible ones; SIGReg keeps the features from collapsing."""

    def __init__(self, config: PatchEncoderConfig, tokens: int) -> None:
        super().__init__(config, tokens, answer_width=config.width)
        self.sigreg_weight = config.sigreg_weight

    def forward(
        self, encoder: PatchEncoder, frames: UInt8[Tensor, "B 3 H W"], generator: torch.Generator | None
    ) -> dict[str, Float[Tensor, "B"]]:
        """Squared feature error over the hidden patches (no stop-gradient), and SIGReg over the batch's tokens."""
        patches = encoder.patchify(frames)
        batch, tokens, _ = patches.shape
        target = encoder.encode_patches(patches, encoder.position.expand(batch, -1, -1))
        x, order = self.fill_in(encoder, patches, generator)
        predicted, hidden = self.leave(x[:, self.keep :]).float(), order[:, self.keep :]
        error = (predicted - _gather(target, hidden).float()).square().mean(dim=-1)
        directions = random_directions(encoder.width, 256, device=target.device, generator=generator)
        # Tokens at one place of the grid must differ between frames: the test is over frames, place by place.
        places = target.float().transpose(0, 1)
        statistic = torch.stack([sigreg(place, directions).mean() for place in places[:: max(1, tokens // 16)]]).mean()
        return {"prediction": sample_mean(error), "sigreg": (self.sigreg_weight * statistic).expand(batch)}
