"""Fast-WAM's action expert: a narrow Wan transformer whose attention is as wide as the video expert's.

Its blocks are Wan's with another width, so its tokens attend to the video expert's keys and values
(`wamkit.dynamics.mixture_of_transformers`). Dimensions in papers.md 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.configuration import ConfigError
from wamkit.dynamics.video_dit import VideoDiT
from wamkit.dynamics.wan_block import Rotary, Stream
from wamkit.nn.position import sincos


@dataclass(frozen=True)
class ActionDiTConfig:
    """Dimensions; the defaults are the released ones. Heads, their width and depth are the video expert's."""

    action_dim: int = 7
    width: int = 1024
    mlp_width: int = 4096
    time_width: int = 256
    denoise_steps: int = 10

    def __post_init__(self) -> None:
        if self.denoise_steps < 1:
            raise ConfigError(f"denoise_steps is {self.denoise_steps}: actions take at least 1 step")


class ActionBlock(nn.Module):
    """Wan's block for tokens narrower than its attention; names are those of diffusers' `WanTransformerBlock`."""

    def __init__(self, width: int, mlp_width: int, heads: int, head_width: int, *, eps: float = 1e-6) -> None:
        from diffusers.models.attention import FeedForward
        from diffusers.models.normalization import FP32LayerNorm
        from diffusers.models.transformers.transformer_wan import WanAttention

        super().__init__()
        self.norm1 = FP32LayerNorm(width, eps, elementwise_affine=False)
        self.attn1 = WanAttention(width, heads=heads, dim_head=head_width, eps=eps)
        self.attn2 = WanAttention(width, heads=heads, dim_head=head_width, eps=eps, cross_attention_dim_head=head_width)
        self.norm2 = FP32LayerNorm(width, eps, elementwise_affine=True)
        self.ffn = FeedForward(width, inner_dim=mlp_width, activation_fn="gelu-approximate")
        self.norm3 = FP32LayerNorm(width, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, width) / width**0.5)


class ActionDiT(nn.Module):
    """Noisy actions to tokens, and tokens to the velocity towards the noise."""

    def __init__(self, config: ActionDiTConfig, *, heads: int, head_width: int, layers: int, text_width: int) -> None:
        super().__init__()
        self.config, self.head_width = config, head_width
        width = config.width
        self.enter = nn.Linear(config.action_dim, width)
        self.text_embedder = nn.Sequential(
            nn.Linear(text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.time_embedder = nn.Sequential(nn.Linear(config.time_width, width), nn.SiLU(), nn.Linear(width, width))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(ActionBlock(width, config.mlp_width, heads, head_width) for _ in range(layers))
        self.leave = nn.Linear(width, config.action_dim)

    def words_in(self, words: Float[Tensor, "B L E"]) -> Float[Tensor, "B L D"]:
        """The words in this expert's width; done once for all denoise steps."""
        return self.text_embedder(words.to(self.enter.weight.dtype))

    def prepare(
        self,
        noisy: Float[Tensor, "B K A"],
        noise_level: Float[Tensor, "B"],
        words: Float[Tensor, "B L D"],
        words_valid: Bool[Tensor, "B L"] | None = None,
    ) -> Stream:
        """Everything before the first block.

        Args:
            noisy: chunks at their noise levels.
            noise_level: 0 (data) to 1 (noise).
            words: from `words_in`.
            words_valid: False where a token must not be read; None: all are.
        """
        return self.enter_at(noisy, self.time_code(noise_level), words, words_valid)

    def time_code(self, noise_level: Float[Tensor, "B"]) -> Float[Tensor, "B 1 6 D"]:
        """Scales, shifts and gates at these noise levels, before a block adds its own."""
        # Cosines before sines, and noise levels counted in thousands, as in Wan.
        sines, cosines = sincos(1000.0 * noise_level.float(), self.config.time_width).chunk(2, dim=-1)
        code = self.time_embedder(torch.cat([cosines, sines], dim=-1).to(self.enter.weight.dtype))
        return self.time_projection(code).unflatten(-1, (1, 6, -1))

    def enter_at(
        self,
        noisy: Float[Tensor, "B K A"],
        time: Float[Tensor, "B 1 6 D"],
        words: Float[Tensor, "B L D"] | None,
        words_valid: Bool[Tensor, "B L"] | None = None,
    ) -> Stream:
        """`prepare`, where the time's code is at hand.

        Args:
            noisy: chunks at their noise levels.
            time: from `time_code`.
            words: see `prepare`; None where each block's keys and values of them are given to the blocks.
            words_valid: see `prepare`.
        """
        dtype = self.enter.weight.dtype
        mask = None if words_valid is None else words_valid[:, None, None, :]
        tokens = self.enter(noisy.to(dtype)).to(dtype)
        read = tokens[:, :0] if words is None else words
        return Stream(tokens, time, self.rotary(noisy.shape[1], noisy.device), read, mask)

    def rotary(self, steps: int, device: torch.device | str) -> Rotary:
        """Rotary code of the steps' numbers over all channels of a head."""
        half = self.head_width // 2
        periods = 1e4 ** (torch.arange(half, dtype=torch.float64, device=device) / half)
        angle = torch.arange(steps, dtype=torch.float64, device=device)[:, None] / periods
        return Rotary(angle.cos().float(), angle.sin().float())

    def velocity(self, tokens: Float[Tensor, "B K D"]) -> Float[Tensor, "B K A"]:
        """From tokens to the velocity towards the noise."""
        return self.leave(tokens).float()

    @torch.no_grad()
    def start_from(self, video: VideoDiT) -> None:
        """Take the video expert's blocks as a start, each weight interpolated linearly to the smaller size.

        A matrix that reads a narrower stream is scaled up by the root of the ratio, so that its sums keep their size.
        The published start was made likewise (papers.md 4); its exact scale is not stated in the paper.

        Args:
            video: Wan's transformer with as many blocks.
        """
        theirs = {name: value for name, value in video.blocks.state_dict().items() if ".lora_" not in name}
        theirs = {name.replace(".base_layer", ""): value for name, value in theirs.items()}
        for name, own in self.blocks.state_dict().items():
            source = theirs[name].float()
            scale = 1.0
            if own.ndim == 2 and source.shape[1] != own.shape[1]:
                scale = (source.shape[1] / own.shape[1]) ** 0.5
            own.copy_(scale * _interpolated(source, own.shape))


def _interpolated(source: Tensor, shape: torch.Size) -> Tensor:
    """Linear interpolation along every axis whose length differs."""
    for axis, length in enumerate(shape):
        if source.shape[axis] != length:
            moved = source.movedim(axis, -1)
            flat = moved.reshape(1, -1, moved.shape[-1])
            flat = F.interpolate(flat, size=length, mode="linear", align_corners=True)
            source = flat.view(*moved.shape[:-1], length).movedim(-1, axis)
    return source
