"""Each pass leaves the function as it was, and does what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wamkit.inference.runtime_fusions import optimise
from wamkit.inference.runtime_passes import Constants, tensor_nodes, value
from wamkit.inference.runtime_program import Program, _rms_norm, build
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
    assert _rms_norm in targets(recording)


def test_gated_residuals_are_one_operation():
    gate, layer = nn.Parameter(torch.randn(1, 2, 1, D)), nn.Linear(D, D)

    def whole(x, y):
        return x + layer(y) * y

    def in_runs(x):  # two runs of tokens under two gates
        return x + (layer(x).unflatten(1, (2, -1)) * gate).flatten(1, 2)

    def in_runs_of_one_gate(x):
        return x + (layer(x).unflatten(1, (2, -1)) * gate[:, :1]).flatten(1, 2)

    def scaled(x):
        return x + layer(x) / 10

    x = torch.randn(1, 4, D)
    assert check(whole, x, torch.randn(1, 4, D))[0].operations == 2
    assert check(in_runs, x)[0].operations == 3
    assert check(in_runs_of_one_gate, x)[0].operations == 2
    assert check(scaled, x)[0].operations == 2


def test_adaptive_norms_of_runs_of_tokens_are_one_operation():
    scale, shift = nn.Parameter(torch.randn(1, 1, 1, D)), nn.Parameter(torch.randn(1, 1, 1, D))

    def norm(x):
        normed = nn.functional.layer_norm(x, (D,)).unflatten(1, (1, -1))
        return (normed * (1 + scale) + shift).flatten(1, 2)

    assert check(norm, torch.randn(2, 4, D))[0].operations == 1


def test_a_rotary_code_written_out_is_one_operation():
    angle = nn.Parameter(torch.randn(4, D // 4))

    def rotate(x):
        even, odd = x.unflatten(-1, (2, -1)).transpose(1, 2).unflatten(-1, (-1, 2)).unbind(-1)
        turned = [even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()]
        return torch.stack(turned, dim=-1).flatten(-2)

    assert check(rotate, torch.randn(2, 4, D))[0].operations == 1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_corrections_of_low_rank_become_part_of_the_weights(dtype):
    base, down, up = nn.Linear(D, D), nn.Linear(D, 2, bias=False), nn.Linear(2, D, bias=False)

    def corrected(x):
        return base(x) + up(down(x.float())) * 2.0

    x = torch.randn(3, D)
    program, recording = program_of(corrected, x, dtype=dtype)
    assert targets(recording).count(LINEAR) == 1
    tolerance = 1e-6 if dtype is None else 3e-2
    with torch.no_grad():
        torch.testing.assert_close(program.run(x)[0], corrected(x), rtol=tolerance, atol=tolerance, check_dtype=False)


def test_a_layer_of_other_tokens_is_no_correction():
    base, down, up = nn.Linear(D, D), nn.Linear(D, 2, bias=False), nn.Linear(2, D, bias=False)
    _, recording = check(lambda x, y: base(x) + up(down(y)) * 2.0, torch.randn(3, D), torch.randn(3, D))
    assert targets(recording).count(LINEAR) == 3


@pytest.mark.parametrize("stride", [1, 2])
def test_a_causal_convolution_of_one_frame_is_one_in_space(stride):
    layer, point = nn.Conv3d(2, 3, 3, stride=(1, stride, stride)), nn.Conv3d(3, 3, 1)

    def encode(x):
        return point(layer(nn.functional.pad(x, (1, 1, 1, 1, 2, 0))))

    program, recording = check(encode, torch.randn(2, 2, 1, 8, 6), tolerance=1e-5)
    assert program.operations == 2
    kernels = [node.args[1].meta["val"].ndim for node in tensor_nodes(recording.graph) if "conv" in str(node.target)]
    assert kernels == [4, 4]
    _, recording = check(encode, torch.randn(2, 2, 4, 8, 6), tolerance=1e-5)  # a clip keeps its time
    assert all(value(node).ndim == 5 for node in tensor_nodes(recording.graph))


def test_chains_of_views_are_one_view():
    layer = nn.Linear(D, 3 * D)

    def heads(x):
        parts = [part.unflatten(-1, (2, -1)).transpose(1, 2) for part in layer(x).chunk(3, dim=-1)]
        attended = nn.functional.scaled_dot_product_attention(*parts)
        return attended.transpose(1, 2).flatten(2)

    program, _ = check(heads, torch.randn(2, 4, D), tolerance=1e-5)
    lines = [line for line in program.source.splitlines() if " = " in line]
    # The product, a view for each of queries, keys and values, attention, and heads together again.
    assert len(lines) <= 1 + 3 + 1 + 2


def test_a_view_that_copies_is_no_view():
    layer = nn.Linear(D, D)

    def mixed(x):
        return layer(x).transpose(1, 2).flatten(1).unflatten(1, (4, -1)).transpose(1, 2) + 1

    check(mixed, torch.randn(2, 4, D))


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
