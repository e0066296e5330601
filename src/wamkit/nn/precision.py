"""Where a network must not be computed in the precision that the rest of a model is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision_on_cpu(like: Tensor) -> AbstractContextManager:
    """No autocast on a CPU: convolutions over space and time take far longer there in bfloat16 (docs/log.md)."""
    return torch.autocast("cpu", enabled=False) if like.device.type == "cpu" else nullcontext()
