"""Wan's video diffusion transformer as a world model's backbone (diffusers' `WanTransformer3DModel`).

The first latent frame is the clean present (noise level 0), the others are noisy; each frame has its own noise level,
and under the first-frame-causal mask the present never sees the future (Fast-WAM; Light-WAM, papers.md 2.4), so states
read from it are the same with and without a future beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.dynamics.wan_block import Rotary, Stream, scale_and_shift, through_block
from wamkit.errors import MisfitError, WeightsError
from wamkit.nn.lora import add_lora, load_base_weights

LORA_TARGETS = r"blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ffn\.net\.(0\.proj|2))"
"""Light-WAM's: every projection of both attentions, and both layers of the feed-forward."""


@dataclass(frozen=True)
class VideoDiTConfig:
    """Dimensions, Wan2.1-T2V-1.3B's by default (papers.md 2.3), and where the weights come from."""

    weights: str | None = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    """Local folder or hub id in diffusers' layout (its folder ``transformer``); None: trained in the run."""
    patch: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns of one token."""
    channels: int = 16
    heads: int = 12
    head_width: int = 128
    mlp_width: int = 8960
    layers: int = 30
    text_width: int = 4096
    time_width: int = 256

    @property
    def width(self) -> int:
        """D."""
        return self.heads * self.head_width


def wan22_5b() -> VideoDiTConfig:
    """Wan2.2-TI2V-5B's (papers.md 4)."""
    return VideoDiTConfig(
        weights="Wan-AI/Wan2.2-TI2V-5B-Diffusers", channels=48, heads=24, head_width=128, mlp_width=14336
    )


@dataclass(frozen=True)
class LoRASettings:
    """Low-rank corrections of the backbone (Light-WAM's rank and scale)."""

    rank: int = 64
    alpha: float = 128.0


AfterBlock = Callable[[int, Tensor], Tensor]
"""``after(index, tokens)``: what goes on to the next block; adapters and taps hang here."""


def first_frame_causal(frames: int, tokens: int, device: torch.device | str) -> Bool[Tensor, "1 1 N N"]:
    """The published mask: the first frame sees itself alone, later frames see everything."""
    index = torch.arange(frames * tokens, device=device) // tokens
    allowed = (index[:, None] > 0) | (index[None, :] == 0)
    return allowed[None, None]


class VideoDiT(nn.Module):
    """Noisy latents, the words and each frame's noise level to the velocity towards the noise."""

    def __init__(self, config: VideoDiTConfig, lora: LoRASettings | None = None) -> None:
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

        super().__init__()
        self.config = config
        self.model = WanTransformer3DModel(
            patch_size=config.patch,
            num_attention_heads=config.heads,
            attention_head_dim=config.head_width,
            in_channels=config.channels,
            out_channels=config.channels,
            text_dim=config.text_width,
            freq_dim=config.time_width,
            ffn_dim=config.mlp_width,
            num_layers=config.layers,
        )
        if lora is not None:
            add_lora(self.model, LORA_TARGETS, rank=lora.rank, alpha=lora.alpha)

    def load_pretrained(self) -> None:
        """Load the published weights named in the config; corrections of low rank stay as they are.

        Raises:
            WeightsError: the folder or hub id cannot be read, or holds a model of other dimensions.
        """
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

        weights = self.config.weights
        if weights is None:
            raise WeightsError("this video backbone's config names no weights; set video.weights to a folder")
        try:
            published = WanTransformer3DModel.from_pretrained(weights, subfolder="transformer")
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"the Wan transformer {weights!r} cannot be loaded ({error}); download it once and set video.weights to"
                " the folder that holds transformer/, or use a preset that trains its own"
            ) from error
        try:
            load_base_weights(self.model, published.state_dict())
        except ValueError as error:
            raise WeightsError(f"the Wan transformer in {weights!r} does not fit: {error}") from error

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        return self.model.blocks

    def head_parameters(self) -> list[nn.Parameter]:
        """The last layer and its modulation: trained along with the corrections (Light-WAM)."""
        return [*self.model.proj_out.parameters(), self.model.scale_shift_table]

    def grid(self, latents: Float[Tensor, "B C F h w"]) -> tuple[int, int, int]:
        """Tokens in time, height and width.

        Raises:
            MisfitError: the latents are no whole number of patches.
        """
        size, patch = latents.shape[2:], self.config.patch
        if any(n % p for n, p in zip(size, patch, strict=True)):
            raise MisfitError(f"latents of {tuple(size)} cells do not fit the backbone's patch {patch}")
        frames, rows, columns = (n // p for n, p in zip(size, patch, strict=True))
        return frames, rows, columns

    def prepare(
        self,
        latents: Float[Tensor, "B C F h w"],
        noise_level: Float[Tensor, "B F"],
        words: Float[Tensor, "B L E"],
        words_valid: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Stream, Float[Tensor, "B F D"]]:
        """Everything before the first block, and the code of each frame's noise level for `velocity`.

        Args:
            latents: standardised; the first frame is the clean present.
            noise_level: of each latent frame, 0 (data) to 1 (noise).
            words: features of the text encoder, with whatever tokens the policy adds to them.
            words_valid: False where a token must not be read; None: all are.
        """
        model = self.model
        frames, rows, columns = self.grid(latents)
        # The convolution's kernel is the whole patch: a matrix product, which on a CPU is by far the faster.
        kernel, patch = model.patch_embedding, self.config.patch
        cells = latents.to(kernel.weight.dtype)
        for axis, size in zip((2, 4, 6), patch, strict=True):
            cells = cells.unflatten(axis, (-1, size))
        cells = cells.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
        tokens = nn.functional.linear(cells, kernel.weight.flatten(1), kernel.bias).to(kernel.weight.dtype)
        code, time = self.time_code(noise_level)
        embedded = model.condition_embedder.text_embedder(words.to(kernel.weight.dtype))
        mask = None if words_valid is None else words_valid[:, None, None, :]
        return Stream(tokens, time, self.rotary(frames, rows, columns), embedded, mask), code

    def time_code(self, noise_level: Float[Tensor, "B F"]) -> tuple[Float[Tensor, "B F D"], Float[Tensor, "B F 6 D"]]:
        """Code of each frame's noise level, and the blocks' modulation made of it; Wan counts levels in thousands."""
        embedder = self.model.condition_embedder
        wave = embedder.timesteps_proj(1000.0 * noise_level.float().flatten())
        dtype = embedder.time_proj.weight.dtype
        code = embedder.time_embedder(wave.to(dtype)).unflatten(0, noise_level.shape)
        return code, embedder.time_proj(embedder.act_fn(code)).unflatten(-1, (6, -1))

    def rotary(self, frames: int, rows: int, columns: int) -> Rotary:
        """Rotary code of a grid of tokens: the channels of a head shared among time, height and width."""
        rope = self.model.rope
        sizes = [rope.t_dim // 2, rope.h_dim // 2, rope.w_dim // 2]
        shape = (frames, rows, columns)

        def table(values: Tensor) -> Tensor:
            parts = []
            for axis, part in enumerate(values[:, ::2].split(sizes, dim=1)):
                view = [1, 1, 1, -1]
                view[axis] = shape[axis]
                parts.append(part[: shape[axis]].view(view).expand(*shape, -1))
            return torch.cat(parts, dim=-1).flatten(0, 2)

        cosines, sines = rope.freqs_cos, rope.freqs_sin
        assert isinstance(cosines, Tensor)
        assert isinstance(sines, Tensor)
        return Rotary(table(cosines), table(sines))

    def through(
        self,
        stream: Stream,
        mask: Bool[Tensor, "#B 1 N N"] | None = None,
        *,
        after: AfterBlock | None = None,
        until: int | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The tokens after the blocks, or after the first ``until`` of them."""
        x = stream.tokens
        for index, block in enumerate(self.blocks[:until]):
            x = through_block(block, x, stream, mask)
            if after is not None:
                x = after(index, x)
        return x

    def velocity(
        self, tokens: Float[Tensor, "B N D"], code: Float[Tensor, "B F D"], grid: tuple[int, int, int]
    ) -> Float[Tensor, "B C F h w"]:
        """From tokens to the velocity towards the noise of every latent cell."""
        (frames, rows, columns), patch = grid, self.config.patch
        cells = self.model.proj_out(self.leaving(tokens, code))
        cells = cells.view(tokens.shape[0], frames, rows, columns, *patch, self.config.channels)
        cells = cells.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return cells.flatten(6, 7).flatten(4, 5).flatten(2, 3).float()

    def leaving(self, tokens: Float[Tensor, "B N D"], code: Float[Tensor, "B F D"]) -> Float[Tensor, "B N D"]:
        """The last norm, modulated by the noise level of each of F equal runs of tokens."""
        table = self.model.scale_shift_table.float().unsqueeze(0) + code.float().unsqueeze(2)
        shift, scale = (part.unsqueeze(2) for part in table.unbind(2))
        return scale_and_shift(self.model.norm_out(tokens.float()), scale, shift).to(tokens.dtype)

    def forward(
        self,
        latents: Float[Tensor, "B C F h w"],
        noise_level: Float[Tensor, "B F"],
        words: Float[Tensor, "B L E"],
        words_valid: Bool[Tensor, "B L"] | None = None,
        *,
        after: AfterBlock | None = None,
    ) -> Float[Tensor, "B C F h w"]:
        """Velocity towards the noise, under the first-frame-causal mask."""
        stream, code = self.prepare(latents, noise_level, words, words_valid)
        grid = self.grid(latents)
        # One frame has nobody to hide from.
        mask = first_frame_causal(grid[0], grid[1] * grid[2], latents.device) if grid[0] > 1 else None
        return self.velocity(self.through(stream, mask, after=after), code, grid)
