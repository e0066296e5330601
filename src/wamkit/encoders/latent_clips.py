"""From a clip of every camera to one grid of latents: canvas and tokenizer together, which a latent store keys."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.data.canvas import Canvas
from wamkit.encoders.base import VideoTokenizer


class LatentClips:
    """Clips of the model's cameras to latents, cell by cell: [n, F, N, C], N = rows x columns."""

    def __init__(self, vae: VideoTokenizer, canvas: Canvas) -> None:
        self.vae, self.canvas = vae, canvas

    @property
    def cameras(self) -> tuple[str, ...]:
        """Which a clip must hold."""
        return self.canvas.cameras

    @property
    def preprocessing(self) -> str:
        """What is done to frames before the network, in words that change when it changes."""
        return f"{self.canvas!r}:{self.vae.preprocessing}"

    def weights_hash(self) -> str:
        """Of the tokenizer."""
        return self.vae.weights_hash()

    def __call__(self, clips: Mapping[str, UInt8[Tensor, "n T 3 H W"]]) -> Float[Tensor, "n F N C"]:
        """Standardised latents of each clip."""
        latents = self.vae.encode(self.canvas.compose(clips))
        return latents.flatten(3).permute(0, 2, 3, 1)
