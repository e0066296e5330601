"""Actions in groups, one group for each latent frame, as tokens of a causal sequence.

Either an expert of their own stands beside the video expert (RepWAM; LingBot-VA's paper), or the video expert's blocks
take them too (LingBot-VA's released code). Both are `wamkit.dynamics.causal_transformer.ActionTokens`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.actions.action_dit import ActionDiT, ActionDiTConfig
from wamkit.dynamics.mixture_of_transformers import Expert
from wamkit.dynamics.video_dit import VideoDiT
from wamkit.dynamics.wan_block import Rotary, Stream, TimeCode
from wamkit.nn.position import sincos


@dataclass(frozen=True)
class OwnExpert:
    """Dimensions of an action expert of its own; RepWAM's by default (papers.md 3.4)."""

    kind: ClassVar[str] = "own_expert"
    action_dim: int = 32
    """Width to which actions of all embodiments are padded."""
    width: int = 768
    mlp_width: int = 1408
    """Not in the paper; with it an expert beside the 1.3B video expert has the stated 350 million parameters."""


@dataclass(frozen=True)
class SharedBlocks:
    """Actions go through the video expert's own blocks, as in LingBot-VA's released code."""

    kind: ClassVar[str] = "shared_blocks"
    action_dim: int = 30


ActionTokensConfig = OwnExpert | SharedBlocks


class _WanTime(nn.Module):
    """Wan's code of a noise level, with weights of its own; names are diffusers'."""

    def __init__(self, width: int, time_width: int) -> None:
        from diffusers.models.embeddings import TimestepEmbedding

        super().__init__()
        self.time_width = time_width
        self.time_embedder = TimestepEmbedding(in_channels=time_width, time_embed_dim=width)
        self.time_proj = nn.Linear(width, 6 * width)

    def forward(
        self, noise_level: Float[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch 6 D"]]:
        # Cosines before sines, and noise levels counted in thousands, as in Wan.
        sines, cosines = sincos(1000.0 * noise_level.float(), self.time_width).chunk(2, dim=-1)
        code = self.time_embedder(torch.cat([cosines, sines], dim=-1).to(self.time_proj.weight.dtype))
        return code, self.time_proj(nn.functional.silu(code)).unflatten(-1, (6, -1))


class _Widths(nn.Module):
    """In and out for each kind of action that the tokens carry: real ones, and latent ones before them."""

    def __init__(self, width: int, action_widths: dict[str, int]) -> None:
        super().__init__()
        self.widths = dict(action_widths)
        self.enter = nn.ModuleDict({name: nn.Linear(size, width) for name, size in action_widths.items()})
        self.leave = nn.ModuleDict({name: nn.Linear(width, size) for name, size in action_widths.items()})

    def named(self, width: int) -> str:
        for name, size in self.widths.items():
            if size == width:
                return name
        raise ValueError(f"no head takes actions of {width} numbers; there are {self.widths}")


def check_widths(widths: dict[str, int]) -> None:
    """Refuse heads that their width does not tell apart.

    Raises:
        ValueError: two kinds of actions have one width.
    """
    if len(set(widths.values())) != len(widths):
        raise ValueError(f"kinds of actions are told apart by their width, and these are {widths}: pad one to another")


class ActionTokensBase(nn.Module):
    """What both kinds share: heads for real and for latent actions, and the code of a noise level."""

    heads: _Widths
    time: _WanTime

    def head_parameters(self, name: str) -> list[nn.Parameter]:
        """Of one kind of action: ``real`` or ``latent``."""
        return [*self.heads.enter[name].parameters(), *self.heads.leave[name].parameters()]

    def enter(self, groups: Float[Tensor, "B F n A"]) -> Float[Tensor, "B N D"]:
        """Tokens of the groups' actions, group by group."""
        layer = self.heads.enter[self.heads.named(groups.shape[-1])]
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return layer(groups.flatten(1, 2).to(weight.dtype)).to(weight.dtype)

    def time_code(self, noise_level: Float[Tensor, "*batch"]) -> TimeCode:
        """What noise levels do to tokens at them."""
        return TimeCode(*self.time(noise_level))

    def prepare(
        self,
        groups: Float[Tensor, "B F n A"],
        noise_level: Float[Tensor, "B F"],
        rotary: Rotary,
        words: Float[Tensor, "B L D"],
        words_mask: Tensor | None,
    ) -> tuple[Stream, Float[Tensor, "B F D"]]:
        """See `wamkit.dynamics.causal_transformer.ActionTokens`."""
        code, time = self.time(noise_level)
        return Stream(self.enter(groups), time, rotary, words, words_mask), code


class GroupedExpert(ActionTokensBase):
    """Blocks of their own, narrower than the video expert's, attending in the same heads and channels."""

    def __init__(self, config: OwnExpert, video: VideoDiT, *, action_widths: dict[str, int], text_width: int) -> None:
        super().__init__()
        check_widths(action_widths)
        dims = video.config
        dit = ActionDiT(
            ActionDiTConfig(width=config.width, mlp_width=config.mlp_width, time_width=dims.time_width),
            heads=dims.heads,
            head_width=dims.head_width,
            layers=dims.layers,
            text_width=text_width,
        )
        self.blocks, self.text_embedder = dit.blocks, dit.text_embedder
        self.time = _WanTime(config.width, dims.time_width)
        self.heads = _Widths(config.width, action_widths)

    def blocks_beside(self, video: VideoDiT) -> Expert:
        """Its own."""
        return self.blocks

    def words_in(self, words: Float[Tensor, "B L E"], video: VideoDiT) -> Float[Tensor, "B L D"]:
        """Through an embedding of its own."""
        first = cast("nn.Linear", self.text_embedder[0]).weight
        return self.text_embedder(words.to(first.dtype))

    def velocity(
        self, tokens: Float[Tensor, "B N D"], code: Float[Tensor, "B F D"], video: VideoDiT, width: int
    ) -> Float[Tensor, "B N A"]:
        """One linear layer, as in Fast-WAM's action expert."""
        return self.heads.leave[self.heads.named(width)](tokens).float()

    @torch.no_grad()
    def start_from(self, video: VideoDiT) -> None:
        """Take the video expert's blocks as a start, interpolated to the smaller width (LingBot-VA's paper)."""
        ActionDiT.start_from(self, video)  # pyright: ignore[reportArgumentType]  # needs `blocks` alone


class SharedActionTokens(ActionTokensBase):
    """No blocks of their own: an embedding, a noise-level code, a last layer; words are read in the video's width."""

    def __init__(self, video: VideoDiT, *, action_widths: dict[str, int]) -> None:
        super().__init__()
        check_widths(action_widths)
        self.time = _WanTime(video.config.width, video.config.time_width)
        self.heads = _Widths(video.config.width, action_widths)

    def blocks_beside(self, video: VideoDiT) -> Expert:
        """The video expert's."""
        return video.blocks

    def words_in(self, words: Float[Tensor, "B L E"], video: VideoDiT) -> Float[Tensor, "B L D"]:
        """Through the video expert's embedding."""
        embedder = video.model.condition_embedder.text_embedder
        return embedder(words.to(embedder.linear_1.weight.dtype))

    def velocity(
        self, tokens: Float[Tensor, "B N D"], code: Float[Tensor, "B F D"], video: VideoDiT, width: int
    ) -> Float[Tensor, "B N A"]:
        """The video expert's last norm under the actions' own noise level, then a layer of their own."""
        return self.heads.leave[self.heads.named(width)](video.leaving(tokens, code)).float()


def action_tokens(
    config: ActionTokensConfig, video: VideoDiT, *, latent_width: int | None = None
) -> GroupedExpert | SharedActionTokens:
    """The action tokens that a config names.

    Args:
        config: Its class says which.
        video: The video expert beside them.
        latent_width: Numbers of a latent action token, where they are to carry latent actions too.
    """
    widths = {"real": config.action_dim}
    if latent_width is not None:
        widths["latent"] = latent_width
    if isinstance(config, OwnExpert):
        return GroupedExpert(config, video, action_widths=widths, text_width=video.config.text_width)
    return SharedActionTokens(video, action_widths=widths)
