"""New frames in physical time, and resizing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wamkit.data.frames import nearest, new_frame_rows, resize_frames


def test_new_frames_of_droid_come_every_third_row():
    assert new_frame_rows(8, 15, 5).tolist() == [0, 3, 6]
    assert new_frame_rows(7, 15, 5).tolist() == [0, 3, 6]
    assert new_frame_rows(6, 15, 5).tolist() == [0, 3]


def test_every_row_has_a_new_frame_at_equal_rates():
    assert new_frame_rows(5, 30, 30).tolist() == [0, 1, 2, 3, 4]
    assert new_frame_rows(1, 80, 20).tolist() == [0]


def test_a_rate_that_does_not_divide_takes_the_first_row_not_before_the_frame():
    # Frames at 0, 50, 100, 150 ms; rows every 33.3 ms.
    assert new_frame_rows(7, 30, 20).tolist() == [0, 2, 3, 5, 6]


def test_nearest_takes_the_earlier_at_a_tie():
    assert nearest(np.array([0, 3, 6]), np.array([-5.0, 1.4, 1.5, 1.6, 9.0])).tolist() == [0, 0, 0, 1, 2]
    assert nearest(np.array([0]), np.array([4.0])).tolist() == [0]


def test_frames_of_the_right_size_are_untouched():
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    assert np.array_equal(resize_frames(frames, (5, 7)).numpy(), np.moveaxis(frames, -1, 1))


def test_flipped_views_are_taken():
    frames = np.arange(24, dtype=np.uint8).reshape(1, 4, 2, 3)
    assert resize_frames(frames[:, ::-1], (4, 2))[0, 0, 0, 0] == frames[0, -1, 0, 0]


@pytest.mark.parametrize(("rule", "column"), [("stretch", 15), ("crop", 0), ("pad", 15)])
def test_rules_keep_cut_or_pad(rule, column):
    frames = np.zeros((1, 32, 64, 3), np.uint8)
    frames[:, :, 56:] = 255  # the right eighth is lost by a crop of the centre
    frames[:, :2] = 100
    resized = resize_frames(frames, 16, rule)
    assert resized.shape == (1, 3, 16, 16)
    assert resized.dtype == torch.uint8
    assert resized.is_contiguous()
    middle = resized[0, 0, 8]
    assert (int(middle[15]) > 200) == (column == 15)
    assert (int(resized[0, 0, 0].max()) == 0) == (rule == "pad")
