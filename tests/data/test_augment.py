"""One draw for each sample, the same for all its frames, fixed by the seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wamkit.data.augment import Augmentation
from wamkit.errors import WamkitError

STILL = Augmentation(area=(1.0, 1.0), aspect=(1.0, 1.0), brightness=0, contrast=0, saturation=0, hue=0)


def pictures(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (*shape, 3, 24, 32), np.uint8))


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_frames_of_a_sample_change_alike():
    frames = pictures(4, 1).expand(-1, 5, -1, -1, -1)
    views = Augmentation(hue=0.1).apply(frames, drawn(1))
    assert views.shape == frames.shape
    assert views.dtype == torch.uint8
    assert (views == views[:, :1]).all()
    assert not torch.equal(views[:, 0], frames[:, 0])


def test_samples_change_differently():
    views = Augmentation().apply(pictures(1, 1).expand(6, -1, -1, -1, -1), drawn(1))
    assert len({tuple(view.flatten().tolist()) for view in views}) == 6


def test_the_seed_fixes_the_draw_in_any_batches():
    augment, frames = Augmentation(), pictures(10)
    whole = augment(frames, 5)
    assert torch.equal(torch.cat([augment(frames[:3], 5), augment(frames[3:], 5)]), whole)
    assert not torch.equal(augment(frames, 6), whole)
    assert not torch.equal(augment(frames, 5 + 2**40), whole)


def test_no_change_is_the_identity():
    frames = pictures(3)
    assert torch.equal(STILL(frames, 0), frames)


def test_a_crop_is_a_part_of_the_picture_enlarged():
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(1, 3, 24, 32).contiguous()
    crop = Augmentation(area=(0.25, 0.25), aspect=(1.0, 1.0), brightness=0, contrast=0, saturation=0, hue=0)
    columns = crop(ramp, 3)[0, 0, 12].float()
    slope = (columns[-1] - columns[0]) / 31
    assert slope == pytest.approx(8 * 0.5, rel=0.05)
    assert columns.min() >= 0
    assert columns.max() <= 248


def test_gray_stays_gray_under_saturation_and_hue():
    gray = torch.full((2, 3, 8, 8), 120, dtype=torch.uint8)
    colour = Augmentation(area=(1, 1), aspect=(1, 1), brightness=0, contrast=0.3, saturation=0.5, hue=0.5)
    assert (colour(gray, 2).int() - 120).abs().max() <= 1


def test_brightness_stays_within_its_factor():
    frames = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    bright = Augmentation(area=(1, 1), aspect=(1, 1), brightness=0.2, contrast=0, saturation=0, hue=0)
    values = {int(bright(frames, seed).max()) for seed in range(50)}
    assert 80 <= min(values) < 90
    assert 110 < max(values) <= 120


def test_training_in_half_precision_draws_the_same():
    frames = pictures(3, 2)
    plain = Augmentation().apply(frames, drawn(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Augmentation().apply(frames, drawn(1)), plain)


def test_repr_names_everything_for_the_feature_store():
    assert repr(Augmentation()) == repr(Augmentation())
    assert repr(Augmentation()) != repr(Augmentation(hue=0.03))


@pytest.mark.parametrize("settings", [{"area": (0.9, 0.8)}, {"area": (0.5, 1.5)}, {"hue": 2.0}, {"brightness": -0.1}])
def test_ranges_that_make_no_sense(settings):
    with pytest.raises(WamkitError):
        Augmentation(**settings)
