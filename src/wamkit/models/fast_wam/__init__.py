"""Fast-WAM (arXiv 2603.16666)."""

from wamkit.models.fast_wam.config import FastWAMConfig, preset
from wamkit.models.fast_wam.model import FastWAM

__all__ = ["FastWAM", "FastWAMConfig", "preset"]
