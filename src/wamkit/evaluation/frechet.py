"""Frechet distance between two sets of pictures or videos, where a network's weights are at hand.

FID and FVD are made of a network that is no dependency of ours and cannot be loaded everywhere. Whoever has it as a
TorchScript file names it; nothing stands in for it otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.errors import WamkitError


class FrechetError(WamkitError):
    """A network that cannot be loaded, or too few samples."""


def frechet_distance(one: Float[np.ndarray, "n D"], other: Float[np.ndarray, "m D"]) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of features (arXiv 1706.08500, Eq. 6).

    Raises:
        FrechetError: fewer than two samples.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if min(len(one), len(other)) < 2:
        raise FrechetError("A Frechet distance needs at least two samples of each set: measure more windows.")
    first, second = np.cov(one, rowvar=False, ddof=1), np.cov(other, rowvar=False, ddof=1)
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    # The trace of (S1 S2)^(1/2) through a symmetric matrix with the same eigenvalues.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0.0)).sum()
    gap = ((one.mean(axis=0) - other.mean(axis=0)) ** 2).sum()
    return float(gap + np.trace(first) + np.trace(second) - 2.0 * cross)


def load_network(path: Path) -> Any:
    """A TorchScript file.

    Raises:
        FrechetError: nothing is there, or something else.
    """
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise FrechetError(f"{path} cannot be loaded as TorchScript: give the network's file ({error}).") from error


@torch.no_grad()
def picture_features(network: Any, pictures: UInt8[Tensor, "n 3 H W"], batch: int = 32) -> np.ndarray:
    """Features [n, D] of a network called as the TorchScript Inception of 2015 is: uint8, ``return_features=True``."""
    return _features(network, pictures, batch, {"return_features": True})


@torch.no_grad()
def video_features(network: Any, clips: UInt8[Tensor, "n T 3 H W"], batch: int = 8) -> np.ndarray:
    """Features [n, D] of a network called as the TorchScript I3D is.

    That is: float32 in [0, 255], channels before time, ``rescale=True, resize=True, return_features=True``.
    """
    arguments = {"rescale": True, "resize": True, "return_features": True}
    return _features(network, clips.transpose(1, 2).float(), batch, arguments)


def _features(network: Any, inputs: Tensor, batch: int, arguments: dict[str, bool]) -> np.ndarray:
    found = [network(piece, **arguments) for piece in inputs.split(batch)]
    return torch.cat(found).flatten(1).float().numpy()
