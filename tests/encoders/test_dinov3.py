"""DINOv3: the wrapper against transformers' own hidden states, and its files."""

from __future__ import annotations

import pytest
import torch

from wamkit.encoders.dinov3 import DINOv3, DINOv3Config
from wamkit.errors import MisfitError, WeightsError

SMALL = {"resolution": 32, "patch": 8, "width": 24, "layers": 3, "heads": 2, "mlp_width": 48, "registers": 2}
FRAMES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    encoder = DINOv3(DINOv3Config(**SMALL, weights=None))
    path = tmp_path_factory.mktemp("dinov3")
    encoder.model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder) -> DINOv3:
    torch.manual_seed(1)
    encoder = DINOv3(DINOv3Config(**SMALL, weights=str(folder))).eval()
    encoder.load_pretrained()
    return encoder


def test_penultimate_block_patches_only_normalised(encoder, folder):
    from transformers import AutoModel

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (FRAMES / 255.0 - mean[:, None, None]) / std[:, None, None]
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        tokens = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 3:]
        features = encoder(FRAMES)
    assert features.shape == (2, 16, 24)
    torch.testing.assert_close(features, torch.nn.functional.layer_norm(tokens, (24,)), rtol=1e-5, atol=1e-5)


def test_each_frame_is_encoded_alone(encoder):
    with torch.no_grad():
        torch.testing.assert_close(encoder(FRAMES)[1:], encoder(FRAMES[1:]), rtol=1e-5, atol=1e-5)


def test_the_hash_tells_weights_apart(encoder):
    other = DINOv3(DINOv3Config(**SMALL, weights=None))
    assert encoder.weights_hash() == encoder.weights_hash()
    assert encoder.weights_hash() != other.weights_hash()
    assert encoder.preprocessing == "dinov3:32:imagenet"


def test_missing_weights_say_what_to_do():
    with pytest.raises(WeightsError, match=r"set\s+encoder.weights to the folder"):
        DINOv3(DINOv3Config(**SMALL, weights="/nowhere")).load_pretrained()
    with pytest.raises(WeightsError, match="names no weights"):
        DINOv3(DINOv3Config(**SMALL, weights=None)).load_pretrained()


def test_weights_of_another_size_are_refused(folder):
    with pytest.raises(WeightsError, match="has other dimensions than the config: set encoder to its own"):
        DINOv3(DINOv3Config(**SMALL | {"layers": 2}, weights=str(folder))).load_pretrained()


def test_other_sizes_are_refused(encoder):
    with pytest.raises(MisfitError, match="takes 32x32 frames, got"):
        encoder(FRAMES[..., :24, :24])
