"""Wan's causal video VAE through diffusers: clips to normalised latents, and back.

The first latent frame is made of the first picture alone, each further one of four more, and none sees a later one:
what a policy reads of the present cannot hold the future. Wan2.1's has 16 channels and 8 x 8 pixels a cell,
Wan2.2's 48 and 16 x 16 (papers.md 2.3 and 4). Without published weights a small one of the same class is trained on
the run's own frames in a first stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.encoders.base import VideoTokenizer, check_piece, digest_of
from wamkit.errors import MisfitError, WeightsError
from wamkit.losses.latent_action import kl_to_standard_normal
from wamkit.losses.reconstruction import reconstruction
from wamkit.losses.reduction import sample_mean
from wamkit.nn.precision import full_precision_on_cpu


@dataclass(frozen=True)
class WanVAEConfig:
    """Dimensions, Wan2.1's by default, and where the weights come from."""

    kind: ClassVar[str] = "wan_vae"
    weights: str | None = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    """Local folder or hub id in diffusers' layout (its folder ``vae``); None: trained on the run's own frames."""
    channels: int = 16
    width: int = 96
    decoder_width: int | None = None
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    residual_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    residual: bool = False
    """Wan2.2's kind of block, with a shortcut around each change of resolution."""
    patch: int | None = None
    """Pixels of a side that are folded into channels before the first layer (Wan2.2: 2)."""
    kl_weight: float = 1e-8
    """Of the divergence summed over a clip's latents, beside its mean pixel error; only where it is trained. Small:
    latents are standardised in any case, and every bit that is pulled away is one that a policy cannot see."""

    @property
    def cell(self) -> int:
        """Pixels of a side of one latent cell."""
        return 2 ** (len(self.multipliers) - 1) * (self.patch or 1)


def wan22_vae() -> WanVAEConfig:
    """Wan2.2-TI2V-5B's: 48 channels, 16 x 16 pixels a cell."""
    return WanVAEConfig(
        weights="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        channels=48,
        width=160,
        decoder_width=256,
        residual=True,
        patch=2,
    )


class WanVAE(VideoTokenizer):
    """`diffusers.AutoencoderKLWan` with its latents standardised channel by channel.

    Published weights bring the latents' means and deviations with them; a VAE of our own keeps running ones while it
    is trained.
    """

    latent_mean: Tensor
    latent_std: Tensor
    batches_seen: Tensor

    def __init__(self, config: WanVAEConfig) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        super().__init__()
        if sum(config.temporal_downsample) != int(math.log2(self.TEMPORAL)):
            raise MisfitError(
                f"temporal_downsample is {config.temporal_downsample}: exactly two levels must halve the time"
            )
        self.config = config
        folded = (config.patch or 1) ** 2 * 3
        self.model = AutoencoderKLWan(
            base_dim=config.width,
            decoder_base_dim=config.decoder_width,
            z_dim=config.channels,
            dim_mult=list(config.multipliers),
            num_res_blocks=config.residual_blocks,
            temperal_downsample=list(config.temporal_downsample),
            latents_mean=[0.0] * config.channels,
            latents_std=[1.0] * config.channels,
            is_residual=config.residual,
            in_channels=folded,
            out_channels=folded,
            patch_size=config.patch,
            scale_factor_spatial=config.cell,
        )
        if config.weights is None:
            with torch.no_grad():  # nearly no noise at first: under unit noise the decoder learns to ignore the latents
                bias = self.model.quant_conv.bias
                assert bias is not None
                bias[config.channels :] -= 6.0
        self.register_buffer("latent_mean", torch.zeros(config.channels))
        self.register_buffer("latent_std", torch.ones(config.channels))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.long))

    def load_pretrained(self) -> None:
        """Load the published weights named in the config.

        Raises:
            WeightsError: the folder or hub id cannot be read, or holds a VAE of other dimensions.
        """
        from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

        if self.config.weights is None:
            raise WeightsError("this VAE config names no weights; set vae.weights to a folder or hub id")
        try:
            published = AutoencoderKLWan.from_pretrained(self.config.weights, subfolder="vae")
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"the Wan VAE {self.config.weights!r} cannot be loaded ({error}); download it once and set vae.weights"
                " to the folder that holds vae/, or use a preset that trains its own"
            ) from error
        try:
            self.model.load_state_dict(published.state_dict())
        except RuntimeError as error:
            raise WeightsError(
                f"the VAE in {self.config.weights!r} has other dimensions than the config: set vae to its own"
            ) from error
        self.latent_mean.copy_(torch.tensor(published.config["latents_mean"]))
        self.latent_std.copy_(torch.tensor(published.config["latents_std"]))

    @property
    def latent_width(self) -> int:
        """Channels of one latent cell."""
        return self.config.channels

    @property
    def cell(self) -> int:
        """Pixels of a side of one latent cell."""
        return self.config.cell

    @property
    def preprocessing(self) -> str:
        """What is done to uint8 pictures, in words that change when it changes."""
        return f"wan_vae:x/127.5-1:cell{self.config.cell}:standardised"

    def encode(self, clip: UInt8[Tensor, "B T 3 H W"]) -> Float[Tensor, "B C F h w"]:
        """Standardised latents, the posterior's means: one frame for the first picture and one for each four more."""
        return self.standardised(self._posterior(self.pixels(clip)).mean)

    def standardised(self, raw: Float[Tensor, "B C F h w"]) -> Float[Tensor, "B C F h w"]:
        """Channel by channel, in float32."""
        return (raw.float() - self._of_channels(self.latent_mean)) / self._of_channels(self.latent_std)

    def stream(self) -> WanStream:
        """Begin to encode a video whose pictures come one after the other."""
        return WanStream(self)

    def decode(self, latents: Float[Tensor, "B C F h w"]) -> Float[Tensor, "B T 3 H W"]:
        """Pictures in [0, 1] of standardised latents, of whatever grid."""
        return self.picture_stream().push(latents)

    def picture_stream(self) -> WanPictures:
        """Begin to decode a video whose latent frames come one after the other."""
        return WanPictures(self)

    def pretrain_losses(
        self,
        clip: UInt8[Tensor, "B T 3 H W"],
        generator: torch.Generator | None = None,
        targets: Float[Tensor, "B P N D"] | None = None,
    ) -> dict[str, Float[Tensor, "B"]]:
        """Losses of the first stage, already weighted: absolute pixel error and a slight pull of the posterior.

        In training mode the latents' running mean and deviation move as well.

        Raises:
            ValueError: targets are given, to which nothing here is aligned.
        """
        if targets is not None:
            raise ValueError("Wan's VAE is not aligned with a representation (target_width is None): give no targets")
        target = self.pixels(clip)
        posterior = self._posterior(target)
        if self.training:
            self._watch(posterior.mean.detach().float())
        noise = torch.randn(posterior.mean.shape, generator=generator, device=target.device)
        made = self.next_pictures(posterior.mean + posterior.std * noise, self.new_memory(), first=True)
        divergence = kl_to_standard_normal(
            posterior.mean.float().flatten(1).unsqueeze(1), posterior.logvar.float().flatten(1).unsqueeze(1)
        )
        return {
            "pixels": sample_mean(reconstruction(made.float(), target.float(), "l1")),
            "kl": self.config.kl_weight * divergence,
        }

    def pixels(self, clip: UInt8[Tensor, "B T 3 H W"]) -> Float[Tensor, "B 3 T H W"]:
        """Pictures in [-1, 1], as the network takes them."""
        self.latent_shape(clip)
        return self.to_network(clip)

    def to_network(self, clip: UInt8[Tensor, "B n 3 H W"]) -> Float[Tensor, "B 3 n H W"]:
        """Pictures in [-1, 1], whatever their number."""
        return (clip.transpose(1, 2).float() / 127.5 - 1.0).to(self.model.post_quant_conv.weight.dtype)

    def weights_hash(self) -> str:
        """SHA-256 over names, shapes and values of all that `encode` depends on: the latent store's key."""
        return digest_of(self.state_dict())

    def _posterior(self, pixels: Tensor):
        with full_precision_on_cpu(pixels):
            return cast("Any", self.model.encode(pixels)).latent_dist

    def new_memory(self) -> list[Tensor | str | None]:
        """What the decoder's convolutions keep of the frames before: nothing yet."""
        self.model.clear_cache()
        return [None] * self.model._conv_num

    def next_pictures(
        self, raw: Float[Tensor, "B C f h w"], memory: list[Tensor | str | None], *, first: bool
    ) -> Float[Tensor, "B 3 n H W"]:
        """Decode as diffusers does, but without its clamp, which would stop the gradient of bright and dark pixels.

        Args:
            raw: Latents that are not standardised.
            memory: From `new_memory`; written to.
            first: Whether a video begins with them.
        """
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        model = self.model
        with full_precision_on_cpu(raw):
            x = model.post_quant_conv(raw.to(model.post_quant_conv.weight.dtype))
            pieces = [
                model.decoder(
                    x[:, :, frame : frame + 1], first_chunk=first and frame == 0, feat_cache=memory, feat_idx=[0]
                )
                for frame in range(x.shape[2])
            ]
            made = torch.cat(pieces, dim=2)
            return made if self.config.patch is None else unpatchify(made, self.config.patch)

    def raw(self, latents: Float[Tensor, "B C f h w"]) -> Float[Tensor, "B C f h w"]:
        """The inverse of `standardised`."""
        return latents.float() * self._of_channels(self.latent_std) + self._of_channels(self.latent_mean)

    def _of_channels(self, values: Tensor) -> Tensor:
        return values.float().view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def _watch(self, latents: Float[Tensor, "B C F h w"]) -> None:
        """Running statistics: the mean over the first batches, then over about the last hundred."""
        self.batches_seen += 1
        share = max(1.0 / int(self.batches_seen), 0.01)
        mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
        self.latent_mean.lerp_(mean, share)
        self.latent_std.lerp_(std.clamp(min=1e-4), share)


class WanStream:
    """Encodes a video piece by piece; diffusers' convolutions keep what they still need of the pictures before."""

    def __init__(self, vae: WanVAE) -> None:
        vae.model.clear_cache()
        self.vae = vae
        self.size: tuple[int, int, int] | None = None
        self.memory: list[Tensor | str | None] = [None] * vae.model._enc_conv_num

    @torch.no_grad()
    def push(self, pictures: UInt8[Tensor, "B n 3 H W"]) -> Float[Tensor, "B C f h w"]:
        """See `VideoStream.push`."""
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        vae, count = self.vae, pictures.shape[1]
        first = self.size is None
        check_piece(vae, pictures, self.size)
        self.size = pictures.shape[0], pictures.shape[-2], pictures.shape[-1]
        x = vae.to_network(pictures)
        if vae.config.patch is not None:
            x = patchify(x, vae.config.patch)
        cuts = [0, *range(1 if first else vae.TEMPORAL, count + 1, vae.TEMPORAL)]
        with full_precision_on_cpu(x):
            pieces = [
                vae.model.encoder(x[:, :, start:end], feat_cache=self.memory, feat_idx=[0])
                for start, end in pairwise(cuts)
            ]
            mean = vae.model.quant_conv(torch.cat(pieces, dim=2)).chunk(2, dim=1)[0]
        return vae.standardised(mean)


class WanPictures:
    """Decodes a video piece by piece; diffusers' convolutions keep what they still need of the frames before."""

    def __init__(self, vae: WanVAE) -> None:
        self.vae, self.first = vae, True
        self.memory = vae.new_memory()

    def push(self, latents: Float[Tensor, "B C f h w"]) -> Float[Tensor, "B n 3 H W"]:
        """See `PictureStream.push`."""
        made = self.vae.next_pictures(self.vae.raw(latents), self.memory, first=self.first)
        self.first = False
        return ((made.float() + 1.0) / 2.0).clamp(0.0, 1.0).transpose(1, 2)
