"""Position codes: of grids, of seconds, and the released one."""

from __future__ import annotations

import math

import pytest
import torch

from wamkit.nn.position import grid_sincos, overlaid_grid_sincos, seconds_code, sincos


def test_sincos_values():
    code = sincos(torch.tensor([0.0, 2.0]), 4, max_period=100.0)
    expected = [[0, 0, 1, 1], [math.sin(2), math.sin(0.2), math.cos(2), math.cos(0.2)]]
    torch.testing.assert_close(code, torch.tensor(expected))


def test_the_slowest_frequency_with_the_endpoint():
    assert sincos(torch.tensor([1.0]), 4, max_period=100.0, endpoint=True)[0, 1] == pytest.approx(math.sin(0.01))


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="even width, got 3"):
        sincos(torch.zeros(1), 3)


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5)])
def test_every_cell_of_a_grid_has_its_own_code(shape):
    code = grid_sincos(shape, 32)
    assert code.shape == (math.prod(shape), 32)
    apart = torch.cdist(code, code) + 100 * torch.eye(len(code))
    assert apart.min() > 0.1


def test_the_released_code_confuses_rows_and_columns():
    code = overlaid_grid_sincos((4, 4), 32).view(4, 4, 32)
    assert torch.equal(code[1, 3], code[3, 1])
    assert torch.equal(code[..., 16:], torch.zeros(4, 4, 16))


def test_seconds_code_depends_on_time_alone():
    """5 Hz and 20 Hz: other indices, the same instants, the same code (LaWAM C.3)."""
    slow, fast = torch.arange(6) / 5.0, torch.arange(24) / 20.0
    torch.testing.assert_close(seconds_code(slow, 64), seconds_code(fast, 64)[::4], rtol=0, atol=1e-6)
    assert not torch.allclose(seconds_code(slow, 64)[1], seconds_code(fast, 64)[1], atol=1e-2)


def test_seconds_code_unit():
    times = torch.tensor([0.0, 0.1, 0.2])
    torch.testing.assert_close(seconds_code(times, 16, unit_s=0.1), seconds_code(times * 10, 16), rtol=1e-5, atol=1e-6)
