"""The causal world action model's transformer: a video and an action expert under one attention along an episode.

Mixture of transformers: attention is shared, feed-forward layers belong to the modality (RepWAM, papers.md 3.4), or to
both (LingBot-VA's released code). Training runs a whole sequence in one pass (`wamkit.dynamics.causal_layout`);
inference keeps keys and values of what was observed and executed (`wamkit.dynamics.causal_cache`) and predicts the
next chunk from them. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wamkit.dynamics.causal_attention import AttentionKind, causal_attention
from wamkit.dynamics.causal_cache import Batch, Row, Stacked
from wamkit.dynamics.causal_layout import Order, teacher_forcing
from wamkit.dynamics.causal_positions import action_positions, rotary_at, video_positions
from wamkit.dynamics.mixture_of_transformers import Expert, extend, joint
from wamkit.dynamics.video_dit import VideoDiT
from wamkit.dynamics.wan_block import Rotary, Stream, TimeCode, words_of
from wamkit.nn.attention import KeysValues


@runtime_checkable
class ActionTokens(Protocol):
    """Grouped actions to tokens and back: an expert of their own, or the video expert's blocks."""

    def blocks_beside(self, video: VideoDiT) -> Expert:
        """The blocks that action tokens go through."""
        ...

    def words_in(self, words: Float[Tensor, "B L E"], video: VideoDiT) -> Float[Tensor, "B L D"]:
        """The words in the tokens' width."""
        ...

    def enter(self, groups: Float[Tensor, "B F n A"]) -> Float[Tensor, "B N D"]:
        """Tokens of the groups' actions, group by group."""
        ...

    def time_code(self, noise_level: Float[Tensor, "*batch"]) -> TimeCode:
        """What noise levels do to tokens at them."""
        ...

    def prepare(
        self,
        groups: Float[Tensor, "B F n A"],
        noise_level: Float[Tensor, "B F"],
        rotary: Rotary,
        words: Float[Tensor, "B L D"],
        words_mask: Bool[Tensor, "B 1 1 L"] | None,
    ) -> tuple[Stream, Float[Tensor, "B F D"]]:
        """Everything before the first block, and the code of each group's noise level for `velocity`."""
        ...

    def velocity(
        self, tokens: Float[Tensor, "B N D"], code: Float[Tensor, "B F D"], video: VideoDiT, width: int
    ) -> Float[Tensor, "B N A"]:
        """From tokens to the velocity towards the noise, of groups whose actions have ``width`` numbers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """A batch of training sequences; the first frame of each is given, F more are predicted."""

    clean: Float[Tensor, "B C G h w"]
    """G = F + 1 latent frames, the history; possibly noisy themselves."""
    clean_level: Float[Tensor, "B G"]
    noisy: Float[Tensor, "B C F h w"]
    noisy_level: Float[Tensor, "B F"]
    frame_valid: Bool[Tensor, "B G"]
    actions: Float[Tensor, "B F n A"]
    """Clean."""
    noisy_actions: Float[Tensor, "B F n A"]
    action_level: Float[Tensor, "B F"]
    action_valid: Bool[Tensor, "B F n"]
    action_steps: Int[Tensor, "B"]
    """Real actions of a frame at the sample's rate."""
    words: Float[Tensor, "B L E"]
    words_valid: Bool[Tensor, "B L"] | None
    forward: Bool[Tensor, "B"]
    """Samples whose frames are predicted under the given actions."""
    chunk_length: int
    actions_told: Bool[Tensor, "B"] | None = None
    """Samples whose clean actions may be read at all; None: of every sample."""


class Velocities(NamedTuple):
    """Towards the noise."""

    video: Float[Tensor, "B C F h w"]
    action: Float[Tensor, "B F n A"]
    """Of the policy: from history alone."""
    inverse: Float[Tensor, "B F n A"]
    """With the chunk's own frames."""


class Words(NamedTuple):
    """An instruction's keys and values in every block of each expert: computed once for a chunk."""

    video: list[KeysValues]
    action: list[KeysValues]
    features: Float[Tensor, "B L E"]
    video_words: Float[Tensor, "B L D"]
    action_words: Float[Tensor, "B L d"]
    mask: Bool[Tensor, "B 1 1 L"] | None


class ActionContext(NamedTuple):
    """All that a chunk's actions read beside themselves: computed once, whatever the number of denoise steps."""

    prefix: tuple[KeysValues, ...]
    """By layer: history, and the chunk's frames where they are told."""
    mask: Bool[Tensor, "B 1 m N"]
    """Over the prefix and then the actions themselves."""
    rotary: Rotary
    words: list[KeysValues]
    action_words: Float[Tensor, "B L d"]


class CausalTransformer(nn.Module):
    """Both experts over one sequence.

    Args:
        video: The video expert.
        actions: What makes tokens of actions; a module, where it has weights of its own.
        window: How many latent frames before its chunk a token sees.
        order: Where a chunk's clean actions stand (`wamkit.dynamics.causal_layout`).
        attention: What computes training's attention.
    """

    actions: Any
    """`ActionTokens`, and a module; no type says both."""
    order: Order
    attention: AttentionKind

    def __init__(
        self, video: VideoDiT, actions: nn.Module, *, window: int, order: Order, attention: AttentionKind = "sdpa"
    ) -> None:
        super().__init__()
        self.video, self.actions = video, actions
        self.window, self.order, self.attention = window, order, attention

    # Training

    def forward(self, batch: Sequences) -> Velocities:
        """All frames and actions of the sequences at once, each as if it were the next."""
        video, actions = self.video, self._tokens
        history, future = batch.clean.shape[2], batch.noisy.shape[2]
        rows, columns = video.grid(batch.noisy)[1:]
        slots, width = batch.actions.shape[2:]
        device = batch.noisy.device
        numbers = torch.arange(history, device=device)

        levels = torch.cat([batch.clean_level, batch.noisy_level], dim=1)
        stream, code = video.prepare(
            torch.cat([batch.clean, batch.noisy], dim=2), levels, batch.words, batch.words_valid
        )
        places = video_positions(torch.cat([numbers, numbers[1:]]), rows, columns)
        stream = stream._replace(rotary=rotary_at(places, video.config.head_width))

        groups = torch.cat([batch.actions, batch.noisy_actions, batch.noisy_actions], dim=1)
        nothing = torch.zeros_like(batch.action_level)
        action_levels = torch.cat([nothing, batch.action_level, batch.action_level], dim=1)
        after = numbers[1:].repeat(3).expand(len(groups), -1)
        action_stream, action_code = actions.prepare(
            groups,
            action_levels,
            rotary_at(action_positions(after, slots, batch.action_steps), video.config.head_width),
            actions.words_in(batch.words, video),
            stream.words_mask,
        )

        layout = teacher_forcing(future, batch.chunk_length, rows * columns, slots, device)
        seen_frames = torch.cat([batch.frame_valid, batch.frame_valid[:, 1:]], dim=1)
        told = batch.action_valid
        if batch.actions_told is not None:
            told = told & batch.actions_told[:, None, None]
        seen_actions = torch.cat([told, batch.action_valid, batch.action_valid], dim=1).flatten(1)
        readable = torch.cat([seen_frames.repeat_interleave(rows * columns, dim=1), seen_actions], dim=1)
        mask = causal_attention(self.attention, layout, batch.forward, readable, window=self.window, order=self.order)
        blocks = [video.blocks, actions.blocks_beside(video)]
        tokens, action_tokens = joint(blocks, [stream, action_stream], mask)

        predicted = tokens[:, history * rows * columns :]
        made = actions.velocity(action_tokens[:, future * slots :], action_code[:, future:], video, width)
        policy, inverse = made.unflatten(1, (2, future, slots)).unbind(1)
        return Velocities(video.velocity(predicted, code[:, history:], (future, rows, columns)), policy, inverse)

    # Inference

    def empty_row(self) -> Row:
        """The past of an episode of which nothing was seen."""
        weight, config = self.video.model.proj_out.weight, self.video.config
        return Row.empty(config.layers, config.heads, config.head_width, device=weight.device, dtype=weight.dtype)

    def read(self, words: Float[Tensor, "B L E"], words_valid: Bool[Tensor, "B L"] | None = None) -> Words:
        """An instruction, ready for all passes of a chunk."""
        video, actions = self.video, self._tokens
        embedder = self.video.model.condition_embedder.text_embedder
        video_words = embedder(words.to(embedder.linear_1.weight.dtype))
        action_words = actions.words_in(words, video)
        return Words(
            [words_of(block, video_words) for block in video.blocks],
            [words_of(block, action_words) for block in actions.blocks_beside(video)],
            words,
            video_words,
            action_words,
            None if words_valid is None else words_valid[:, None, None, :],
        )

    def video_pass(
        self,
        past: Batch,
        latents: Float[Tensor, "B C f h w"],
        noise_level: Float[Tensor, "B f"],
        words: Words,
    ) -> tuple[Float[Tensor, "B C f h w"], list[KeysValues]]:
        """The next chunk's frames at their noise levels: their velocity, and their keys and values."""
        video, grid = self.video, self.video.grid(latents)
        stream, code = video.prepare(latents, noise_level, words.features)
        numbers = past.frames[:, None] + torch.arange(grid[0], device=latents.device)
        rotary = rotary_at(video_positions(numbers, grid[1], grid[2]), video.config.head_width)
        stream = stream._replace(rotary=rotary, words_mask=words.mask)
        own = torch.ones(stream.tokens.shape[:2], dtype=torch.bool, device=latents.device)
        tokens, kept = extend(video.blocks, stream, past.prefix, past.mask(own), words.video)
        return video.velocity(tokens, code, grid), kept

    def action_pass(
        self,
        past: Batch,
        groups: Float[Tensor, "B f n A"],
        valid: Bool[Tensor, "B f n"],
        steps: Int[Tensor, "B"],
        noise_level: Float[Tensor, "B f"],
        words: Words,
    ) -> tuple[Float[Tensor, "B f n A"], list[KeysValues]]:
        """The next chunk's actions at their noise levels: their velocity, and their keys and values."""
        context = self.action_context(past, valid, steps, words)
        return self.action_step(context, groups, self._tokens.time_code(noise_level), words.mask)

    def action_context(
        self, past: Batch, valid: Bool[Tensor, "B f n"], steps: Int[Tensor, "B"], words: Words
    ) -> ActionContext:
        """What `action_step` needs, at whatever noise level."""
        frames, slots = valid.shape[1:]
        numbers = past.frames[:, None] + torch.arange(frames, device=valid.device)
        rotary = rotary_at(action_positions(numbers, slots, steps), self.video.config.head_width)
        return ActionContext(past.prefix, past.mask(valid.flatten(1)), rotary, words.action, words.action_words)

    def action_codes(self, levels: Float[Tensor, "S"]) -> TimeCode:
        """Of all noise levels of a denoise loop in one pass."""
        return self._tokens.time_code(levels)

    def action_step(
        self,
        context: ActionContext,
        groups: Float[Tensor, "B f n A"],
        at: TimeCode,
        words_mask: Bool[Tensor, "B 1 1 L"] | None = None,
    ) -> tuple[Float[Tensor, "B f n A"], list[KeysValues]]:
        """`action_pass` with all known that does not follow from the actions.

        Args:
            context: From `action_context`.
            groups: Noisy.
            at: Of their noise levels, [B, f].
            words_mask: Which words may be read; None: all.
        """
        actions, (frames, slots, width) = self._tokens, groups.shape[1:]
        stream = Stream(actions.enter(groups), at.blocks, context.rotary, context.action_words, words_mask)
        blocks = actions.blocks_beside(self.video)
        tokens, kept = extend(blocks, stream, context.prefix, context.mask, context.words)
        made = actions.velocity(tokens, at.code, self.video, width)
        return made.unflatten(1, (frames, slots)), kept

    def observed(
        self,
        rows: Sequence[Row],
        latents: Float[Tensor, "B C f h w"],
        words: Words,
        groups: Float[Tensor, "B f n A"] | None = None,
        valid: Bool[Tensor, "B f n"] | None = None,
        steps: Int[Tensor, "B"] | None = None,
    ) -> list[Row]:
        """Rows after one more chunk of what was really seen and done.

        Args:
            rows: each episode's past.
            latents: of the observed frames, clean.
            words: the instructions.
            groups: the executed actions that led to each frame; None for an episode's first frame.
            valid: which of them are real.
            steps: actions of a frame at each row's rate.
        """
        past = Batch.of(rows)
        made = self.read_back(past, latents, words, groups, valid, steps)
        return self.rows_after(rows, made, latents.shape[2], valid)

    def read_back(
        self,
        past: Batch,
        latents: Float[Tensor, "B C f h w"],
        words: Words,
        groups: Float[Tensor, "B f n A"] | None = None,
        valid: Bool[Tensor, "B f n"] | None = None,
        steps: Int[Tensor, "B"] | None = None,
    ) -> list[Stacked]:
        """Keys and values of what was observed and, where something was, of what was executed; as for `observed`."""
        clean = torch.zeros(len(latents), latents.shape[2], device=latents.device)
        _, kept = self.video_pass(past, latents, clean, words)
        if groups is None:
            return [Stacked.of(kept)]
        assert valid is not None
        assert steps is not None
        told = past
        if self.order == "after_video":
            told = past.followed_by(kept, past.readable.new_ones(len(latents), kept[0].keys.shape[2]))
        _, acted = self.action_pass(told, groups, valid, steps, clean, words)
        return [Stacked.of(kept), Stacked.of(acted)]

    def rows_after(
        self,
        rows: Sequence[Row],
        made: Sequence[Stacked],
        frames: int,
        valid: Bool[Tensor, "B f n"] | None = None,
    ) -> list[Row]:
        """Rows with what `read_back` made of ``frames`` more latent frames."""
        after = []
        for index, row in enumerate(rows):
            number = torch.arange(row.frames, row.frames + frames, device=row.frame.device)
            keys, values, numbers = [], [], []
            for part, stacked in enumerate(made):
                frame = number.repeat_interleave(stacked.keys.shape[3] // frames)
                # Of a frame every token is kept, of its actions those that are real.
                real = slice(None)
                if part:
                    assert valid is not None
                    real = valid[index].flatten()
                keys.append(stacked.keys[index][:, :, real])
                values.append(stacked.values[index][:, :, real])
                numbers.append(frame[real])
            joined = (torch.cat(keys, dim=2).to(row.keys.dtype), torch.cat(values, dim=2).to(row.values.dtype))
            after.append(row.with_frames(*joined, torch.cat(numbers), added=frames, window=self.window))
        return after

    @property
    def _tokens(self) -> ActionTokens:
        return self.actions
