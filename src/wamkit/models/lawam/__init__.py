"""LaWAM and its latent world model LaWM (arXiv 2606.15768)."""

from wamkit.models.lawam.config import LaWAMConfig, preset
from wamkit.models.lawam.model import LaWAM

__all__ = ["LaWAM", "LaWAMConfig", "preset"]
