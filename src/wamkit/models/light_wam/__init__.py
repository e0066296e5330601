"""Light-WAM (arXiv 2606.08242)."""

from wamkit.models.light_wam.config import LightWAMConfig, preset
from wamkit.models.light_wam.model import LightWAM

__all__ = ["LightWAM", "LightWAMConfig", "preset"]
