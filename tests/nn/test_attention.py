"""Attention, its projected contexts and its masks."""

from __future__ import annotations

import math

import pytest
import torch

from wamkit.nn.attention import Attention, attend


def by_hand(queries, keys, values, mask=None):
    score = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if mask is not None:
        score = score.masked_fill(~mask, -math.inf)
    weight = score.exp() / score.exp().sum(dim=-1, keepdim=True)
    return weight @ values


@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_softmax_attention(masked):
    queries, keys, values = (torch.randn(2, 3, n, 8) for n in (5, 7, 7))
    mask = torch.rand(2, 1, 5, 7) > 0.5 if masked else None
    if mask is not None:
        mask[..., 0] = True
    torch.testing.assert_close(attend(queries, keys, values, mask), by_hand(queries, keys, values, mask))


def test_bfloat16_on_a_cpu_equals_float32_up_to_its_precision():
    queries, keys, values = (torch.randn(2, 3, 6, 8) for _ in range(3))
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    half = attend(queries.bfloat16(), keys.bfloat16(), values.bfloat16(), mask)
    torch.testing.assert_close(half.float(), attend(queries, keys, values, mask), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_may_see_nothing_gets_no_nan(dtype):
    x = torch.randn(1, 2, 3, 4, dtype=dtype)
    assert attend(x, x, x, torch.zeros(1, 1, 3, 3, dtype=torch.bool)).isfinite().all()


def test_equals_torchs_multihead_attention():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([ours.to_q.weight, ours.to_kv.weight]),
            "in_proj_bias": torch.cat([ours.to_q.bias, ours.to_kv.bias]),
            "out_proj.weight": ours.to_out.weight,
            "out_proj.bias": ours.to_out.bias,
        }
    )
    x = torch.randn(2, 6, 16)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-5, atol=1e-6)


def test_a_context_projected_once_serves_many_times():
    attention = Attention(16, 4, context_width=10)
    x, context = torch.randn(2, 3, 16), torch.randn(2, 5, 10)
    projected = attention.project(context)
    assert torch.equal(attention(x, projected), attention(x, attention.project(context)))


def test_width_must_be_divisible_by_heads():
    with pytest.raises(ValueError, match="width 10 is not divisible by 4 heads"):
        Attention(10, 4)
