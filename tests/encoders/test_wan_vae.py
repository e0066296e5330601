"""Wan's VAE: causal in time, standardised, inverse to itself in shape; its own first stage; published files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from wamkit.encoders.base import ClipError, VideoTokenizer
from wamkit.encoders.wan_vae import WanVAE, WanVAEConfig, wan22_vae
from wamkit.errors import WeightsError

CONFIG = WanVAEConfig(
    weights=None, channels=4, width=4, multipliers=(1, 1, 1), residual_blocks=1, temporal_downsample=(True, True)
)
FOLDED = replace(CONFIG, multipliers=(1, 2, 2), residual=True, patch=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(frames: int = 5, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (2, frames, 3, side, side), generator=seeded(), dtype=torch.uint8)


@pytest.fixture(scope="module", params=[CONFIG, FOLDED], ids=["wan2.1", "wan2.2"])
def vae(request) -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(request.param).eval()


@torch.no_grad()
def test_shapes(vae):
    latents = vae.encode(clips(9))
    side = 16 // vae.config.cell
    assert latents.shape == (2, 4, 3, side, side)
    assert vae.decode(latents).shape == (2, 9, 3, 16, 16)
    assert vae.decode(latents[..., :1]).shape == (2, 9, 3, 16, vae.config.cell)


@torch.no_grad()
def test_no_latent_sees_a_later_picture(vae):
    clip = clips(9)
    latents = vae.encode(clip)
    torch.testing.assert_close(latents[:, :, :1], vae.encode(clip[:, :1]))
    torch.testing.assert_close(latents[:, :, :2], vae.encode(clip[:, :5]))
    other = clip.clone()
    other[:, 5:] = 255 - other[:, 5:]
    changed = vae.encode(other)
    assert torch.equal(latents[:, :, :2], changed[:, :, :2])
    assert not torch.equal(latents[:, :, 2:], changed[:, :, 2:])


@torch.no_grad()
def test_decoding_is_diffusers_own_up_to_its_clamp(vae):
    latents = vae.encode(clips())
    expected = vae.model.decode(latents).sample
    torch.testing.assert_close(vae.decode(latents), ((expected + 1) / 2).clamp(0, 1).transpose(1, 2))


@torch.no_grad()
def test_a_stream_gives_the_latents_of_the_whole(vae):
    clip = clips(13)
    whole, stream = vae.encode(clip), vae.stream()
    pieces = []
    for start, end in ((0, 5), (5, 9), (9, 13)):
        pieces.append(stream.push(clip[:, start:end]))
        vae.encode(clips(5))  # what is encoded in between does not disturb the stream
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vae.encode_in_pieces(clip, 2), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(ClipError, match="it takes 4 for each latent frame"):
        stream.push(clip[:, :5])
    with pytest.raises(ClipError, match="begin a new stream"):
        stream.push(clip[:, :4, :, :8])
    with pytest.raises(ClipError, match="takes 1, 5, 9"):
        vae.stream().push(clip[:, :4])


@torch.no_grad()
def test_pictures_that_come_in_pieces_are_those_of_the_whole(vae):
    latents = vae.encode(clips(13))
    whole, stream = vae.decode(latents), vae.picture_stream()
    pieces = []
    for part in latents.split((1, 2, 1), dim=2):
        pieces.append(stream.push(part))
        vae.decode(latents)  # what is decoded in between does not disturb the stream
    assert [piece.shape[1] for piece in pieces] == [1, 8, 4]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_what_a_model_reads_of_a_tokenizer(vae):
    assert isinstance(vae, VideoTokenizer)
    assert (vae.latent_width, vae.latent_frames(9), vae.latent_size(16, 32)) == (4, 3, (16 // vae.cell, 32 // vae.cell))
    assert vae.target_width is None
    with pytest.raises(ValueError, match="give no targets"):
        vae.pretrain_losses(clips(), targets=torch.zeros(2, 5, 4, 8))


def test_the_first_stage_learns_and_standardises():
    torch.manual_seed(0)
    vae = WanVAE(FOLDED)
    slope = torch.linspace(0, 255, 16).to(torch.uint8)
    clip = slope.expand(2, 5, 3, 16, 16).clone()
    clip[:, :, 1] = slope.flip(0)[:, None]
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    errors = []
    for step in range(15):
        losses = vae.pretrain_losses(clip, seeded(step))
        errors.append(losses["pixels"].mean().item())
        optimizer.zero_grad()
        sum(value.mean() for value in losses.values()).backward()
        optimizer.step()
    assert all(value.shape == (2,) for value in losses.values())
    assert errors[-1] < 0.8 * errors[0]
    assert int(vae.batches_seen) == 15
    mean, std = vae.latent_mean.clone(), vae.latent_std.clone()
    vae.eval()
    with torch.no_grad():
        vae.pretrain_losses(clip, seeded())
        latents = vae.encode(clip)
    assert torch.equal(mean, vae.latent_mean)
    assert torch.equal(std, vae.latent_std)
    assert latents.mean().abs() < 1.0
    assert 0.2 < latents.std() < 5.0


def test_clips_that_do_not_fit_are_refused(vae):
    with pytest.raises(ValueError, match="takes 1, 5, 9"):
        vae.encode(clips(4))
    with pytest.raises(ValueError, match="no multiple of"):
        vae.encode(clips(5, 18))


def test_the_hash_follows_weights_and_statistics():
    torch.manual_seed(0)
    vae = WanVAE(CONFIG)
    first = vae.weights_hash()
    vae.latent_mean += 1
    assert vae.weights_hash() != first


def test_weights_load_from_a_folder_in_diffusers_layout(tmp_path, vae):
    mean, std = [0.5, -0.5, 0.0, 1.0], [2.0, 1.0, 0.5, 3.0]
    vae.model.register_to_config(latents_mean=mean, latents_std=std)
    vae.model.save_pretrained(tmp_path / "vae")
    loaded = WanVAE(replace(vae.config, weights=str(tmp_path))).eval()
    loaded.load_pretrained()
    assert loaded.latent_mean.tolist() == mean
    with torch.no_grad():
        expected = (vae.encode(clips()) - loaded.latent_mean.view(1, -1, 1, 1, 1)) / loaded.latent_std.view(
            1, -1, 1, 1, 1
        )
        torch.testing.assert_close(loaded.encode(clips()), expected)


def test_absent_and_other_weights_say_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match="set vae.weights"):
        WanVAE(replace(CONFIG, weights=str(tmp_path / "none"))).load_pretrained()
    WanVAE(FOLDED).model.save_pretrained(tmp_path / "vae")
    with pytest.raises(WeightsError, match="other dimensions"):
        WanVAE(replace(CONFIG, weights=str(tmp_path))).load_pretrained()


def test_published_sizes():
    """papers.md 2.3: Light-WAM's frozen part is 1,545.79 M with the transformer's 1,418.99 M."""
    with torch.device("meta"):
        first, second = WanVAE(WanVAEConfig()), WanVAE(wan22_vae())
    assert sum(p.numel() for p in first.parameters()) == pytest.approx(1545.79e6 - 1418.99e6, rel=0.01)
    assert first.config.cell == 8
    assert second.config.cell == 16
