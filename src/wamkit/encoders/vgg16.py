"""The network that a perceptual loss looks through: VGG16's features and LPIPS's weights of their channels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wamkit.errors import WamkitError
from wamkit.losses.perceptual import perceptual_distance
from wamkit.nn.precision import full_precision_on_cpu
from wamkit.tensor_files import read_tensors

TAPS = (3, 8, 15, 22, 29)
"""Layers of torchvision's ``vgg16().features`` that are read: the last activation before each pooling, and the last."""
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class PerceptualWeightsError(WamkitError):
    """The perceptual network's weights cannot be read."""


class VGG16(nn.Module):
    """LPIPS with VGG16, frozen; never part of a checkpoint.

    Args:
        path: torchvision's ``vgg16`` as a state dict (``.pth`` or ``.safetensors``), whole or its ``features`` alone.

    Raises:
        PerceptualWeightsError: nothing is there, or something else.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, path: Path) -> None:
        from torchvision.models import vgg16

        super().__init__()
        with torch.device("meta"):  # else torchvision would first fill 138 M parameters with noise
            features = cast("nn.Sequential", vgg16(weights=None).features)
            self.layers = cast("nn.Sequential", features[: TAPS[-1] + 1])
        for layer in self.layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # what was read before must stay as it was
        stored = {name.removeprefix("features."): value for name, value in _tensors(path).items()}
        wanted = self.layers.state_dict()
        missing = [name for name, value in wanted.items() if name not in stored or stored[name].shape != value.shape]
        if missing:
            raise PerceptualWeightsError(
                f"{path} does not hold torchvision's VGG16 (features.{missing[0]} is missing or of another shape): give"
                " the file of vgg16(weights='IMAGENET1K_V1')"
            )
        self.layers.load_state_dict({name: stored[name].float() for name in wanted}, assign=True)
        self.channels = nn.ParameterList(lpips_channel_weights())
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def features(self, pictures: Float[Tensor, "n 3 H W"]) -> list[Float[Tensor, "n C h w"]]:
        """Of pictures in [-1, 1], layer by layer."""
        x, found = (pictures - self.shift) / self.scale, []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in TAPS:
                found.append(x)
        return found

    def forward(self, made: Float[Tensor, "n 3 H W"], real: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n"]:
        """Perceptual distance of pictures in [-1, 1]; the gradient reaches those that were made."""
        with full_precision_on_cpu(made):
            with torch.no_grad():
                true = self.features(real.float())
            return perceptual_distance(self.features(made.float()), true, list(self.channels))


def lpips_channel_weights() -> list[Float[Tensor, "C"]]:
    """LPIPS's weight of each channel of VGG16's five layers; torchmetrics brings the file with it.

    Raises:
        PerceptualWeightsError: this torchmetrics does not.
    """
    found = importlib.util.find_spec("torchmetrics")  # found, not imported: that takes seconds
    path = Path(*(found.submodule_search_locations or ())) if found is not None else Path()
    path = path / "functional/image/lpips_models/vgg.pth"
    if not path.is_file():
        raise PerceptualWeightsError("this torchmetrics holds no lpips_models/vgg.pth: install torchmetrics>=1.7")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    return [stored[f"lin{index}.model.1.weight"].flatten() for index in range(len(TAPS))]


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise PerceptualWeightsError(f"no file {path}: give the file of torchvision's VGG16, or no perceptual weights")
    if path.suffix == ".safetensors":
        return read_tensors(path, PerceptualWeightsError, "copy it again.")
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise PerceptualWeightsError(f"{path} cannot be read as a state dict ({error}): is it whole?") from error
