"""The flow-matching action expert of LaWAM: an alternating DiT over a dynamics and a vision-language stream.

LaWAM section 3.3 and appendix C.2; dimensions in papers.md 1.4. Blocks come in groups of four: cross-attention to
the vision-language stream, self-attention, cross-attention to the dynamics stream, self-attention.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wamkit.actions.flow_field import VelocityField, integrate
from wamkit.configuration import ConfigError
from wamkit.errors import MisfitError
from wamkit.losses.flow_matching import euler_levels
from wamkit.nn.adaln import AdaNorm
from wamkit.nn.attention import Attention, KeysValues
from wamkit.nn.embodiment_linear import EmbodimentLinear
from wamkit.nn.feed_forward import FeedForward
from wamkit.nn.position import seconds_code, sincos


@dataclass(frozen=True)
class FlowExpertConfig:
    """Dimensions of the action expert; the defaults are the released ones."""

    width: int = 1024
    layers: int = 16
    heads: int = 16
    action_dim: int = 32
    embodiments: int = 32
    dropout: float = 0.2
    time_code: Literal["seconds", "index"] = "seconds"
    """``seconds`` is LaWAM's physical-time code; ``index`` counts tokens: the ablation without it."""
    time_code_at: Literal["input", "every_block"] = "input"
    """The paper adds the code to the action query before denoising (C.3); the released code after each norm."""
    time_unit_s: float = 1.0
    """Seconds that count as one unit of position in the code (the paper's: 1 s)."""
    denoise_steps: int = 10

    def __post_init__(self) -> None:
        if self.denoise_steps < 1:
            raise ConfigError(f"denoise_steps is {self.denoise_steps}: actions take at least 1 step")


class Context(NamedTuple):
    """Keys and values of both streams for every cross-attention block: projected once per chunk."""

    streams: list[KeysValues]
    mask: Bool[Tensor, "B 1 1 M"]


class AlternatingBlock(nn.Module):
    """AdaNorm, attention (self, or to one stream), residual; LayerNorm, feed-forward, residual."""

    def __init__(self, config: FlowExpertConfig, context_width: int | None) -> None:
        super().__init__()
        self.attention_norm = AdaNorm(config.width, config.width)
        self.attention = Attention(config.width, config.heads, context_width=context_width)
        self.feed_forward_norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.feed_forward = FeedForward(config.width, activation="gelu_tanh", dropout=config.dropout)
        # The released block drops out twice in a row after attention; one dropout keeps as much.
        self.attention_dropout = nn.Dropout(1.0 - (1.0 - config.dropout) ** 2)
        self.dropout = nn.Dropout(config.dropout)


class FlowExpert(nn.Module):
    """Predicts the velocity towards the data of a noisy action chunk.

    Several noise draws R of one sample share its context: they are extra queries, so keys and values are never
    repeated.
    """

    def __init__(self, config: FlowExpertConfig, *, dynamics_width: int, language_width: int) -> None:
        super().__init__()
        if config.layers % 4:
            raise MisfitError(f"the alternating DiT has groups of four blocks, so {config.layers} layers cannot be")
        self.config = config
        # The vision-language stream is brought to the dynamics stream's width (`enc_vlm` of the released code).
        self.enter_language = nn.Sequential(nn.Linear(language_width, dynamics_width), nn.LayerNorm(dynamics_width))
        self.action_in = EmbodimentLinear(config.embodiments, config.action_dim, config.width)
        self.action_hidden = EmbodimentLinear(config.embodiments, config.width, config.width)
        self.noise_level = nn.Sequential(nn.Linear(256, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
        self.blocks = nn.ModuleList(
            AlternatingBlock(config, dynamics_width if index % 2 == 0 else None) for index in range(config.layers)
        )
        self.final_norm = AdaNorm(config.width, config.width, eps=1e-6)
        self.leave = nn.Linear(config.width, config.width)
        self.action_out_hidden = EmbodimentLinear(config.embodiments, config.width, config.width)
        self.action_out = EmbodimentLinear(config.embodiments, config.width, config.action_dim)

    def _in_order(self) -> Iterable[AlternatingBlock]:
        """The blocks, in their own type, which a `ModuleList` forgets."""
        return cast("Iterable[AlternatingBlock]", self.blocks)

    def called_modules(self) -> list[nn.Module]:
        """What of the blocks is called as a module, so that FSDP2 can gather it (a block itself is never called)."""
        called: list[nn.Module] = [self.final_norm.modulation]
        for block in self._in_order():
            # Keys and values are projected apart from the rest of cross-attention: once per chunk.
            called += [block.attention_norm.modulation, block.attention.to_kv, block.attention, block.feed_forward]
        return called

    def prepare(
        self,
        dynamics: Float[Tensor, "B N D"],
        language: Float[Tensor, "B L E"],
        language_valid: Bool[Tensor, "B L"],
    ) -> Context:
        """Project both streams for every cross-attention block; done once per chunk, not per denoise step."""
        words = self.enter_language(language)
        streams = [
            block.attention.project(words if index % 4 == 0 else dynamics)
            for index, block in enumerate(self._in_order())
            if index % 2 == 0
        ]
        return Context(streams, language_valid[:, None, None, :])

    def time_code(self, times: Float[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """The code of each action token: of its time in seconds, or of its index (the ablation)."""
        if self.config.time_code == "seconds":
            return seconds_code(times, self.config.width, unit_s=self.config.time_unit_s)
        index = torch.arange(times.shape[1], device=times.device, dtype=torch.float32)
        return sincos(index, self.config.width).expand(times.shape[0], -1, -1)

    def modulations(self, noise_level: Float[Tensor, "*batch"]) -> list[Float[Tensor, "*batch E"]]:
        """Scale and shift of every norm at these noise levels; known ahead of the denoise loop."""
        # The released network counts time towards the data in 1000 buckets; the small term keeps 0.7 in bucket 700.
        bucket = ((1.0 - noise_level) * 1000.0 + 1e-3).floor()
        condition = self.noise_level(sincos(bucket, 256, endpoint=True).to(self.action_in.weight.dtype))
        norms = [*(block.attention_norm for block in self._in_order()), self.final_norm]
        return [norm.modulate(condition) for norm in norms]

    def velocity(
        self,
        noisy: Float[Tensor, "B R K A"],
        modulations: list[Float[Tensor, "B R E"]],
        context: Context,
        time_code: Float[Tensor, "B K D"],
        valid: Bool[Tensor, "B K"],
        embodiment: Int[Tensor, "B"],
    ) -> Float[Tensor, "B R K A"]:
        """Velocity towards the data for R noise draws of each sample.

        Args:
            noisy: the chunks at their noise levels.
            modulations: from `modulations`, one for each draw.
            context: from `prepare`.
            time_code: from `time_code`.
            valid: which action tokens are real; padding is never attended to.
            embodiment: picks the action encoder and decoder.
        """
        batch, draws, chunk, _ = noisy.shape
        flat = (batch, draws * chunk, -1)
        x = nn.functional.silu(self.action_in(noisy.reshape(batch, draws * chunk, -1), embodiment))
        x = self.action_hidden(x, embodiment).view(batch, draws, chunk, -1)
        code = time_code.unsqueeze(1).to(x.dtype)
        at_input = self.config.time_code_at == "input"
        if at_input:
            x = x + code
        keys_valid = valid.repeat_interleave(draws, dim=0)[:, None, None, :] if draws > 1 else valid[:, None, None, :]
        stream = iter(context.streams)
        for index, block in enumerate(self._in_order()):
            normed = block.attention_norm(x, modulations[index])
            if not at_input:
                normed = normed + code
            if index % 2 == 0:
                mask = context.mask if index % 4 == 0 else None
                attended = block.attention(normed.reshape(flat), next(stream), mask).view_as(x)
            else:
                attended = block.attention(normed.flatten(0, 1), mask=keys_valid).view_as(x)
            x = x + block.attention_dropout(attended)
            x = x + block.dropout(block.feed_forward(block.feed_forward_norm(x)))
        x = self.leave(self.final_norm(x, modulations[-1])).reshape(flat)
        x = nn.functional.relu(self.action_out_hidden(x, embodiment))
        return self.action_out(x, embodiment).view(noisy.shape)

    def sample(
        self,
        noise: Float[Tensor, "B K A"],
        context: Context,
        times: Float[Tensor, "B K"],
        valid: Bool[Tensor, "B K"],
        embodiment: Int[Tensor, "B"],
    ) -> Float[Tensor, "B K A"]:
        """Euler integration from noise to an action chunk in ``denoise_steps`` steps."""
        return integrate(self.field(context, times, valid, embodiment), noise, self.config.denoise_steps)

    def field(
        self,
        context: Context,
        times: Float[Tensor, "B K"],
        valid: Bool[Tensor, "B K"],
        embodiment: Int[Tensor, "B"],
    ) -> VelocityField:
        """The velocity as a function of chunk and Euler step alone; all else is computed here, once."""
        levels = euler_levels(self.config.denoise_steps, times.device)
        # All modulations in one pass, before the loop: [steps, E] each.
        modulations = self.modulations(levels[:-1])
        code = self.time_code(times)

        def velocity(x: Float[Tensor, "B K A"], step: int) -> Float[Tensor, "B K A"]:
            now = [modulation[step].expand(x.shape[0], 1, -1) for modulation in modulations]
            return self.velocity(x.unsqueeze(1), now, context, code, valid, embodiment).squeeze(1)

        return velocity
