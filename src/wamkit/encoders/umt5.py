"""UMT5 text features: what Wan's video backbones read of the instruction.

The encoder is frozen and its output depends on the prompt alone, so features are computed once and kept: UMT5-XXL's
5.7 billion parameters never stand beside a policy. They come from a store on disk (`wamkit.data.prompt_store`); only
a prompt that is not in it needs the encoder. Presets trained from scratch read bytes through a small frozen UMT5 with
random weights, which tells prompts apart and knows nothing of language; the report names it so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.data.prompt_store import PromptStore
from wamkit.encoders.byte_text import ByteTokenizer, InstructionTooLong
from wamkit.errors import WamkitError

PROMPT = "A video recorded from a robot's point of view executing the following instruction: {task}"
"""What Light-WAM's and Fast-WAM's weights were trained with."""


class TextFeaturesError(WamkitError):
    """A prompt whose features are neither stored nor computable here."""


@dataclass(frozen=True)
class UMT5Settings:
    """Dimensions of the text encoder, UMT5-XXL's by default, and where weights and features come from."""

    weights: str | None = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    """Local folder or hub id in diffusers' layout (``text_encoder`` and ``tokenizer``); None: random, over bytes."""
    store: str | None = None
    """Folder of precomputed features; asked before ``weights``, and filled by them."""
    width: int = 4096
    layers: int = 24
    heads: int = 64
    key_width: int = 64
    mlp_width: int = 10240
    max_tokens: int = 128
    prompt: str = PROMPT
    """``{task}`` stands for the instruction."""

    def __post_init__(self) -> None:
        if self.weights is None and self.store is not None:
            raise TextFeaturesError(
                "an encoder of random weights has no store: another run's features would be served under the same "
                "prompts. Leave text.store out, or name published weights"
            )


class UMT5Text(nn.Module):
    """Instructions to features [B, L, D] of fixed length; padding is zero and is read like any other token, as in Wan.

    With published weights the encoder is loaded when a prompt first needs it, and is no part of this module: neither
    its parameters nor the checkpoint hold it. With random ones it is, and frozen.
    """

    def __init__(self, settings: UMT5Settings) -> None:
        super().__init__()
        self.settings = settings
        self._known: dict[str, Tensor] = {}
        self._published: tuple[Any, Any] | None = None
        self._store = None if settings.store is None else PromptStore(settings.store, encoder=self.identity)
        if settings.weights is None:
            from transformers import UMT5Config, UMT5EncoderModel

            sizes: dict[str, Any] = {
                "vocab_size": ByteTokenizer.vocabulary,
                "d_model": settings.width,
                "d_kv": settings.key_width,
                "d_ff": settings.mlp_width,
                "num_layers": settings.layers,
                "num_heads": settings.heads,
                "dropout_rate": 0.0,
            }
            self.model = UMT5EncoderModel(UMT5Config(**sizes)).requires_grad_(False)
            self.tokenizer = ByteTokenizer(settings.max_tokens)
            self.register_load_state_dict_post_hook(lambda module, _: module.forget())

    @property
    def identity(self) -> str:
        """Names the encoder and all that its output depends on; part of the store's keys."""
        s = self.settings
        weights = s.weights if s.weights is not None else f"random:{s.width}x{s.layers}"
        return f"umt5:{weights}:{s.max_tokens}"

    def forget(self) -> None:
        """Drop the features kept in memory; called when weights change."""
        self._known.clear()

    def check(self, tasks: Sequence[str]) -> None:
        """Raise `InstructionTooLong` where that can be known without published weights; elsewhere at the first use."""
        if self.settings.weights is None:
            self.tokenizer([self.settings.prompt.format(task=task) for task in tasks])

    @torch.no_grad()
    def forward(self, tasks: Sequence[str], device: torch.device | str) -> Float[Tensor, "B L D"]:
        """Features of each instruction in its prompt, in float32; each prompt is encoded once.

        Raises:
            TextFeaturesError: a prompt is not in the store and the encoder cannot be loaded.
            InstructionTooLong: the model cannot read it whole.
        """
        prompts = [self.settings.prompt.format(task=task) for task in tasks]
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if self._store is not None:
            for prompt in missing:
                features = self._store.get(prompt)
                if features is not None:
                    self._known[prompt] = features
            missing = [prompt for prompt in missing if prompt not in self._known]
        if missing:
            for prompt, features in zip(missing, self._encode(missing), strict=True):
                self._known[prompt] = features
                if self._store is not None:
                    self._store.put(prompt, features)
        return torch.stack([self._known[prompt].to(device) for prompt in prompts])

    def _encode(self, prompts: Sequence[str]) -> Float[Tensor, "n L D"]:
        length = self.settings.max_tokens
        if self.settings.weights is None:
            model, (ids, valid) = self.model, self.tokenizer(prompts)
        else:
            model, tokenizer = self._load_published()
            encoded = tokenizer(list(prompts), return_tensors="pt", padding=True, add_special_tokens=True)
            ids, valid = encoded.input_ids, encoded.attention_mask.bool()
            if ids.shape[1] > length:
                longest = int(valid.sum(dim=1).argmax())
                raise InstructionTooLong(prompts[longest], ids.shape[1], length, "tokens")
        device = next(model.parameters()).device
        with torch.autocast(device.type, enabled=False):
            hidden = model(input_ids=ids.to(device), attention_mask=valid.to(device)).last_hidden_state.float()
        # Wan's cross-attention sees a fixed number of tokens, those past the text's end as zeros.
        hidden = hidden * valid.to(device).unsqueeze(-1)
        return nn.functional.pad(hidden, (0, 0, 0, length - hidden.shape[1]))

    def _load_published(self) -> tuple[Any, Any]:
        if self._published is None:
            from transformers import AutoTokenizer, UMT5EncoderModel

            weights = self.settings.weights
            assert weights is not None
            try:
                model = UMT5EncoderModel.from_pretrained(weights, subfolder="text_encoder")
                tokenizer = AutoTokenizer.from_pretrained(weights, subfolder="tokenizer")
            except (OSError, ValueError) as error:
                raise TextFeaturesError(
                    f"this instruction's text features are not stored, and UMT5 {weights!r} cannot be loaded ({error});"
                    " set text.store to a folder of features that holds it, or text.weights to a folder with"
                    " text_encoder/ and tokenizer/"
                ) from error
            # Outside the module tree: it must not enter the checkpoint or the optimiser.
            object.__setattr__(self, "_published", (model.eval().requires_grad_(False), tokenizer))
        assert self._published is not None
        return self._published
