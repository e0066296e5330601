"""RepViTok, RepWAM's visual tokenizer (arXiv 2606.13674; papers.md 3.2): a ViT video autoencoder.

The first picture is cut into patches of 16 x 16 pixels, later ones into tubelets of 4 x 16 x 16; attention is full in
space and causal in time; a bottleneck by attention leads to 96 channels under a LayerNorm; a transposed convolution
leads back to pixels. Its latents are aligned with a frozen representation encoder (`repvitok_objective`).

No code of it is public. What the paper leaves open, and what stands here:

- **Attention-based projection**: each frame's tokens attend to one another and are projected to the latent's width,
  beside a linear map of each token alone. Without the latter a cell's own content would have to pass through a softmax.
- **LayerNorm** of the latent has no affine weights, so latents have unit variance whatever was learned.
- **Positions**: a fixed sin/cos code in space, so any size of picture fits; a rotary code in time, in which only the
  distance of two frames counts.
- **Long videos**: a frame sees the ``window`` latest latent frames, itself included; 5 by default, the 17 pictures that
  the paper's numbers are of. On clips up to that length it is plain causal attention. On longer ones memory is bounded,
  no distance in time is larger than those trained on, and encoding piece by piece gives the numbers of the whole.
- **Transposed convolution**: kernel and stride are the patch, so it is one matrix product for each token, and written
  as one (convolutions over space and time are slow on a CPU).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from wamkit.encoders.base import VideoTokenizer, check_piece, digest_of
from wamkit.encoders.repvitok_objective import RepViTokObjective, RepViTokObjectiveConfig
from wamkit.nn.attention import attend
from wamkit.nn.causal_frames import CausalFrameBlock, FrameMemory, FrameTimes
from wamkit.nn.position import grid_sincos


@dataclass(frozen=True)
class RepViTokConfig:
    """Dimensions, the paper's by default; there are no published weights."""

    kind: ClassVar[str] = "repvitok"
    patch: int = 16
    width: int = 768
    encoder_layers: int = 12
    decoder_layers: int = 12
    heads: int = 12
    latent_width: int = 96
    window: int = 5
    """Latent frames that a frame attends to, itself included. Once a stream is longer, no frame sees the first picture
    any more: train on clips of more latent frames than this, or what a stream yields later on was never trained."""
    objective: RepViTokObjectiveConfig = field(default_factory=RepViTokObjectiveConfig)


class Memory(NamedTuple):
    """What a trunk keeps of a video between two pieces."""

    frames: int
    """How many came before."""
    layers: tuple[FrameMemory, ...]


class Trunk(nn.Module):
    """Position codes and blocks: the part that encoder and decoder have alike."""

    def __init__(self, width: int, heads: int, layers: int, window: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.blocks = nn.ModuleList(CausalFrameBlock(width, heads, window) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._codes: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(
        self, x: Float[Tensor, "B F N D"], grid: tuple[int, int], past: Memory | None = None
    ) -> tuple[Float[Tensor, "B F N D"], Memory]:
        """``grid`` says how the N tokens of a frame lie."""
        first = past.frames if past is not None else 0
        times = FrameTimes.of(first, x.shape[1], self.width // self.heads, x.device)
        x = x + self._code(grid, x.device).to(x.dtype)
        kept = []
        for index, block in enumerate(self.blocks):
            x, memory = block(x, times, past.layers[index] if past is not None else None)
            kept.append(memory)
        return self.norm(x), Memory(first + x.shape[1], tuple(kept))

    def _code(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        key = (*grid, device)
        if key not in self._codes:
            self._codes = {key: grid_sincos(grid, self.width).to(device)}
        return self._codes[key]


class Bottleneck(nn.Module):
    """From the trunk's width to the latent's: attention within a frame beside a linear map, then LayerNorm."""

    def __init__(self, width: int, heads: int, latent_width: int) -> None:
        super().__init__()
        self.heads, self.latent_width = heads, latent_width
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, latent_width)
        self.direct = nn.Linear(width, latent_width)

    def forward(self, x: Float[Tensor, "B F N D"]) -> Float[Tensor, "B F N C"]:
        """Unit variance in each cell."""
        flat = x.flatten(0, 1)
        queries, keys, values = self.to_qkv(flat).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        projected = self.direct(flat) + self.to_out(attend(queries, keys, values).transpose(1, 2).flatten(2))
        return F.layer_norm(projected.float(), (self.latent_width,)).unflatten(0, x.shape[:2])


class RepViTok(VideoTokenizer):
    """The tokenizer: encoder, bottleneck, decoder, and the objective that trains them."""

    def __init__(self, config: RepViTokConfig) -> None:
        super().__init__()
        self.config = config
        picture = 3 * config.patch**2
        self.embed_first = nn.Linear(picture, config.width)
        self.embed_later = nn.Linear(self.TEMPORAL * picture, config.width)
        self.encoder = Trunk(config.width, config.heads, config.encoder_layers, config.window)
        self.bottleneck = Bottleneck(config.width, config.heads, config.latent_width)
        self.enter = nn.Linear(config.latent_width, config.width)
        self.decoder = Trunk(config.width, config.heads, config.decoder_layers, config.window)
        self.leave_first = nn.Linear(config.width, picture)
        self.leave_later = nn.Linear(config.width, self.TEMPORAL * picture)
        self.objective = RepViTokObjective(config.objective, config.latent_width)

    @property
    def latent_width(self) -> int:
        """Channels of one latent cell."""
        return self.config.latent_width

    @property
    def cell(self) -> int:
        """Pixels of a side of one latent cell."""
        return self.config.patch

    @property
    def preprocessing(self) -> str:
        """What is done to uint8 pictures, in words that change when it changes."""
        return f"repvitok:x/127.5-1:patch{self.cell}:window{self.config.window}:layernorm"

    @property
    def target_width(self) -> int | None:
        """Of the features that the latents are aligned with; None for the twin that only reconstructs."""
        return None if self.config.objective.alignment == "none" else self.config.objective.representation_width

    @property
    def adversary(self) -> nn.Module | None:
        """The discriminator."""
        return self.objective.discriminator

    # Encoding

    def encode(self, clip: UInt8[Tensor, "B T 3 H W"]) -> Float[Tensor, "B C F h w"]:
        """Latents, LayerNorm-ed over the channels of each cell."""
        _, grid = self.latent_shape(clip)
        latents, _ = self.latents_of(self.pixels(clip), grid)
        return latents.permute(0, 3, 1, 2).unflatten(-1, grid)

    def stream(self) -> RepViTokStream:
        """Begin to encode a video whose pictures come one after the other."""
        return RepViTokStream(self)

    def pixels(self, clip: UInt8[Tensor, "B n 3 H W"]) -> Float[Tensor, "B n 3 H W"]:
        """Pictures in [-1, 1]."""
        return clip.to(self.enter.weight.dtype) / 127.5 - 1.0

    def latents_of(
        self, pixels: Float[Tensor, "B n 3 H W"], grid: tuple[int, int], past: Memory | None = None
    ) -> tuple[Float[Tensor, "B F N C"], Memory]:
        """Latents cell by cell of a clip or, with a memory, of the pictures that come next."""
        tokens = []
        if past is None:
            tokens.append(self.embed_first(_cut(pixels[:, :1], self.cell)))
            pixels = pixels[:, 1:]
        if pixels.shape[1]:
            tubelets = pixels.unflatten(1, (-1, self.TEMPORAL)).flatten(2, 3)
            tokens.append(self.embed_later(_cut(tubelets, self.cell)))
        features, memory = self.encoder(torch.cat(tokens, dim=1), grid, past)
        return self.bottleneck(features), memory

    # Decoding

    def decode(self, latents: Float[Tensor, "B C F h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Pictures in [0, 1] of latents of whatever grid."""
        return self.picture_stream().push(latents)

    def picture_stream(self) -> RepViTokPictures:
        """Begin to decode a video whose latent frames come one after the other."""
        return RepViTokPictures(self)

    def pictures_of(self, latents: Float[Tensor, "B F N C"], grid: tuple[int, int]) -> Float[Tensor, "B T 3 H W"]:
        """Pictures in [-1, 1] and a little beyond, as the losses see them."""
        return self.next_pictures(latents, grid)[0]

    def next_pictures(
        self, latents: Float[Tensor, "B F N C"], grid: tuple[int, int], past: Memory | None = None
    ) -> tuple[Float[Tensor, "B n 3 H W"], Memory]:
        """Of a clip's latents or, with a memory, of those that come next."""
        features, memory = self.decoder(self.enter(latents.to(self.enter.weight.dtype)), grid, past)
        made = []
        if past is None:
            made.append(_joined(self.leave_first(features[:, :1]), grid, self.cell))
            features = features[:, 1:]
        if features.shape[1]:
            tubelets = _joined(self.leave_later(features), grid, self.cell)
            made.append(tubelets.unflatten(2, (self.TEMPORAL, 3)).flatten(1, 2))
        return torch.cat(made, dim=1), memory

    # Training

    def pretrain_losses(
        self,
        clip: UInt8[Tensor, "B T 3 H W"],
        generator: torch.Generator | None = None,
        targets: Float[Tensor, "B P N D"] | None = None,
    ) -> dict[str, Float[Tensor, "B"]]:
        """``l1``, ``perceptual``, ``generator`` and ``discriminator``, ``alignment``: those that the objective has.

        Raises:
            ClipError: see `encode`.
            AlignmentError: the targets do not fit.
        """
        _, grid = self.latent_shape(clip)
        pixels = self.pixels(clip)
        latents, _ = self.latents_of(pixels, grid)
        return self.objective(pixels, self.pictures_of(latents, grid), latents, targets, generator)

    def weights_hash(self) -> str:
        """Of the encoding half: training the decoder further leaves stored latents valid."""
        encoding = ("embed_first.", "embed_later.", "encoder.", "bottleneck.")
        return digest_of({name: value for name, value in self.state_dict().items() if name.startswith(encoding)})


class RepViTokStream:
    """Encodes a video piece by piece, in memory that does not grow with its length."""

    def __init__(self, tokenizer: RepViTok) -> None:
        self.tokenizer = tokenizer
        self.memory: Memory | None = None
        self.size: tuple[int, int, int] | None = None

    @torch.no_grad()
    def push(self, pictures: UInt8[Tensor, "B n 3 H W"]) -> Float[Tensor, "B C f h w"]:
        """See `VideoStream.push`."""
        tokenizer = self.tokenizer
        check_piece(tokenizer, pictures, self.size)
        self.size = pictures.shape[0], pictures.shape[-2], pictures.shape[-1]
        grid = tokenizer.latent_size(*pictures.shape[-2:])
        latents, self.memory = tokenizer.latents_of(tokenizer.pixels(pictures), grid, self.memory)
        return latents.permute(0, 3, 1, 2).unflatten(-1, grid)


class RepViTokPictures:
    """Decodes a video piece by piece, in memory that does not grow with its length."""

    def __init__(self, tokenizer: RepViTok) -> None:
        self.tokenizer = tokenizer
        self.memory: Memory | None = None

    def push(self, latents: Float[Tensor, "B C f h w"]) -> Float[Tensor, "B n 3 H W"]:
        """See `PictureStream.push`."""
        grid = latents.shape[-2], latents.shape[-1]
        cells = latents.flatten(3).permute(0, 2, 3, 1)
        made, self.memory = self.tokenizer.next_pictures(cells, grid, self.memory)
        return ((made.float() + 1.0) / 2.0).clamp(0.0, 1.0)


def _cut(x: Float[Tensor, "B F c H W"], patch: int) -> Float[Tensor, "B F N P"]:
    """The pixels of each patch, channels first inside a patch, as a convolution's kernel has them."""
    x = x.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)


def _joined(tokens: Float[Tensor, "B F N P"], grid: tuple[int, int], patch: int) -> Float[Tensor, "B F c H W"]:
    """The inverse of `_cut`."""
    x = tokens.unflatten(2, grid).unflatten(-1, (-1, patch, patch))
    return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(-2).flatten(-3, -2)
