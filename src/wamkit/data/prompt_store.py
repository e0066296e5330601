"""Text features on disk, one small file for each prompt: computed once, wherever the text encoder fits."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from wamkit.data.mapped_file import CacheError
from wamkit.tensor_files import read_tensors

_NAME = "features"


def prompt_hash(prompt: str, encoder: str) -> str:
    """SHA-256 over the encoder's name and the prompt's text: what a file of the store is called."""
    return hashlib.sha256(f"{encoder}\0{prompt}".encode()).hexdigest()


class PromptStore:
    """Features of prompts under one encoder. Several encoders may share the folder.

    Args:
        directory: Made when the first features are put.
        encoder: Names the encoder, its weights and all else that features depend on beside the prompt.
    """

    def __init__(self, directory: Path | str, *, encoder: str) -> None:
        self.directory, self.encoder = Path(directory), encoder

    def path(self, prompt: str) -> Path:
        """Where this prompt's features are or would be."""
        return self.directory / f"{prompt_hash(prompt, self.encoder)}.safetensors"

    def get(self, prompt: str) -> Float[Tensor, "L D"] | None:
        """The stored features in float32; None where there are none.

        Raises:
            CacheError: The file is there and cannot be read.
        """
        path = self.path(prompt)
        if not path.is_file():
            return None
        return read_tensors(path, CacheError, "delete the file.")[_NAME].float()

    def put(self, prompt: str, features: Float[Tensor, "L D"]) -> None:
        """Keep features, in bfloat16; prompt and encoder are written beside them. Whole or not at all.

        Raises:
            CacheError: The features are not finite.
        """
        if not torch.isfinite(features).all():
            raise CacheError(f"The text features of {prompt!r} are not finite; they are not stored.")
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.path(prompt)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        kept = features.detach().cpu().to(torch.bfloat16).contiguous()
        save_file({_NAME: kept}, partial, metadata={"prompt": prompt, "encoder": self.encoder})
        partial.replace(path)
