"""Which arithmetic a processor is quick in; needs torch only."""

from __future__ import annotations

import torch


def resolve_precision(precision: str, device: str) -> str:
    """What "auto" stands for on the processor at hand, "bf16" or "fp32"; the others as they are."""
    if precision != "auto":
        return precision
    if device != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Without these instructions bf16 is emulated, and ten times slower than fp32.
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
