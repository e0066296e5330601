"""The words around images and queries, as token ids: none, or those that LaWAM was released with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Layout = Literal["plain", "released"]


@dataclass(frozen=True)
class Prompt:
    """Fixed texts of one layout; the defaults are the plain layout's, which has none."""

    lead_in: str = ""
    before_latent: str = "{instruction}"
    before_action: str = ""
    closing: str = ""
    separator: str = ""
    """Between two queries of a bank: the placeholders were released as one text, joined by spaces."""


PROMPTS: dict[Layout, Prompt] = {
    "plain": Prompt(),
    "released": Prompt(
        lead_in="<|im_start|>user\n",
        before_latent=("Your task is {instruction}.\n\nFrom main-view observations, infer the robot arm's motion.\n"),
        before_action="Then use observations and the inferred motion to produce the robot policy actions.\n",
        closing="<|im_end|>\n<|im_start|>assistant\n",
        separator=" ",
    ),
}


@dataclass(frozen=True)
class PromptIds:
    """A prompt's fixed texts as token ids."""

    lead_in: list[int] = field(default_factory=list)
    before_action: list[int] = field(default_factory=list)
    closing: list[int] = field(default_factory=list)
    separator: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, prompt: Prompt, encode: Callable[[str], list[int]]) -> PromptIds:
        """Tokenise each text alone: every one ends at a special token, where tokens are cut in any case."""
        return cls(
            encode(prompt.lead_in), encode(prompt.before_action), encode(prompt.closing), encode(prompt.separator)
        )
