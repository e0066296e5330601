"""The self-trained encoder and its two objectives."""

from __future__ import annotations

import pytest
import torch

from wamkit.encoders.patch_encoder import PatchEncoder, PatchEncoderConfig

SMALL = {"resolution": 32, "patch": 8, "width": 32, "layers": 2, "heads": 4, "decoder_width": 16, "decoder_layers": 1}


def encoder_of(**changes) -> PatchEncoder:
    torch.manual_seed(0)
    return PatchEncoder(PatchEncoderConfig(**SMALL, **changes))


def frames(seed: int = 0, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def test_features_are_normalised_and_of_each_frame_alone():
    encoder, x = encoder_of(), frames()
    with torch.no_grad():
        features = encoder(x)
        torch.testing.assert_close(encoder(x[2:3]), features[2:3], rtol=1e-5, atol=1e-5)
    assert features.shape == (4, 16, 32)
    torch.testing.assert_close(features.mean(-1), torch.zeros(4, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.var(-1, unbiased=False), torch.ones(4, 16), rtol=0, atol=1e-3)


def test_patches_are_row_by_row_channels_last():
    x = frames(count=1)
    patches = encoder_of().patchify(x).view(1, 4, 4, 8, 8, 3)
    expected = x[0, :, 8:16, 24:32].permute(1, 2, 0) / 127.5 - 1
    torch.testing.assert_close(patches[0, 1, 3], expected)


@pytest.mark.parametrize("objective", ["masked_autoencoder", "joint_embedding"])
def test_objectives_train(objective):
    encoder, x = encoder_of(objective=objective), frames(count=8)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    seen = []
    for _ in range(30):
        losses = encoder.pretrain_losses(x, torch.Generator().manual_seed(0))
        assert all(value.shape == (8,) for value in losses.values())
        total = sum(value.mean() for value in losses.values())
        seen.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert seen[-1] < 0.8 * seen[0]


def test_the_random_mask_follows_the_generator():
    encoder, x = encoder_of(), frames()
    one, two, other = (
        encoder.pretrain_losses(x, torch.Generator().manual_seed(s))["hidden_patches"] for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_the_hash_and_the_preprocessing_key_the_feature_store():
    assert encoder_of().weights_hash() == encoder_of().weights_hash()
    changed = encoder_of()
    torch.nn.init.zeros_(changed.embed.bias)
    changed.embed.bias.data[0] = 1.0
    assert changed.weights_hash() != encoder_of().weights_hash()
    assert encoder_of().preprocessing == "patch_encoder:32:x/127.5-1"


def test_resolution_must_be_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match="not a multiple of the patch"):
        PatchEncoder(PatchEncoderConfig(resolution=30, patch=8))
