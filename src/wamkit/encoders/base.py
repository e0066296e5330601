"""What every visual encoder offers to the models and to the feature store."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class VisualEncoder(nn.Module):
    """Frames of one fixed size to a grid of patch features, each frame encoded alone.

    Frames are never encoded together: attention across frames would leak the future into the present's features.
    """

    resolution: int
    grid: tuple[int, int]
    width: int

    @property
    def tokens(self) -> int:
        """Patch tokens of one frame, N."""
        return self.grid[0] * self.grid[1]

    @property
    @abstractmethod
    def preprocessing(self) -> str:
        """What is done to uint8 frames before the network, in words that change when it changes."""

    @abstractmethod
    def forward(self, frames: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Features of each frame, LayerNorm-ed without affine weights."""

    def weights_hash(self) -> str:
        """SHA-256 over names, shapes and values of the weights: the feature store's key."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check_frames(self, frames: Tensor) -> None:
        """Refuse frames of another size: a silent resize would change what the weights were trained on."""
        if frames.shape[-2:] != (self.resolution, self.resolution):
            raise ValueError(
                f"this encoder takes {self.resolution}x{self.resolution} frames, got {tuple(frames.shape[-2:])};"
                " set the data set's resolution to the encoder's"
            )


class ClipEncoder(Protocol):
    """Clips of several cameras to one grid of latents, for the latent store."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Which a clip must hold."""
        ...

    @property
    def preprocessing(self) -> str:
        """What is done to frames before the network, in words that change when it changes."""
        ...

    def weights_hash(self) -> str:
        """Of the weights: part of the store's key."""
        ...

    def __call__(self, clips: Mapping[str, UInt8[Tensor, "n T 3 H W"]]) -> Float[Tensor, "n F N C"]:
        """Latents of each clip, cell by cell."""
        ...
