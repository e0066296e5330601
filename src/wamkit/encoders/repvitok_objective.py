"""What RepViTok is trained by: pixels, looks, an adversary, and alignment with a frozen representation (papers.md 3.2).

    L = 1 L1 + 1 perceptual + 0.1 generator + 1 alignment,  and beside it the adversary's own loss

**Two players, one optimiser.** The adversary learns in the same step as the tokenizer, from the same backward pass: its
loss sees made pictures without their gradient, the generator's term sees the adversary's weights without theirs. So
each parameter's gradient is that of its own player's loss alone, whatever else is added up, and the training loop, its
resumption and its data-parallel forms need to know of no second optimiser. What this fixes: both players step at once
instead of in turns, at the learning rate times their group's ``lr_scale`` (`VideoTokenizer.adversary` for a group of
its own), and one clipping norm counts both. The paper states no adaptive weight, and none is used. The logged total
holds both players' losses and need not fall.

What alignment is, is chosen by composition: `RepresentationAlignment`, the paper's; `ScrambledAlignment`, the control
that keeps the loss, its weight and the targets' distribution and takes away what they have to do with the clip; None,
the twin that only reconstructs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wamkit.encoders.vgg16 import VGG16
from wamkit.errors import WamkitError
from wamkit.losses.adversarial import critic_hinge, generator_hinge
from wamkit.losses.alignment import time_averaged_alignment
from wamkit.losses.reconstruction import reconstruction
from wamkit.losses.reduction import sample_mean
from wamkit.nn.patch_discriminator import DiscriminatorConfig, PatchDiscriminator

AlignmentKind = Literal["representation", "scrambled", "none"]


class AlignmentError(WamkitError):
    """Targets that latents cannot be aligned with."""


@dataclass(frozen=True)
class RepViTokObjectiveConfig:
    """Weights and parts of RepViTok's loss; the paper's by default."""

    kind: ClassVar[str] = "repvitok_objective"
    l1_weight: float = 1.0
    perceptual_weight: float = 1.0
    perceptual_network: str | None = None
    """File of torchvision's VGG16; None: the term is off, which is said once."""
    adversarial_weight: float = 0.1
    discriminator: DiscriminatorConfig | None = DiscriminatorConfig()
    """None: no adversary."""
    judged_pictures: int | None = None
    """How many of each clip's pictures, drawn anew each time, perceptual network and adversary look at; None: all."""
    alignment: AlignmentKind = "representation"
    alignment_weight: float = 1.0
    representation_width: int = 768
    """D of the frozen encoder's features."""


class RepresentationAlignment(nn.Module):
    """W_align, and the distance of time averages."""

    def __init__(self, latent_width: int, representation_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(latent_width, representation_width)

    def forward(
        self,
        latents: Float[Tensor, "B F N C"],
        targets: Float[Tensor, "B P N D"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B"]:
        """Of latents and features of the same clips; the generator is not drawn from."""
        return time_averaged_alignment(self.project(latents), targets)


class ScrambledAlignment(RepresentationAlignment):
    """The same with another sample's targets, their places dealt anew: nothing in them is about the clip.

    The best that the projection can then say is the targets' mean. In a batch of one only places are dealt.
    """

    def forward(
        self,
        latents: Float[Tensor, "B F N C"],
        targets: Float[Tensor, "B P N D"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B"]:
        """Draws the places of each sample from the generator."""
        batch, _, places, width = targets.shape
        device = targets.device
        order = torch.rand(batch, 1, places, generator=generator, device=device).argsort(dim=-1)
        dealt = targets.roll(1, dims=0).gather(2, order.unsqueeze(-1).expand(*targets.shape[:3], width))
        return super().forward(latents, dealt)


def make_alignment(config: RepViTokObjectiveConfig, latent_width: int) -> RepresentationAlignment | None:
    """The chosen alignment."""
    if config.alignment == "none":
        return None
    kind = RepresentationAlignment if config.alignment == "representation" else ScrambledAlignment
    return kind(latent_width, config.representation_width)


class RepViTokObjective(nn.Module):
    """All terms of one batch of clips. Holds what is trained beside the tokenizer: W_align and the adversary."""

    def __init__(self, config: RepViTokObjectiveConfig, latent_width: int) -> None:
        super().__init__()
        self.config = config
        self.alignment = make_alignment(config, latent_width)
        self.discriminator = PatchDiscriminator(config.discriminator) if config.discriminator is not None else None
        self.perceptual = PerceptualNetwork(config.perceptual_network) if config.perceptual_weight > 0 else None

    def forward(
        self,
        pixels: Float[Tensor, "B T 3 H W"],
        made: Float[Tensor, "B T 3 H W"],
        latents: Float[Tensor, "B F N C"],
        targets: Float[Tensor, "B P N D"] | None,
        generator: torch.Generator | None,
    ) -> dict[str, Float[Tensor, "B"]]:
        """Weighted terms by name, a value for each sample.

        Args:
            pixels: True pictures in [-1, 1].
            made: Their reconstruction, not clamped.
            latents: What it was made of.
            targets: See `VideoTokenizer.pretrain_losses`.
            generator: Of the pictures that are judged and of the scrambling.

        Raises:
            AlignmentError: targets are missing, of another grid or width, or not wanted.
        """
        config = self.config
        made, pixels = made.float(), pixels.float()
        terms = {"l1": config.l1_weight * sample_mean(reconstruction(made, pixels, "l1"))}
        network = self.perceptual.on(pixels.device) if self.perceptual is not None else None
        if network is not None or self.discriminator is not None:
            batch, pictures = pixels.shape[:2]
            chosen = _drawn(batch, pictures, config.judged_pictures, pixels.device, generator)
            seen = chosen.shape[1]
            seen_made, seen_real = (_of_clips(x, chosen).flatten(0, 1) for x in (made, pixels))
            if network is not None:
                distance = network(seen_made, seen_real).unflatten(0, (batch, seen))
                terms["perceptual"] = config.perceptual_weight * sample_mean(distance)
            if self.discriminator is not None:
                convinced = generator_hinge(self.discriminator.with_frozen_weights(seen_made))
                terms["generator"] = config.adversarial_weight * sample_mean(convinced.unflatten(0, (batch, seen)))
                scores = self.discriminator(torch.cat([seen_real, seen_made.detach()])).chunk(2)
                terms["discriminator"] = sample_mean(critic_hinge(*scores).unflatten(0, (batch, seen)))
        if self.alignment is None and targets is not None:
            raise AlignmentError("this tokenizer only reconstructs (alignment is 'none'): give it no targets")
        if self.alignment is not None:
            self._check(targets, latents)
            assert targets is not None
            terms["alignment"] = config.alignment_weight * self.alignment(latents, targets, generator)
        return terms

    def _check(self, targets: Tensor | None, latents: Tensor) -> None:
        width, (batch, _, cells, _) = self.config.representation_width, latents.shape
        if targets is None:
            raise AlignmentError(
                f"this tokenizer is aligned with features of width {width}: give targets, or set"
                " objective.alignment to 'none'"
            )
        if targets.ndim != 4 or targets.shape[0] != batch or targets.shape[2:] != (cells, width):
            raise AlignmentError(
                f"the targets are {tuple(targets.shape)} and must be [{batch}, pictures, {cells}, {width}]: the"
                " representation encoder's patches must be the latent's cells, and objective.representation_width its"
                " width"
            )


class PerceptualNetwork:
    """The frozen network's place in the objective: loaded where it is first needed, and no part of the module's state.

    A checkpoint of a tokenizer would otherwise carry 60 MB that nobody trained.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._network: VGG16 | None = None
        self._said = False

    def on(self, device: torch.device) -> VGG16 | None:
        """The network, or None after having said, once, that there are no weights.

        Raises:
            PerceptualWeightsError: the file cannot be read.
        """
        if self.path is None:
            if not self._said:
                warnings.warn(
                    "The tokenizer trains WITHOUT its perceptual loss: objective.perceptual_network names no file of"
                    " VGG16's weights. Give one, or set objective.perceptual_weight to 0.",
                    stacklevel=2,
                )
                self._said = True
            return None
        if self._network is None:
            self._network = VGG16(Path(self.path))
        return self._network.to(device)


def _drawn(
    batch: int, pictures: int, wanted: int | None, device: torch.device, generator: torch.Generator | None
) -> Int[Tensor, "B k"]:
    """Which pictures of each clip are judged."""
    if wanted is None or wanted >= pictures:
        return torch.arange(pictures, device=device).expand(batch, -1)
    return torch.rand(batch, pictures, generator=generator, device=device).argsort(dim=1)[:, :wanted]


def _of_clips(x: Float[Tensor, "B T 3 H W"], chosen: Int[Tensor, "B k"]) -> Float[Tensor, "B k 3 H W"]:
    return x[torch.arange(len(x), device=x.device)[:, None], chosen]
