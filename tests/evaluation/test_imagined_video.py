"""Imagined video against the real one: the numbers, what stands beside them, and what is said to be missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from wamkit.evaluation import imagined_video
from wamkit.evaluation.imagined_video import psnr, ssim, video_report
from wamkit.evaluation.world_metrics import WorldMetricsError
from wamkit.types import Future, Window

SIZE, FRAMES = 16, 5


class Dreamer(torch.nn.Module):
    """Imagines the truth with a stated error, on a scene that moves by a stated amount a frame."""

    def __init__(self, error: float, motion: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.error, self.motion = error, motion
        self.config = type("Config", (), {"cameras": ("front",)})()

    def pictures_of(self, frames, size):
        return frames["front"].float() / 255.0

    def reconstruction_of(self, window):
        return self.pictures_of(window.frames, None) + 0.01

    def imagine(self, observation):
        present = observation.images["front"].float() / 255.0
        steps = torch.arange(1, FRAMES).view(1, -1, 1, 1, 1)
        true = present[:, None] + self.motion * steps
        times = torch.linspace(0.1, 0.4, FRAMES - 1).expand(len(present), -1)
        return Future(space="pixels", values=true + self.error, times=times, present=present)


def windows(motion: int = 10, drop: bool = False) -> list[Window]:
    base = torch.randint(0, 150, (4, 1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    clip = (base + motion * torch.arange(FRAMES).view(1, -1, 1, 1, 1)).to(torch.uint8)
    valid = torch.ones(4, FRAMES, dtype=torch.bool)
    if drop:
        valid[0, -1] = False
    return [
        Window(
            frames={"front": clip},
            frame_times=torch.linspace(0, 0.4, FRAMES).expand(4, -1),
            frame_valid={"front": valid},
            state=torch.zeros(4, FRAMES, 1),
            state_valid=torch.zeros(4, FRAMES, 1, dtype=torch.bool),
            actions=torch.zeros(4, 1, 1),
            action_valid=torch.zeros(4, 1, 1, dtype=torch.bool),
            action_times=torch.zeros(4, 1),
            rate_hz=torch.ones(4),
            task=("x",) * 4,
            embodiment=torch.ones(4, dtype=torch.long),
        )
    ]


def test_error_against_horizon_beside_copy_and_reconstruction(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    report = video_report(Dreamer(0.02, 10 / 255), windows(), [0, 0, 1, 1], pictures=tmp_path / "strips")
    error = report["pixel_error"]
    assert error["horizon_s"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert error["psnr"]["model"] == pytest.approx([-20 * np.log10(0.02)] * 4, abs=0.05)
    assert error["psnr"]["reconstruction"] == pytest.approx([40.0] * 4, abs=0.05)
    copied = [-20 * np.log10(10 * step / 255) for step in range(1, 5)]
    assert error["psnr"]["copy_present"] == pytest.approx(copied, abs=0.05)
    assert error["ratio"] == pytest.approx([(0.02 * 255 / (10 * step)) ** 2 for step in range(1, 5)], rel=0.02)
    assert error["ssim"]["model"][0] > 0.9
    assert report["windows"] == {"n": 4, "episodes": 2, "dropped": 0}
    assert "nothing stands in" in report["not_measured"]["lpips"]
    assert "nothing stands in" in report["not_measured"]["fvd"]
    strips = sorted((tmp_path / "strips").iterdir())
    assert len(strips) == 4
    assert Image.open(strips[0]).size == ((FRAMES - 1) * SIZE, 2 * SIZE)


def test_windows_past_their_episode_are_left_out():
    report = video_report(Dreamer(0.02, 10 / 255), windows(drop=True), [0, 0, 1, 1])
    assert report["windows"] == {"n": 3, "episodes": 2, "dropped": 1}


def test_one_episode_gives_no_interval():
    report = video_report(Dreamer(0.02, 10 / 255), windows(), [3, 3, 3, 3])
    assert "ratio" not in report["pixel_error"]
    assert "two held-out episodes" in report["not_measured"]["pixel_error.ratio"]


def test_nothing_to_measure_is_told():
    window = windows()[0]
    empty = replace(window, frame_valid={"front": torch.zeros(4, FRAMES, dtype=torch.bool)})
    with pytest.raises(WorldMetricsError, match="hold out longer episodes"):
        video_report(Dreamer(0.02, 0.0), [empty], [0, 0, 1, 1])


def test_the_metrics_on_known_pictures():
    one = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert psnr(one, one).tolist() == [[100.0] * 3] * 2
    assert psnr(one, one + 0.1)[0, 0].item() == pytest.approx(20.0, abs=1e-3)
    torch.testing.assert_close(ssim(one, one), torch.ones(2, 3))
    assert ssim(one, one.flip(-1)).max() < 0.5


def test_lpips_is_measured_where_its_weights_are(tmp_path, monkeypatch):
    weights = tmp_path / "checkpoints" / imagined_video._ALEXNET
    weights.parent.mkdir()
    weights.touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    import torchmetrics.image.lpip as lpip

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", lambda **_: lambda a, b: (a - b).abs().mean())
    report = video_report(Dreamer(0.02, 10 / 255), windows(), [0, 0, 1, 1])
    assert report["pixel_error"]["lpips"]["model"] == pytest.approx([0.02] * 4, abs=2e-3)
    assert "lpips" not in report["not_measured"]
