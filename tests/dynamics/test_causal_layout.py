"""Who sees whom in a causal sequence, written out by hand; both kinds of attention agree."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import config as jaxtyping_config

from wamkit.dynamics.causal_attention import AttentionUnavailable, causal_attention
from wamkit.dynamics.causal_layout import Role, chunk_of, dense_mask, teacher_forcing
from wamkit.dynamics.causal_positions import action_positions, axis_widths, rotary_at, video_positions
from wamkit.nn.attention import attend

NAMES = {Role.CLEAN_VIDEO: "V", Role.CLEAN_ACTION: "A", Role.NOISY_VIDEO: "v", Role.NOISY_ACTION: "a"}
NAMES[Role.NOISY_INVERSE] = "i"


def seen(frames: int, length: int, *, window: int = 9, order="beside_video", forward: bool = False) -> dict[str, str]:
    """Token -> the tokens that it sees, one token a frame and an action: ``V0 V1 v1 A1 a1 i1``."""
    layout = teacher_forcing(frames, length, 1, 1, "cpu")
    names = [f"{NAMES[Role(int(r))]}{f}" for r, f in zip(layout.role, layout.frame, strict=True)]
    readable = torch.ones(1, len(names), dtype=torch.bool)
    mask = dense_mask(layout, torch.tensor([forward]), readable, window=window, order=order)[0, 0]
    shown = {}
    for name, row in zip(names, mask.tolist(), strict=True):
        shown[name] = " ".join(other for other, on in zip(names, row, strict=True) if on)
    return shown


def test_the_first_frame_is_a_chunk_of_its_own():
    chunk, start = chunk_of(torch.arange(6), 2)
    assert chunk.tolist() == [0, 1, 1, 2, 2, 3]
    assert start.tolist() == [0, 1, 1, 3, 3, 5]


def test_chunks_of_one():
    found = seen(2, 1)
    assert found == {
        "V0": "V0",
        "V1": "V0 V1",
        "V2": "V0 V1 V2 A1",
        "v1": "V0 v1",
        "v2": "V0 V1 v2 A1",
        "A1": "V0 A1",
        "A2": "V0 V1 A1 A2",
        "a1": "V0 a1",
        "a2": "V0 V1 A1 a2",
        "i1": "V0 V1 i1",
        "i2": "V0 V1 V2 A1 i2",
    }


def test_a_chunk_of_two_sees_itself_whole():
    found = seen(2, 2)
    assert found["V1"] == found["V2"] == "V0 V1 V2"
    assert found["v1"] == found["v2"] == "V0 v1 v2"
    assert found["A1"] == "V0 A1 A2"
    assert found["a2"] == "V0 a1 a2"
    assert found["i1"] == "V0 V1 V2 i1 i2"


def test_actions_after_video_see_their_frames_as_lingbot_va_has_it():
    found = seen(2, 1, order="after_video")
    assert found["A1"] == "V0 V1 A1"
    assert found["a1"] == "V0 a1"
    assert found["v2"] == "V0 V1 v2 A1"


def test_forward_mode_shows_frames_their_actions_and_no_action_its_frame():
    found = seen(2, 1, forward=True)
    assert found["v1"] == "V0 v1 A1"
    assert found["v2"] == "V0 V1 v2 A1 A2"
    # What the noisy frame reads in A1 has seen nothing of frame 1.
    assert "V1" not in found["A1"]
    assert seen(2, 1)["V2"] == found["V2"]


def test_the_window_is_counted_from_the_chunk():
    found = seen(4, 2, window=1)
    assert found["v3"] == found["v4"] == "V2 v3 v4 A2"
    assert found["V4"] == "V2 V3 V4 A2"


def test_nobody_reads_what_is_not_readable():
    layout = teacher_forcing(1, 1, 1, 1, "cpu")
    readable = torch.tensor([[True, True, True, False, True, True]])
    mask = dense_mask(layout, torch.tensor([True]), readable, window=9, order="beside_video")
    assert not mask[0, 0, :, 3].any()


def test_positions_of_actions_lie_between_frames_whatever_the_padding():
    places = action_positions(torch.tensor([2, 3]), 4, torch.tensor(2))
    assert places[:2, 0].tolist() == pytest.approx([2 + 1 / 3, 2 + 2 / 3])
    assert places[4, 0].item() == pytest.approx(3 + 1 / 3)
    assert (places[:, 1:] == -1).all()
    frames = video_positions(torch.tensor([5]), 2, 2)
    assert frames.tolist() == [[5, 0, 0], [5, 0, 1], [5, 1, 0], [5, 1, 1]]


def test_rotary_codes_are_those_of_wan():
    from wamkit.dynamics.video_dit import VideoDiT, VideoDiTConfig

    with torch.device("cpu"):
        video = VideoDiT(
            VideoDiTConfig(weights=None, channels=4, heads=2, head_width=12, mlp_width=8, layers=1, text_width=8)
        )
    theirs = video.rotary(3, 2, 2)
    ours = rotary_at(video_positions(torch.arange(3), 2, 2), 12)
    torch.testing.assert_close(ours.cosines, theirs.cosines.float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.sines, theirs.sines.float(), atol=1e-6, rtol=1e-6)
    assert axis_widths(128) == (44, 42, 42)
    with pytest.raises(ValueError, match="6 or more"):
        axis_widths(4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_the_dense_mask():
    layout = teacher_forcing(3, 2, 2, 2, "cpu")
    count = len(layout.role)
    generator = torch.Generator().manual_seed(0)
    readable = torch.rand(2, count, generator=generator) > 0.1
    readable[:, :2] = True  # the first frame, which everybody sees
    queries, keys, values = (torch.randn(2, 2, count, 16, generator=generator) for _ in range(3))
    options = dict(window=2, order="beside_video")
    forward = torch.tensor([True, False])
    dense = causal_attention("sdpa", layout, forward, readable, **options)
    # FlexAttention traces the mask, and cannot trace what checks types around it in tests.
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        attend_by_flex = causal_attention("flex", layout, forward, readable, **options)
        flex = attend_by_flex(queries, keys, values)
    except (NotImplementedError, RuntimeError, ImportError) as reason:
        pytest.skip(f"FlexAttention does not run here: {reason}")
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)
    with pytest.raises(AttentionUnavailable, match="no gradient on a CPU"):
        attend_by_flex(queries.clone().requires_grad_(), keys, values)
    # A query that may see nothing is zero in one and whatever in the other; all others agree.
    some = dense.any(dim=-1)[:, 0]
    expected = attend(queries, keys, values, dense).transpose(1, 2)
    torch.testing.assert_close(flex.transpose(1, 2)[some], expected[some], rtol=1e-4, atol=1e-5)
