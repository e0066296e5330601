"""What the tests of the LeRobot plug-in share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def small_lawam() -> dict[str, Any]:
    """Fields of LaWAM's config, over those of ``tiny``, that make a step cost next to nothing."""
    trunk = {"width": 32, "heads": 2, "key_value_heads": 2, "head_dim": 16, "mlp_width": 32, "rope_sections": [4, 2, 2]}
    vision = {"vision_width": 32, "vision_heads": 2, "vision_mlp_width": 32}
    return {
        "noise_draws": 1,
        "encoder": {"width": 32, "layers": 1, "heads": 2},
        "latent_action": {"width": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1},
        "vlm": trunk | vision,
        "action": {"width": 32, "heads": 2, "layers": 4, "denoise_steps": 2},
    }
