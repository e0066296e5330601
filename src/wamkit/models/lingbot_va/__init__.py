"""LingBot-VA: the causal video-action world model on Wan's latents."""

from wamkit.models.lingbot_va.config import LingBotVAConfig, preset
from wamkit.models.lingbot_va.model import LingBotVA

__all__ = ["LingBotVA", "LingBotVAConfig", "preset"]
