"""Operations, FLOP and bytes of a recording, and the bound they give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wamkit.evaluation.arithmetic import Cost, Limits, bound_s, cost_of, dispatched_operations, machine_limits
from wamkit.inference.runtime_fusions import optimise
from wamkit.inference.runtime_passes import Constants
from wamkit.inference.runtime_program import build
from wamkit.inference.runtime_record import record


def recorded(function, *inputs):
    recording = record(function, inputs, dtype=None)
    optimise(recording, Constants())
    build(recording)
    return recording


def test_a_linear_layer_costs_what_it_costs():
    layer = nn.Linear(8, 12)
    cost = cost_of(recorded(layer, torch.randn(2, 5, 8)))
    assert cost.flop == 2 * (2 * 5) * 8 * 12
    assert cost.bytes == 4 * (8 * 12 + 12 + 2 * 5 * 8)
    assert cost.operations == 1


def test_weights_are_read_in_every_step():
    layer = nn.Linear(8, 8, bias=False)

    def loop(x):
        for _ in range(3):
            x = layer(x).relu()
        return x

    cost = cost_of(recorded(loop, torch.randn(1, 8)))
    assert cost.operations == 6
    assert cost.bytes == 4 * (3 * 64 + 8)
    assert cost.flop == 3 * 2 * 64


def test_attention_and_products_are_counted():
    def attention(q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v)

    q, kv = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    assert cost_of(recorded(attention, q, kv, kv.clone())).flop == 2 * (2 * 3 * 4 * 5) * 2
    assert cost_of(recorded(torch.bmm, torch.randn(2, 3, 4), torch.randn(2, 4, 5))).flop == 2 * 2 * 3 * 4 * 5


def test_the_bound_is_the_slower_of_memory_and_arithmetic_of_each_stage():
    limits = Limits(bytes_per_s=10.0, flop_per_s=100.0, dtype="float32")
    assert bound_s([Cost(100.0, 20.0, 1), Cost(500.0, 20.0, 1)], limits) == pytest.approx(2.0 + 5.0)


def test_limits_are_measured():
    limits = machine_limits(torch.device("cpu"), torch.float32, seconds=0.02)
    assert limits.bytes_per_s > 1e8
    assert limits.flop_per_s > 1e8


def test_dispatched_operations_leave_views_out():
    x = torch.randn(4, 4)
    assert dispatched_operations(lambda: (x.view(2, 8).t() + 1).relu()) == 2
