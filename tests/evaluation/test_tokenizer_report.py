"""The tokenizer report on clips whose content is known: what it measures, and what it says it did not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wamkit.encoders.base import VideoTokenizer
from wamkit.encoders.patch_encoder import PatchEncoder, PatchEncoderConfig
from wamkit.evaluation.imagined_video import psnr
from wamkit.evaluation.tokenizer_report import FrechetNetworks, HeldOutClips, latents_of, table, tokenizer_report
from wamkit.evaluation.world_metrics import WorldMetricsError
from wamkit.models.fake_window import fake_robot_window


class Averages(VideoTokenizer):
    """A tokenizer of cells' mean colours, of each latent frame's last picture; decodes to those."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    latent_width, cell, preprocessing = 3, 4, "averages"

    def encode(self, clip):
        grid = self.latent_shape(clip)[1]
        ends = clip[:, :: self.TEMPORAL].float() / 255.0
        means = torch.nn.functional.adaptive_avg_pool2d(ends.flatten(0, 1), grid)
        return means.unflatten(0, ends.shape[:2]).transpose(1, 2)

    def decode(self, latents):
        full = latents.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2).transpose(1, 2)
        return torch.cat([full[:, :1], full[:, 1:].repeat_interleave(4, dim=1)], dim=1)

    def stream(self):
        raise NotImplementedError

    def pretrain_losses(self, clip, generator=None, targets=None):
        raise NotImplementedError

    def weights_hash(self):
        return ""


def held_out(cells: bool = True) -> HeldOutClips:
    """Clips of flat cells whose brightness moves by the action: both are linear in the latents."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (24, 1, 2))
    start = rng.uniform(80, 170, (24, 1, 1, 4, 4)) * np.ones((1, 5, 3, 1, 1))
    change = np.zeros_like(start)
    change[:, 1:, 0] += 60 * actions[:, :, 0, None, None]
    change[:, 1:, 1] += 60 * actions[:, :, 1, None, None]
    clips = torch.from_numpy((start + change).round().astype(np.uint8))
    if cells:
        clips = clips.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)
    return HeldOutClips(clips=clips, actions=actions, episodes=np.repeat(np.arange(6), 4))


def test_a_tokenizer_that_keeps_everything():
    result = tokenizer_report(Averages(), held_out(), action_names=("red", "green"))
    assert result["latent"] == {"frames": 2, "cells": 16, "width": 3, "numbers_per_picture": 2 * 16 * 3 / 5}
    assert result["reconstruction"]["psnr"]["mean"] > 60
    assert result["reconstruction"]["ssim"]["mean"] > 0.99
    assert result["reconstruction"]["psnr"]["first_picture"] < 30
    assert result["action_probe"]["r2"] > 0.99
    share = result["action_probe"]["share_within"]
    assert share["share"] > 0.6  # pictures are rounded, which is worth about 0.01
    assert share["mean_action"] < 0.1
    assert set(result["action_probe"]["by_target"]) == {"red", "green"}
    assert result["windows"] == {"n": 24, "episodes": 6}
    assert set(result["not_measured"]) == {"rfid", "rfvd"}


def test_reconstruction_is_over_all_pictures():
    clips = replace(held_out(), clips=torch.randint(0, 256, (24, 5, 3, 16, 16), dtype=torch.uint8))
    tokenizer = Averages()
    made = tokenizer.decode(tokenizer.encode(clips.clips))
    expected = psnr(made, clips.clips / 255.0).mean().item()
    result = tokenizer_report(tokenizer, clips, batch=5)
    assert result["reconstruction"]["psnr"]["mean"] == pytest.approx(expected, rel=1e-5)


def test_an_encoder_of_pictures_is_probed_at_the_ends_of_latent_frames():
    torch.manual_seed(0)
    encoder = PatchEncoder(PatchEncoderConfig(resolution=16, patch=8, width=16, layers=1, heads=2)).eval()
    clips = held_out()
    latents = latents_of(encoder, clips.clips)
    torch.testing.assert_close(latents[:, 1], encoder(clips.clips[:, 4]))
    result = tokenizer_report(encoder, clips)
    assert "reconstruction" not in result
    assert result["not_measured"]["reconstruction"] == "this encoder of single pictures has no decoder."
    assert result["action_probe"]["r2"] > 0.5


def test_what_is_missing_is_named():
    result = tokenizer_report(Averages(), replace(held_out(), actions=None))
    assert result["not_measured"]["action_probe"] == "the recordings have no actions."
    lines = table({"averages": result})
    assert len(lines) == 2
    assert lines[1].startswith("averages")


class Pictures(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return x.float().mean(dim=(2, 3))


def test_networks_that_are_at_hand_are_used(tmp_path):
    torch.jit.script(Pictures()).save(str(tmp_path / "network.pt"))
    result = tokenizer_report(Averages(), held_out(), networks=FrechetNetworks(pictures=tmp_path / "network.pt"))
    assert result["reconstruction"]["rfid"] >= 0
    assert set(result["not_measured"]) == {"rfvd"}


def test_clips_come_from_whole_windows():
    window = fake_robot_window(
        batch_size=3,
        cameras=("front",),
        size=(16, 16),
        frame_times=(0.0, 0.1, 0.2, 0.3, 0.4),
        horizon_s=0.4,
        max_actions=8,
        valid_steps="round",
        state_dim=2,
        action_dim=2,
        seed=0,
    )
    window.frame_valid["front"][1, -1] = False
    clips = HeldOutClips.of([window], [4, 5, 6], "front")
    assert clips.episodes.tolist() == [4, 6]
    assert torch.equal(clips.clips, window.frames["front"][[0, 2]])
    valid = window.action_times[0] < 0.4
    np.testing.assert_allclose(clips.actions[1, 0], window.actions[2, valid].mean(0), rtol=1e-5)
    with pytest.raises(WorldMetricsError, match="no camera 'wrist'"):
        HeldOutClips.of([window], [4, 5, 6], "wrist")
    with pytest.raises(WorldMetricsError, match="one for each"):
        HeldOutClips.of([window], [4, 5], "front")
