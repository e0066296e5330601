"""RepViTok: causal, the same in pieces as whole, inverse to itself in shape, clear about what it cannot take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from wamkit.configuration import from_dict, to_dict
from wamkit.encoders.base import ClipError, VideoTokenizer
from wamkit.encoders.repvitok import RepViTok, RepViTokConfig
from wamkit.encoders.repvitok_objective import RepViTokObjectiveConfig

OBJECTIVE = RepViTokObjectiveConfig(perceptual_weight=0.0, discriminator=None, alignment="none")
CONFIG = RepViTokConfig(
    patch=8, width=16, encoder_layers=2, decoder_layers=2, heads=2, latent_width=6, window=2, objective=OBJECTIVE
)


def clips(frames: int = 9, size: tuple[int, int] = (16, 24), seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, frames, 3, *size), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def tokenizer() -> RepViTok:
    torch.manual_seed(0)
    return RepViTok(CONFIG).eval()


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_shapes_of_images_and_videos(tokenizer, frames):
    clip = clips(frames)
    latents = tokenizer.encode(clip)
    assert latents.shape == (2, 6, tokenizer.latent_frames(frames), 2, 3)
    assert tokenizer.decode(latents).shape == clip.shape
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros_like(latents[:, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.var(dim=1, correction=0), torch.ones_like(latents[:, 0]), atol=1e-3, rtol=0)
    assert tokenizer.encode(clips(frames, (24, 8))).shape[-2:] == (3, 1)


@torch.no_grad()
def test_no_latent_sees_a_later_picture_and_no_picture_a_later_latent(tokenizer):
    clip = clips()
    latents = tokenizer.encode(clip)
    torch.testing.assert_close(latents[:, :, :1], tokenizer.encode(clip[:, :1]))
    other = clip.clone()
    other[:, 5:] = 255 - other[:, 5:]
    changed = tokenizer.encode(other)
    assert torch.equal(latents[:, :, :2], changed[:, :, :2])
    assert not torch.equal(latents[:, :, 2], changed[:, :, 2])
    made, remade = tokenizer.decode(latents), tokenizer.decode(changed)
    assert torch.equal(made[:, :5], remade[:, :5])
    assert not torch.equal(made[:, 5:], remade[:, 5:])


@torch.no_grad()
def test_every_pixel_of_a_clip_reaches_its_latent(tokenizer):
    latents = tokenizer.encode(clips())
    for picture, frame in ((0, 0), (1, 1), (4, 1), (5, 2), (8, 2)):
        other = clips()
        other[:, picture, :, -1, -1] ^= 128
        assert not torch.equal(tokenizer.encode(other)[:, :, frame], latents[:, :, frame])


@torch.no_grad()
def test_pieces_and_streams_give_the_latents_of_the_whole(tokenizer):
    clip = clips(21)
    whole = tokenizer.encode(clip)
    for frames in (1, 2, 4, 9):
        torch.testing.assert_close(tokenizer.encode_in_pieces(clip, frames), whole, rtol=1e-4, atol=1e-5)
    stream = tokenizer.stream()
    pieces = [stream.push(clip[:, :5]), stream.push(clip[:, 5:9]), stream.push(clip[:, 9:])]
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pictures_that_come_in_pieces_are_those_of_the_whole(tokenizer):
    latents = tokenizer.encode(clips(29))
    whole, stream = tokenizer.decode(latents), tokenizer.picture_stream()
    pieces = [stream.push(part) for part in latents.split((1, 2, 1, 4), dim=2)]
    assert [piece.shape[1] for piece in pieces] == [1, 8, 4, 16]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=1e-5)
    kept = CONFIG.window - 1
    assert all(layer.keys.shape[2] == kept for layer in stream.memory.layers)


@torch.no_grad()
def test_a_stream_keeps_no_more_of_a_longer_video(tokenizer):
    stream = tokenizer.stream()
    stream.push(clips(1))
    kept = []
    for step in range(6):
        stream.push(clips(4, seed=step))
        kept.append(sum(layer.keys.numel() for layer in stream.memory.layers))
    assert kept == [kept[0]] * 6
    assert stream.memory.frames == 7


@torch.no_grad()
def test_cutting_and_joining_are_a_convolution_and_its_transpose(tokenizer):
    """Kernel and stride are the patch: the matrix products are the paper's (transposed) convolutions."""
    patch, width = CONFIG.patch, CONFIG.width
    pixels = torch.randn(2, 5, 3, 16, 24)
    kernel = tokenizer.embed_later.weight.view(width, 4, 3, patch, patch).transpose(1, 2)
    expected = F.conv3d(pixels[:, 1:].transpose(1, 2), kernel, tokenizer.embed_later.bias, stride=(4, patch, patch))
    from wamkit.encoders.repvitok import _cut, _joined

    cut = tokenizer.embed_later(_cut(pixels[:, 1:].flatten(1, 2).unsqueeze(1), patch))
    torch.testing.assert_close(cut.transpose(2, 3).unflatten(-1, (2, 3)).transpose(1, 2), expected)
    features = torch.randn(2, 1, 6, width)
    kernel = tokenizer.leave_later.weight.view(4, 3, patch, patch, width).permute(4, 1, 0, 2, 3)
    volume = features.transpose(2, 3).unflatten(-1, (2, 3)).transpose(1, 2)
    expected = F.conv_transpose3d(volume, kernel, stride=(4, patch, patch)).transpose(1, 2)
    made = _joined(tokenizer.leave_later(features) - tokenizer.leave_later.bias, (2, 3), patch)
    torch.testing.assert_close(made.unflatten(2, (4, 3)).flatten(1, 2), expected)


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (clips(4), "takes 1, 5, 9"),
        (clips(5, (16, 20)), "no multiple of the tokenizer's cell of 8"),
        (clips(5).float(), "a clip is uint8"),
        (clips(5)[0], "a clip is uint8"),
    ],
)
def test_clips_that_do_not_fit_are_refused(tokenizer, clip, said):
    for call in (tokenizer.encode, tokenizer.pretrain_losses, tokenizer.encode_in_pieces):
        with pytest.raises(ClipError, match=said):
            call(clip)


def test_streams_that_do_not_go_on_are_refused(tokenizer):
    stream = tokenizer.stream()
    with pytest.raises(ClipError, match="takes 1, 5, 9"):
        stream.push(clips(4))
    stream.push(clips(5))
    with pytest.raises(ClipError, match="it takes 4 for each latent frame"):
        stream.push(clips(5))
    with pytest.raises(ClipError, match="begin a new stream"):
        stream.push(clips(4, (24, 24)))


def test_it_learns_one_clip():
    torch.manual_seed(0)
    tokenizer = RepViTok(replace(CONFIG, width=32))
    slope = torch.linspace(0, 255, 24).to(torch.uint8)
    clip = slope.expand(1, 5, 3, 16, 24).clone()
    clip[:, :, 1] = slope.flip(0)
    clip[:, 3:] = 255 - clip[:, 3:]
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        losses = tokenizer.pretrain_losses(clip)
        assert list(losses) == ["l1"]
        errors.append(losses["l1"].item())
        optimizer.zero_grad()
        losses["l1"].sum().backward()
        optimizer.step()
    assert errors[-1] < 0.2 * errors[0]
    with torch.no_grad():
        error = (tokenizer.decode(tokenizer.encode(clip)) - clip / 255.0).abs().mean()
    assert error == pytest.approx(errors[-1] / 2, rel=0.3)


def test_the_hash_follows_the_encoder_alone(tokenizer):
    torch.manual_seed(0)
    other = RepViTok(CONFIG)
    first = other.weights_hash()
    assert first == tokenizer.weights_hash()
    with torch.no_grad():
        other.leave_later.weight += 1
        assert other.weights_hash() == first
        other.bottleneck.direct.bias += 1
    assert other.weights_hash() != first


def test_the_config_survives_json_and_is_what_a_model_reads(tokenizer):
    assert from_dict(RepViTokConfig, to_dict(RepViTokConfig())) == RepViTokConfig()
    assert from_dict(RepViTokConfig, to_dict(CONFIG)) == CONFIG
    assert isinstance(tokenizer, VideoTokenizer)
    assert (tokenizer.latent_width, tokenizer.cell, tokenizer.target_width, tokenizer.adversary) == (6, 8, None, None)


def test_paper_size():
    """papers.md 3.2 gives layers and width, and no count: each half must be a ViT-B, 12 x 12 x 768^2 in its blocks."""
    with torch.device("meta"):
        tokenizer = RepViTok(RepViTokConfig())
    for half in (tokenizer.encoder, tokenizer.decoder):
        assert sum(p.numel() for p in half.parameters()) == pytest.approx(12 * 12 * 768**2, rel=0.03)
    ends = 2 * (768 + 3072) * 768  # patches, tubelets, and back
    count = sum(p.numel() for name, p in tokenizer.named_parameters() if not name.startswith("objective."))
    assert count == pytest.approx(2 * 12 * 12 * 768**2 + ends, rel=0.03)
    assert tokenizer.latent_size(256, 256) == (16, 16)
    assert tokenizer.latent_frames(17) == 5
    assert tokenizer.latent_width == 96
