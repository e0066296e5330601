"""Text as UTF-8 bytes: a tokenizer that needs no files, for presets trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


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
            ValueError: a text is longer than ``max_tokens`` bytes (a cut instruction would mean another task).
        """
        encoded = [text.encode() for text in texts]
        longest = max((len(entry) for entry in encoded), default=0)
        if longest > self.max_tokens:
            raise ValueError(f"an instruction has {longest} bytes, the model reads {self.max_tokens}: shorten it")
        length = max(8, -(-longest // 8) * 8)
        ids = torch.full((len(texts), length), self.pad, dtype=torch.long)
        for row, entry in zip(ids, encoded, strict=True):
            row[: len(entry)] = torch.tensor(list(entry), dtype=torch.long)
        return ids, ids != self.pad
