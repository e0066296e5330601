"""Text as UTF-8 bytes: a tokenizer that needs no files, for presets trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from wamkit.errors import WamkitError


class InstructionTooLong(WamkitError, ValueError):
    """An instruction that a model cannot read whole; a cut one would mean another task."""

    def __init__(self, text: str, length: int, limit: int, unit: str) -> None:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        super().__init__(
            f"the instruction {shown!r} has {length} {unit} and the model reads {limit}: shorten it, or train a model "
            "whose config has a longer text length."
        )


class ByteTokenizer:
    """256 byte ids, and after them the special tokens that a vision-language prompt needs."""

    image_token, vision_start, vision_end, query_placeholder, pad = 256, 257, 258, 259, 260
    vocabulary = 264

    def __init__(self, max_tokens: int = 64) -> None:
        self.max_tokens = max_tokens

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""
        return list(text.encode())

    def __call__(self, texts: Sequence[str]) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """Ids and validity, padded on the right to the longest text, rounded up to a multiple of 8.

        Raises:
            InstructionTooLong: a text has more than ``max_tokens`` bytes.
        """
        encoded = [text.encode() for text in texts]
        longest = max((len(entry) for entry in encoded), default=0)
        if longest > self.max_tokens:
            text = max(texts, key=lambda text: len(text.encode()))
            raise InstructionTooLong(text, longest, self.max_tokens, "bytes")
        length = max(8, -(-longest // 8) * 8)
        ids = torch.full((len(texts), length), self.pad, dtype=torch.long)
        for row, entry in zip(ids, encoded, strict=True):
            row[: len(entry)] = torch.tensor(list(entry), dtype=torch.long)
        return ids, ids != self.pad
