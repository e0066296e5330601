"""DINOv3 through transformers, as LaWAM uses it: penultimate block, patches only, non-affine LayerNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.encoders.base import VisualEncoder
from wamkit.errors import WeightsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DINOv3Config:
    """Dimensions of a DINOv3 ViT, ViT-B/16 by default (papers.md 1.3), and where its weights come from."""

    kind: ClassVar[str] = "dinov3"
    resolution: int = 256
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    registers: int = 4
    weights: str | None = "facebook/dinov3-vitb16-pretrain-lvd1689m"
    """Local folder or hub id in transformers' layout; None for random weights (tests, parameter counts)."""


class DINOv3(VisualEncoder):
    """A frozen DINOv3 ViT."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: DINOv3Config) -> None:
        from transformers import DINOv3ViTConfig, DINOv3ViTModel

        super().__init__()
        side = config.resolution // config.patch
        self.config, self.resolution, self.grid, self.width = config, config.resolution, (side, side), config.width
        sizes: dict[str, Any] = {
            "image_size": config.resolution,
            "patch_size": config.patch,
            "hidden_size": config.width,
            "intermediate_size": config.mlp_width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_register_tokens": config.registers,
        }
        self.model = DINOv3ViTModel(DINOv3ViTConfig(**sizes))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def load_pretrained(self) -> None:
        """Load the published weights named in the config.

        Raises:
            WeightsError: the folder or hub id cannot be read, or holds a model of other dimensions.
        """
        from transformers import DINOv3ViTModel

        if self.config.weights is None:
            raise WeightsError("this DINOv3 config names no weights; set encoder.weights to a folder or hub id")
        try:
            published = DINOv3ViTModel.from_pretrained(self.config.weights)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"DINOv3 weights {self.config.weights!r} cannot be loaded ({error}); download them once and set"
                " encoder.weights to the folder, or use a preset with the self-trained encoder"
            ) from error
        try:
            self.model.load_state_dict(published.state_dict())
        except RuntimeError as error:
            raise WeightsError(
                f"the DINOv3 in {self.config.weights!r} has other dimensions than the config: set encoder to its own"
            ) from error

    @property
    def preprocessing(self) -> str:
        """ImageNet mean and standard deviation."""
        return f"dinov3:{self.resolution}:imagenet"

    def forward(self, frames: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Features of the penultimate block; CLS and registers dropped."""
        self.check_frames(frames)
        pixels = ((frames.float() / 255.0 - self.mean) / self.std).to(self.model.embeddings.cls_token.dtype)
        x = self.model.embeddings(pixels)
        rotary = self.model.rope_embeddings(pixels)
        # The last block is never read, so it is never run.
        for layer in self.model.model.layer[:-1]:
            x = layer(x, position_embeddings=rotary)
        return F.layer_norm(x[:, 1 + self.config.registers :], (self.width,))
