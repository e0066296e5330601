"""A convolutional network that says of each patch of a picture whether it looks real (PatchGAN, arXiv 1611.07004)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.nn.precision import full_precision_on_cpu


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Dimensions; the published 70 x 70 patches by default."""

    width: int = 64
    """Channels of the first layer; each further one has twice as many, up to eight times."""
    layers: int = 3
    """Layers that halve the picture."""


class PatchDiscriminator(nn.Module):
    """Strided convolutions and one score for each patch. Pictures are judged one by one.

    Groups of channels are normalised inside a picture, never over the batch: what is said of one picture then does not
    depend on the others, and the module keeps no statistics that two passes of one step would count twice.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [config.width * min(2**layer, 8) for layer in range(config.layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index in range(1, config.layers + 1):
            stride = 2 if index < config.layers else 1
            layers += [
                nn.Conv2d(widths[index - 1], widths[index], 4, stride=stride, padding=1),
                nn.GroupNorm(min(8, widths[index]), widths[index]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, pictures: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 1 h w"]:
        """Scores of patches of pictures in [-1, 1]; high: real."""
        with full_precision_on_cpu(pictures):
            return self.layers(pictures)

    def with_frozen_weights(self, pictures: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 1 h w"]:
        """The same scores, whose gradient reaches the pictures and not this network."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return torch.func.functional_call(self, frozen, (pictures,))
