"""RepWAM with another visual tokenizer and nothing else changed: the swap that would falsify its claim.

The claim is that a tokenizer aligned with a representation serves a world action model better than one that only
reconstructs (papers.md 3.7). Each variant is a whole `RepWAMConfig`, so what is compared may be the tokenizers
themselves (``wam bench tokenizer``) or the policies built on them, by the same training stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from wamkit.encoders.dinov3 import DINOv3Config
from wamkit.encoders.repvitok import RepViTokConfig
from wamkit.encoders.repvitok_objective import AlignmentKind
from wamkit.encoders.wan_vae import WanVAEConfig, wan22_vae
from wamkit.errors import WamkitError, suggest
from wamkit.models.repwam.config import RepWAMConfig
from wamkit.models.video.config import compact_vae

VAE_WIDTH = 16
"""Of the VAE that stands for Wan's where everything is trained on the run's own frames; the ``tiny`` presets'."""


def _repvitok(config: RepWAMConfig) -> RepViTokConfig:
    if not isinstance(config.tokenizer, RepViTokConfig):
        raise WamkitError(
            "only a config whose tokenizer is RepViTok can be varied: start from one of RepWAM's presets."
        )
    return config.tokenizer


def _aligned(config: RepWAMConfig, alignment: AlignmentKind) -> RepWAMConfig:
    tokenizer = _repvitok(config)
    return replace(
        config,
        tokenizer=replace(tokenizer, objective=replace(tokenizer.objective, alignment=alignment)),
        representation=None if alignment == "none" else config.representation,
    )


def _wan(config: RepWAMConfig) -> RepWAMConfig:
    """Wan2.2's published VAE where the representation is a published one too, else a small one, equally wide."""
    own, published = _repvitok(config), isinstance(config.representation, DINOv3Config)
    vae: WanVAEConfig = wan22_vae() if published else compact_vae(VAE_WIDTH, channels=own.latent_width)
    return replace(config, tokenizer=vae, representation=None, video=replace(config.video, channels=vae.channels))


TOKENIZERS: dict[str, Callable[[RepWAMConfig], RepWAMConfig]] = {
    "repvitok": lambda config: _aligned(config, "representation"),
    "repvitok_reconstruction": lambda config: _aligned(config, "none"),
    "repvitok_scrambled": lambda config: _aligned(config, "scrambled"),
    "wan_vae": _wan,
}
"""Name to variant: the paper's; its twin that only reconstructs; the control whose targets are another clip's, their
places dealt anew; Wan's VAE."""


def with_tokenizer(config: RepWAMConfig, name: str) -> RepWAMConfig:
    """The config with the tokenizer of that name, at the config's own size.

    Args:
        config: one of RepWAM's presets, or made from one; its tokenizer is RepViTok.
        name: one of `TOKENIZERS`.

    Raises:
        WamkitError: no such tokenizer, with a suggestion, or a config of another tokenizer.
    """
    if name not in TOKENIZERS:
        raise WamkitError(f"There is no tokenizer {name!r}.{suggest(name, TOKENIZERS)}")
    return TOKENIZERS[name](config)
