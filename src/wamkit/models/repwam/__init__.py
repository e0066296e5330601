"""RepWAM: representation visual-action tokenizer, latent actions, causal world action model."""

from wamkit.models.repwam.config import RepWAMConfig, paper_5b, preset
from wamkit.models.repwam.model import RepWAM

__all__ = ["RepWAM", "RepWAMConfig", "paper_5b", "preset"]
