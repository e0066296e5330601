"""What the tests of every model share: weights that no initialisation has a say in, seeds, and who got a gradient."""

from __future__ import annotations

import zlib
from dataclasses import replace

import torch

from wamkit.types import Window


def named_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that depend on names alone, so that no gate is shut and a golden number stays one."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        with torch.no_grad():
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + norm)
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def other_future(window: Window) -> Window:
    """The same present, every later picture inverted."""
    frames = {camera: pictures.clone() for camera, pictures in window.frames.items()}
    for pictures in frames.values():
        pictures[:, 1:] = 255 - pictures[:, 1:]
    return replace(window, frames=frames)


def gradient(*modules: torch.nn.Module) -> float:
    return sum(p.grad.abs().sum().item() for m in modules for p in m.parameters() if p.grad is not None)
