"""Layouts of several cameras, there and back."""

from __future__ import annotations

import pytest
import torch

from wamkit.data.canvas import Canvas, CanvasError


def pictures(cameras, height=8, width=12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {c: torch.randint(0, 256, (2, 3, 3, height, width), generator=generator, dtype=torch.uint8) for c in cameras}


def test_one_camera_is_its_own_canvas():
    canvas, given = Canvas("single", ("front",), 8, 12), pictures(["front"])
    assert torch.equal(canvas.compose(given), given["front"])
    assert torch.equal(canvas.split(given["front"])["front"], given["front"])


def test_side_by_side_and_back():
    cameras = ("front", "wrist", "top")
    canvas, given = Canvas("side_by_side", cameras, 8, 12), pictures(cameras)
    made = canvas.compose(given)
    assert made.shape == (2, 3, 3, 8, 36)
    assert torch.equal(made[..., 12:24], given["wrist"])
    for camera, picture in canvas.split(made).items():
        assert torch.equal(picture, given[camera])


def test_robotwin_and_back():
    """papers.md 2.2: three cameras on 384 x 320, the wrists at half size under the head."""
    cameras = ("head", "left", "right")
    canvas = Canvas("robotwin", cameras, 256, 320)
    assert (canvas.height, canvas.width) == (384, 320)
    flat = {
        c: torch.full((1, 3, 256, 320), value, dtype=torch.uint8)
        for c, value in zip(cameras, (10, 20, 30), strict=True)
    }
    made = canvas.compose(flat)
    assert made[0, 0, 255, 0] == 10
    assert made[0, 0, 256, 159] == 20
    assert made[0, 0, 383, 160] == 30
    back = canvas.split(made)
    assert all(torch.equal(back[camera], flat[camera]) for camera in cameras)
    noisy = pictures(cameras, 256, 320)
    assert torch.equal(canvas.split(canvas.compose(noisy))["head"], noisy["head"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(CanvasError, match="cannot hold 2 cameras"):
        Canvas("robotwin", ("a", "b"), 8, 12)
    with pytest.raises(CanvasError, match="cannot hold 2 cameras"):
        Canvas("single", ("a", "b"), 8, 12)
    canvas = Canvas("side_by_side", ("a", "b"), 8, 12)
    with pytest.raises(CanvasError, match="needs camera 'b'"):
        canvas.compose(pictures(["a"]))
    with pytest.raises(CanvasError, match="set the data set's resolution"):
        canvas.compose(pictures(["a", "b"], 8, 10))
    with pytest.raises(CanvasError, match="A canvas has"):
        canvas.split(torch.zeros(3, 8, 12, dtype=torch.uint8))


def test_the_name_holds_all_that_pictures_depend_on():
    names = {
        repr(Canvas(kind, cameras, 8, side))
        for kind, cameras in (
            ("single", ("a",)),
            ("side_by_side", ("a",)),
            ("side_by_side", ("a", "b")),
            ("side_by_side", ("b", "a")),
        )
        for side in (8, 12)
    }
    assert len(names) == 8
