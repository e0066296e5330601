"""Each pass leaves the function as it was, and does what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wamkit.inference.runtime_passes import Constants, optimise, tensor_nodes
from wamkit.inference.runtime_program import Program, build
from wamkit.inference.runtime_record import ATTEND, LAYER_NORM, LINEAR, Recording, RuntimeUnsupported, record
from wamkit.nn.attention import Attention

D = 8


def program_of(function, *inputs, dtype=None, constants=None) -> tuple[Program, Recording]:
    recording = record(function, inputs, dtype=dtype)
    optimise(recording, constants or Constants())
    return build(recording), recording


def check(function, *inputs, tolerance=1e-6) -> tuple[Program, Recording]:
    """The program gives what the function gives, on inputs that it was not recorded with."""
    program, recording = program_of(function, *inputs)
    others = [torch.randn_like(x) if x.is_floating_point() else x.flip(0) for x in inputs]
    for given in (inputs, others):
        with torch.no_grad():
            torch.testing.assert_close(program.run(*given)[0], function(*given), rtol=tolerance, atol=tolerance)
    return program, recording


def targets(recording: Recording) -> list:
    return [node.target for node in tensor_nodes(recording.graph)]


def test_what_weights_decide_is_computed_once():
    table, layer = nn.Parameter(torch.randn(5, D)), nn.Linear(D, D)
    program, recording = check(lambda x: x + layer(table.sin().cumsum(0)), torch.randn(5, D))
    assert program.operations == 1
    assert LINEAR not in targets(recording)


def test_equal_work_is_done_once_wherever_it_stands():
    layer = nn.Linear(D, D)

    def steps(x, y):
        for _ in range(4):
            x = x + layer(y).relu()
        return x

    program, _ = check(steps, torch.randn(2, D), torch.randn(2, D))
    assert program.operations == 2 + 4
    assert program.operations_of_first_input == 4


@pytest.mark.parametrize("batch", [1, 3])
def test_adaptive_norms_of_a_known_level_are_one_operation(batch):
    scale, shift = nn.Parameter(torch.randn(D)), nn.Parameter(torch.randn(D))

    def norm(x):
        expanded = (1 + scale).expand(batch, 1, -1)
        return nn.functional.layer_norm(x, (D,)) * expanded + shift.expand(batch, 1, -1)

    program, recording = check(norm, torch.randn(batch, 4, D))
    assert targets(recording) == [LAYER_NORM]
    assert program.operations == 1


@pytest.mark.parametrize(("batch", "operations"), [(1, 2), (3, 4)])
def test_a_single_samples_modulation_is_a_norms_weight_too(batch, operations):
    def norm(x, scale, shift):
        return nn.functional.layer_norm(x, (D,)) * (1 + scale) + shift

    program, _ = check(norm, torch.randn(batch, 4, D), torch.randn(batch, 1, D), torch.randn(batch, 1, D))
    assert program.operations == operations


def test_different_modulations_of_the_samples_stay_as_they_are():
    scale = nn.Parameter(torch.randn(3, 1, D))
    program, _ = check(lambda x: nn.functional.layer_norm(x, (D,)) * scale + 1.0, torch.randn(3, 4, D))
    assert program.operations == 3


def test_self_attention_is_one_projection():
    attention = Attention(D, 2).eval()
    _, recording = check(attention, torch.randn(2, 5, D), tolerance=1e-5)
    assert targets(recording).count(LINEAR) == 2  # query, key and value together, and the way out


def test_gate_and_up_are_one_product():
    gate, up, down = nn.Linear(D, 12, bias=False), nn.Linear(D, 12, bias=False), nn.Linear(12, D, bias=False)
    _, recording = check(lambda x: down(nn.functional.silu(gate(x)) * up(x)), torch.randn(2, 3, D))
    assert targets(recording).count(LINEAR) == 2


def test_layers_of_other_tokens_are_not_joined():
    first, second = nn.Linear(D, D), nn.Linear(D, D)
    _, recording = check(lambda x, y: first(x) + second(y), torch.randn(2, D), torch.randn(2, D))
    assert targets(recording).count(LINEAR) == 2


def test_root_mean_square_norms_are_one_operation():
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

    norm = Qwen3VLTextRMSNorm(D)
    nn.init.normal_(norm.weight)
    program, recording = check(norm, torch.randn(2, 3, D))
    assert program.operations == 1
    assert torch.rms_norm in targets(recording)


def test_slices_that_are_written_into_are_recorded_as_values():
    def write(x):
        y = x.clone()
        y[:, 1::2] = -y[:, ::2]
        return y * 2

    check(write, torch.randn(3, D))


def test_masked_attention_through_either_door():
    mask = torch.tensor([[True, True, False], [True, False, True]])[:, None, None]

    def attend(q, k, v):
        from wamkit.nn.attention import attend

        return attend(q, k, v, mask.expand(2, 1, 1, 3))

    def torch_attend(q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(2, 1, 4, 3))

    q, k, v = torch.randn(2, 2, 4, D), torch.randn(2, 2, 3, D), torch.randn(2, 2, 3, D)
    for function in (attend, torch_attend):
        recording = record(function, (q, k, v), dtype=None)
        assert targets(recording).count(ATTEND) == 1
        check(function, q, k, v, tolerance=1e-5)


def test_bf16_casts_weights_once_and_products_run_in_it():
    layer = nn.Linear(D, D)
    program, recording = program_of(lambda x: layer(x) + x, torch.randn(2, D), dtype=torch.bfloat16)
    x = torch.randn(2, D)
    with torch.no_grad():
        torch.testing.assert_close(program.run(x)[0], layer(x) + x, rtol=2e-2, atol=2e-2)
    assert program.operations == 3  # the input's cast, the product, the sum
    linear = next(node for node in tensor_nodes(recording.graph) if node.target is LINEAR)
    assert linear.meta["val"].dtype == torch.bfloat16


def test_constants_are_shared():
    constants, layer = Constants(), nn.Linear(64, 64)
    for rows in (2, 3):
        program_of(lambda x: layer(x), torch.randn(rows, 64), dtype=torch.bfloat16, constants=constants)
    assert constants.bytes() == 2 * (64 * 64 + 64)


def test_what_is_no_tensor_is_refused():
    with pytest.raises(RuntimeUnsupported, match="returns str"):
        record(lambda x: {"x": x, "name": "x"}, (torch.randn(2),), dtype=None)
    with pytest.raises(RuntimeUnsupported, match="evaluation mode"):
        record(
            lambda q: nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5),
            (torch.randn(1, 1, 2, 4),),
            dtype=None,
        )


def test_randomness_is_neither_folded_nor_shared():
    program, _ = program_of(lambda x: (x + torch.rand(4)) - (x + torch.rand(4)), torch.zeros(4))
    first, second = program.run(torch.zeros(4))[0], program.run(torch.zeros(4))[0]
    assert first.abs().max() > 0
    assert not torch.equal(first, second)
