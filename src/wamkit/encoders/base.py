"""What every visual encoder offers to the models and to the feature store."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wamkit.errors import MisfitError, WamkitError


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
        return digest_of(self.state_dict())

    def check_frames(self, frames: Tensor) -> None:
        """Refuse frames of another size: a silent resize would change what the weights were trained on.

        Raises:
            MisfitError: they are of another size.
        """
        if frames.shape[-2:] != (self.resolution, self.resolution):
            raise MisfitError(
                f"this encoder takes {self.resolution}x{self.resolution} frames, got {tuple(frames.shape[-2:])};"
                " set the data set's resolution to the encoder's"
            )


class ClipError(WamkitError, ValueError):
    """A clip whose length or size a video tokenizer cannot take; the message says which it does."""


class VideoStream(Protocol):
    """A video that is encoded piece by piece, as it comes: the pieces' latents are those of the whole video."""

    def push(self, pictures: UInt8[Tensor, "B n 3 H W"]) -> Float[Tensor, "B C f h w"]:
        """The latents of the next pictures: 4 k + 1 of them at first, 4 k later on, k >= 0 and at least one picture.

        Raises:
            ClipError: another number of pictures, or pictures of another size than those before.
        """
        ...


class PictureStream(Protocol):
    """A video that is decoded piece by piece: the pieces' pictures are those of the whole video."""

    def push(self, latents: Float[Tensor, "B C f h w"]) -> Float[Tensor, "B n 3 H W"]:
        """The pictures of the next latent frames, in [0, 1]: 4 f - 3 of them at first, 4 f later on."""
        ...


class VideoTokenizer(nn.Module):
    """Clips to a grid of latents and back: Wan's VAE, RepViTok.

    The first latent frame is made of the first picture alone, each further one of four more, and none sees a later
    picture: what a policy reads of the present cannot hold the future.
    """

    TEMPORAL: ClassVar[int] = 4
    """Pictures of one latent frame after the first."""

    @property
    @abstractmethod
    def latent_width(self) -> int:
        """C, channels of one latent cell."""

    @property
    @abstractmethod
    def cell(self) -> int:
        """Pixels of a side of one latent cell."""

    @property
    @abstractmethod
    def preprocessing(self) -> str:
        """What is done to uint8 pictures, in words that change when it changes."""

    @property
    def target_width(self) -> int | None:
        """D of the features that `pretrain_losses` must be given as ``targets``; None: it takes none."""
        return None

    @property
    def adversary(self) -> nn.Module | None:
        """The part that is trained against the rest, for a parameter group of its own; None without one."""
        return None

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Cells of a picture in height and width, h and w.

        Raises:
            ClipError: the picture is not a whole number of cells.
        """
        if height % self.cell or width % self.cell or not height * width:
            raise ClipError(
                f"{height} x {width} pixels are no multiple of the tokenizer's cell of {self.cell}: set the data set's"
                " resolution to one"
            )
        return height // self.cell, width // self.cell

    def latent_frames(self, pictures: int) -> int:
        """F: latent frames of a clip.

        Raises:
            ClipError: the clip's length is not 4 n + 1.
        """
        if pictures < 1 or (pictures - 1) % self.TEMPORAL:
            raise ClipError(f"a clip of {pictures} pictures does not fit the tokenizer: it takes 1, 5, 9, 13, ...")
        return 1 + (pictures - 1) // self.TEMPORAL

    def latent_shape(self, clip: Tensor) -> tuple[int, tuple[int, int]]:
        """F, and h and w, of a clip's latents.

        Raises:
            ClipError: this is no clip, or see `latent_frames` and `latent_size`.
        """
        if clip.ndim != 5 or clip.shape[2] != 3 or clip.dtype != torch.uint8:
            raise ClipError(
                f"a clip is uint8 [B, T, 3, H, W], and this is {clip.dtype} {list(clip.shape)}: pictures of several"
                " sizes are brought to one first (Canvas, or the data set's resolution)"
            )
        return self.latent_frames(clip.shape[1]), self.latent_size(*clip.shape[-2:])

    @torch.no_grad()
    def encode_in_pieces(self, clip: UInt8[Tensor, "B T 3 H W"], latent_frames: int = 4) -> Float[Tensor, "B C F h w"]:
        """What `encode` returns of a video too long to encode at once, so many latent frames at a time.

        Raises:
            ClipError: see `encode`.
        """
        self.latent_shape(clip)
        device, stream = next(self.parameters()).device, self.stream()
        step = latent_frames * self.TEMPORAL
        cuts = [0, *range(1 + step - self.TEMPORAL, clip.shape[1], step), clip.shape[1]]
        return torch.cat([stream.push(clip[:, a:b].to(device)) for a, b in pairwise(cuts)], dim=2)

    @abstractmethod
    def encode(self, clip: UInt8[Tensor, "B T 3 H W"]) -> Float[Tensor, "B C F h w"]:
        """Latents of about unit variance, without noise: one frame for the first picture and one for each four more.

        Raises:
            ClipError: see `latent_frames` and `latent_size`.
        """

    @abstractmethod
    def decode(self, latents: Float[Tensor, "B C F h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Pictures in [0, 1] of what `encode` returns; T = 4 (F - 1) + 1."""

    @abstractmethod
    def stream(self) -> VideoStream:
        """Begin to encode a video whose pictures come one after the other."""

    @abstractmethod
    def picture_stream(self) -> PictureStream:
        """Begin to decode a video whose latent frames come one after the other, in memory that does not grow."""

    @abstractmethod
    def pretrain_losses(
        self,
        clip: UInt8[Tensor, "B T 3 H W"],
        generator: torch.Generator | None = None,
        targets: Float[Tensor, "B P N D"] | None = None,
    ) -> dict[str, Float[Tensor, "B"]]:
        """Named losses of the stage that trains the tokenizer, a value for each sample, already weighted.

        Args:
            clip: What is encoded and decoded.
            generator: Of all that is drawn.
            targets: Features of a frozen representation encoder, of any P pictures of each clip (usually all), with
                its patches in the order of the latent's cells; D is `target_width`. None where that is None.
        """

    @abstractmethod
    def weights_hash(self) -> str:
        """SHA-256 over all that `encode` depends on: part of the latent store's key."""


def check_piece(tokenizer: VideoTokenizer, pictures: Tensor, before: tuple[int, int, int] | None) -> None:
    """Refuse a piece of a streamed video that cannot follow what came before.

    Args:
        tokenizer: Whose stream it is.
        pictures: uint8 [B, n, 3, H, W].
        before: B, H and W of the pieces before; None at the beginning.

    Raises:
        ClipError: see `VideoStream.push`.
    """
    count, size = pictures.shape[1], (pictures.shape[0], *pictures.shape[-2:])
    if before is None:
        tokenizer.latent_frames(count)
        tokenizer.latent_size(*pictures.shape[-2:])
        return
    if size != before:
        raise ClipError(
            f"the stream goes on with {size[0]} videos of {size[1]} x {size[2]} pixels and began with {before[0]} of"
            f" {before[1]} x {before[2]}: begin a new stream"
        )
    if count < 1 or count % tokenizer.TEMPORAL:
        raise ClipError(
            f"{count} pictures do not fit a stream that has begun: it takes {tokenizer.TEMPORAL} for each latent frame"
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
