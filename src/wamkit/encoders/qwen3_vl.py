"""Qwen3-VL's first layers as a vision-language trunk into which learned queries are written.

The modules are transformers' own (`Qwen3VLModel`), so published weights load by name; the forward is ours,
because the sequence here has one fixed layout: every segment lies at a known place, so nothing depends on the
data's values and positions are plain tensors. A test holds it against transformers' forward.

Layout, causal from left to right (LaWAM C.2)::

    [lead-in] [primary image] [instruction] [latent-action queries] [auxiliary images ...] [action queries]

so the latent-action queries see the primary view and the instruction only, the action queries everything. The
released code words it as a chat, with fixed texts and a space between any two queries, and gives no grid positions
to images; ``layout="released"`` does so too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from wamkit.encoders.byte_text import ByteTokenizer, InstructionTooLong
from wamkit.encoders.qwen3_vl_prompt import PROMPTS, Layout, PromptIds
from wamkit.errors import MisfitError, WeightsError


@dataclass(frozen=True)
class Qwen3VLSettings:
    """Dimensions of the trunk; the defaults are Qwen3-VL-2B cut to 16 layers (papers.md 1.4)."""

    weights: str | None = "Qwen/Qwen3-VL-2B-Instruct"
    """Local folder or hub id; None: random weights and a byte-level tokenizer."""
    resolution: int = 256
    width: int = 2048
    layers: int = 16
    heads: int = 16
    key_value_heads: int = 8
    head_dim: int = 128
    mlp_width: int = 6144
    vocabulary: int = 151936
    rope_theta: float = 5e6
    rope_sections: tuple[int, int, int] = (24, 20, 20)
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vision_mlp_width: int = 4096
    vision_patch: int = 16
    vision_position_grid: int = 48
    deepstack_layers: tuple[int, ...] = (5, 11, 17)
    max_instruction_tokens: int = 64
    layout: Layout = "plain"
    """``plain``: no words but the instruction, Qwen's multimodal positions. ``released``: as LaWAM's code has it."""
    freeze_token_embeddings: bool = True
    """True with pretrained weights (papers.md 1.4); embeddings that start random must be trained."""


class TrunkOutput(NamedTuple):
    """Hidden states of the whole sequence, which of them are real, and the queries' among them."""

    hidden: Float[Tensor, "B L D"]
    valid: Bool[Tensor, "B L"]
    latent_queries: Float[Tensor, "B Q D"]
    action_queries: Float[Tensor, "B R D"]


class Qwen3VLTrunk(nn.Module):
    """Images, an instruction and two banks of learned queries to hidden states."""

    def __init__(self, settings: Qwen3VLSettings, *, latent_queries: int, action_queries: int) -> None:
        from transformers import Qwen3VLConfig, Qwen3VLModel

        from wamkit.encoders.qwen3_vl_blocks import ATTENTION_NAME, use_batched_attention

        super().__init__()
        self.settings = settings
        parts: dict[str, Any] = {
            "text_config": {
                "vocab_size": settings.vocabulary,
                "hidden_size": settings.width,
                "intermediate_size": settings.mlp_width,
                "num_hidden_layers": settings.layers,
                "num_attention_heads": settings.heads,
                "num_key_value_heads": settings.key_value_heads,
                "head_dim": settings.head_dim,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": settings.rope_theta,
                    "mrope_section": list(settings.rope_sections),
                    "mrope_interleaved": True,
                },
            },
            "vision_config": {
                "depth": settings.vision_layers,
                "hidden_size": settings.vision_width,
                "intermediate_size": settings.vision_mlp_width,
                "num_heads": settings.vision_heads,
                "patch_size": settings.vision_patch,
                "out_hidden_size": settings.width,
                "num_position_embeddings": settings.vision_position_grid**2,
                "deepstack_visual_indexes": list(settings.deepstack_layers),
            },
        }
        config = Qwen3VLConfig(**parts)
        config._attn_implementation = ATTENTION_NAME
        self.model = Qwen3VLModel(config)
        use_batched_attention(self.model.visual)
        self.latent_query = nn.Parameter(torch.randn(latent_queries, settings.width) * 0.02)
        self.action_query = nn.Parameter(torch.randn(action_queries, settings.width) * 0.02)
        self.merged_side = settings.resolution // settings.vision_patch // 2
        self.prompt = PROMPTS[settings.layout]
        self.tokenizer: ByteTokenizer | _PretrainedTokenizer | None = None
        self._prompt_ids: PromptIds | None = None

    def load_pretrained(self) -> None:
        """Load the published weights: all vision layers, the first ``layers`` language layers, no lm_head.

        Raises:
            WeightsError: the folder or hub id cannot be read, or holds a model of other dimensions.
        """
        from transformers import Qwen3VLModel

        if self.settings.weights is None:
            raise WeightsError("this trunk's config names no weights; set vlm.weights to a folder or hub id")
        try:
            published = Qwen3VLModel.from_pretrained(self.settings.weights).state_dict()
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"Qwen3-VL weights {self.settings.weights!r} cannot be loaded ({error}); download them once and set"
                " vlm.weights to the folder, or use a preset that starts from random weights"
            ) from error
        wanted = self.model.state_dict()
        odd = [name for name, value in wanted.items() if name not in published or published[name].shape != value.shape]
        if odd:
            raise WeightsError(
                f"the Qwen3-VL in {self.settings.weights!r} has other dimensions than the config ({len(odd)} weights,"
                f" {odd[0]!r} for one): set vlm to its own"
            )
        self.model.load_state_dict({name: published[name] for name in wanted})

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Ids and validity of the instructions, padded on the right.

        Raises:
            InstructionTooLong: one is longer than ``max_instruction_tokens``.
        """
        return self._load_tokenizer()([self._worded(text) for text in texts])

    def _worded(self, instruction: str) -> str:
        return self.prompt.before_latent.replace("{instruction}", instruction)

    def _load_tokenizer(self) -> ByteTokenizer | _PretrainedTokenizer:
        if self.tokenizer is None:
            weights, limit = self.settings.weights, self.settings.max_instruction_tokens
            self.tokenizer = ByteTokenizer(limit) if weights is None else _PretrainedTokenizer(weights, limit)
            self.tokenizer.max_tokens += len(self.tokenizer.encode(self._worded("")))
        return self.tokenizer

    def _fixed_texts(self) -> PromptIds:
        if self._prompt_ids is None:
            plain = self.settings.layout == "plain"
            self._prompt_ids = PromptIds() if plain else PromptIds.of(self.prompt, self._load_tokenizer().encode)
        return self._prompt_ids

    def _vision(self, frames: UInt8[Tensor, "n 3 H W"]) -> tuple[Float[Tensor, "n M D"], list[Tensor]]:
        """Merged patch tokens of each frame and their deepstack features, n x M x D each."""
        from wamkit.encoders.qwen3_vl_blocks import encode_images

        settings, visual = self.settings, self.model.visual
        n, _, height, width = frames.shape
        if (height, width) != (settings.resolution, settings.resolution):
            raise MisfitError(
                f"the policy takes {settings.resolution}x{settings.resolution} frames, got {height}x{width}"
            )
        patch, merge = settings.vision_patch, 2
        pixels = frames.to(visual.pos_embed.weight.dtype) / 127.5 - 1.0
        # Qwen's patch order: blocks of merge x merge patches, each patch (channel, time, row, column), the still
        # image repeated to fill the temporal patch of two frames.
        x = pixels.view(n, 3, height // patch // merge, merge, patch, width // patch // merge, merge, patch)
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(*(-1,) * 6, 2, -1, -1)
        return encode_images(visual, x.flatten(5).flatten(1, 4), (height // patch, width // patch))

    def _image_positions(self, device: torch.device) -> tuple[Int[Tensor, "3 M"], int]:
        """Relative positions of an image's tokens, and by how much the sequence advances over them."""
        side = self.merged_side
        cell = torch.arange(side * side, device=device)
        if self.settings.layout == "released":
            return cell.expand(3, -1), side * side
        return torch.stack([torch.zeros_like(cell), cell // side, cell % side]), side

    def forward(
        self,
        images: Mapping[str, UInt8[Tensor, "B 3 H W"]],
        image_valid: Mapping[str, Bool[Tensor, "B"]],
        token_ids: Int[Tensor, "B T"],
        token_valid: Bool[Tensor, "B T"],
    ) -> TrunkOutput:
        """Run the trunk; the first image is the primary view, the others are auxiliary and may be missing."""
        batch, device = token_ids.shape[0], token_ids.device
        stacked = torch.cat(list(images.values()))
        merged, deepstack = self._vision(stacked)
        views = merged.split(batch)
        embed = self.model.language_model.embed_tokens
        start, end = self._special(device)
        always = torch.ones(batch, 1, dtype=torch.bool, device=device)

        segments: list[Tensor] = []
        valid: list[Tensor] = []
        positions: list[Tensor] = []
        image_slices: list[slice] = []
        cursor = torch.zeros(batch, 1, dtype=torch.long, device=device)
        length = 0

        def append(tokens: Tensor, mask: Tensor, relative: Tensor, advance: Tensor | int) -> None:
            nonlocal cursor, length
            segments.append(tokens)
            valid.append(mask.expand(batch, tokens.shape[1]))
            positions.append(relative.unsqueeze(1) + cursor if relative.ndim == 2 else relative + cursor)
            cursor = cursor + advance
            length += tokens.shape[1]

        def line(count: int) -> Tensor:
            return torch.arange(count, device=device).expand(3, -1)

        def append_image(view: Tensor, mask: Tensor) -> None:
            present = mask.long()  # a missing view takes no room
            relative, advance = self._image_positions(device)
            append(embed(start).expand(batch, 1, -1), mask, line(1), present)
            image_slices.append(slice(length, length + view.shape[1]))
            append(view, mask, relative, present * advance)
            append(embed(end).expand(batch, 1, -1), mask, line(1), present)

        def words(ids: list[int]) -> Tensor:
            return embed(torch.tensor(ids, dtype=torch.long, device=device))

        def append_words(ids: list[int]) -> None:
            if ids:
                append(words(ids).expand(batch, -1, -1), always, line(len(ids)), len(ids))

        def append_queries(queries: Tensor) -> slice:
            gap = fixed.separator
            if gap:
                apart = words(gap).to(queries.dtype).expand(len(queries), -1, -1)
                queries = torch.cat([queries.unsqueeze(1), apart], dim=1).flatten(0, 1)[: -len(gap)]
            place = slice(length, length + len(queries), 1 + len(gap))
            append(queries.expand(batch, -1, -1), always, line(len(queries)), len(queries))
            return place

        cameras, fixed = list(images), self._fixed_texts()
        append_words(fixed.lead_in)
        append_image(views[0], always)
        append(embed(token_ids), token_valid, line(token_ids.shape[1]), token_valid.sum(dim=1, keepdim=True))
        latent = append_queries(self.latent_query)
        for camera, view in zip(cameras[1:], views[1:], strict=True):
            append_image(view, image_valid[camera].unsqueeze(1))
        append_words(fixed.before_action)
        action = append_queries(self.action_query)
        append_words(fixed.closing)

        dtype = merged.dtype
        x = torch.cat([segment.to(dtype) for segment in segments], dim=1)
        keep = torch.cat(valid, dim=1)
        position = torch.cat([p.expand(3, batch, -1) for p in positions], dim=2)
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        # A padded token may see itself, so that its softmax is defined; no real token sees it.
        mask = (causal & keep[:, None, None, :]) | torch.eye(length, dtype=torch.bool, device=device)
        rotary = self.model.language_model.rotary_emb(x, position)
        for index, layer in enumerate(self.model.language_model.layers):
            x = layer(x, attention_mask=mask, position_embeddings=rotary)
            if index < len(deepstack):
                features = deepstack[index].split(batch)
                parts = dict(zip((s.start for s in image_slices), features, strict=True))
                x = _add_at(x, image_slices, [parts[s.start] for s in image_slices])
        x = self.model.language_model.norm(x)
        return TrunkOutput(x, keep, x[:, latent], x[:, action])

    def _special(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self.settings.weights is None:
            start, end = ByteTokenizer.vision_start, ByteTokenizer.vision_end
        else:
            start, end = self.model.config.vision_start_token_id, self.model.config.vision_end_token_id
        return torch.tensor([start], device=device), torch.tensor([end], device=device)


def _add_at(x: Tensor, places: list[slice], values: list[Tensor]) -> Tensor:
    """``x`` with each value added at its place along the sequence (deepstack)."""
    pieces, done = [], 0
    for place, value in zip(places, values, strict=True):
        pieces += [x[:, done : place.start], x[:, place] + value]
        done = place.stop
    return torch.cat([*pieces, x[:, done:]], dim=1)


class _PretrainedTokenizer:
    """Qwen's own tokenizer, read when the first instruction comes."""

    def __init__(self, source: str, max_tokens: int) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"Qwen3-VL's tokenizer {source!r} cannot be loaded ({error}); download it with the weights and set"
                " vlm.weights to their folder"
            ) from error
        self.max_tokens = max_tokens

    def encode(self, text: str) -> list[int]:
        """The ids of one text, special tokens recognised."""
        return self.tokenizer(text)["input_ids"]

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer(
            list(texts), return_tensors="pt", padding="longest", padding_side="right", pad_to_multiple_of=8
        )
        lengths = encoded["attention_mask"].sum(dim=1)
        if int(lengths.max()) > self.max_tokens:
            longest = int(lengths.argmax())
            raise InstructionTooLong(texts[longest], int(lengths[longest]), self.max_tokens, "tokens")
        return encoded["input_ids"], encoded["attention_mask"].bool()
