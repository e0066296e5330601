"""The runtime does what the model does, in fewer operations, for a bounded number of shapes."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
from toy_phases import ToyModel, toy_noise, toy_observation

from wamkit.inference import runtime as runtime_module
from wamkit.inference.runtime import Runtime, RuntimeSettings
from wamkit.inference.runtime_loop import rows_of
from wamkit.inference.runtime_precision import calibrate_fp8, emulated_scaled_linear
from wamkit.inference.runtime_program import build
from wamkit.inference.runtime_record import LINEAR, RuntimeUnsupported


def largest_difference(chunk, reference) -> float:
    """Relative to the largest action."""
    return float((chunk.actions - reference.actions).abs().max() / reference.actions.abs().max())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("task", ["go", "open the drawer on the left"])
def test_equals_the_plain_model(batch, task):
    model = ToyModel()
    observation, noise = toy_observation(batch, task=task), toy_noise(batch)
    chunk, reference = Runtime(model).act(observation, noise=noise), model.act(observation, noise=noise)
    assert largest_difference(chunk, reference) < 1e-5
    assert chunk.actions.shape == reference.actions.shape
    assert torch.equal(chunk.times, reference.times)
    assert torch.equal(chunk.valid, reference.valid)


@pytest.mark.parametrize(("steps", "batch"), [(3, 1), (0, 2), (3, 5)])
def test_what_was_imagined_comes_with_the_chunk(steps, batch):
    """From the same programs: of a batch that is filled up (to 2 or 4), and of one that runs in parts."""
    model = ToyModel(steps=steps)
    runtime = Runtime(model, RuntimeSettings(batch_sizes=(2, 4), text_tokens=(8,)))
    observation, noise = toy_observation(batch), toy_noise(batch) if steps else None
    expected, imagined = (which.act(observation, noise=noise).imagined for which in (model, runtime))
    assert imagined.space == "features"
    assert imagined.latent_action is None
    for field in ("values", "times", "present"):
        torch.testing.assert_close(getattr(imagined, field), getattr(expected, field), rtol=1e-5, atol=1e-6)
    assert (imagined.values[:1] - imagined.values[-1:]).abs().max() > 1e-3 or batch == 1


def test_a_decoder_is_not_recorded():
    model = ToyModel()
    model.decode = lambda values: values
    with pytest.raises(RuntimeUnsupported, match="leave Future.decode empty"):
        Runtime(model).act(toy_observation(), noise=toy_noise())


def test_bf16_stays_near_fp32():
    model, observation, noise = ToyModel(), toy_observation(2), toy_noise(2)
    chunk = Runtime(model, RuntimeSettings(precision="bf16")).act(observation, noise=noise)
    reference = model.act(observation, noise=noise)
    cosine = torch.nn.functional.cosine_similarity(chunk.actions.flatten(), reference.actions.flatten(), dim=0)
    assert cosine >= 0.999
    assert largest_difference(chunk, reference) > 1e-7  # it did run in bf16
    assert chunk.actions.dtype == torch.float32


def test_a_model_without_denoise_steps_is_one_program():
    model, observation = ToyModel(steps=0), toy_observation(2)
    runtime = Runtime(model)
    assert largest_difference(runtime.act(observation), model.act(observation)) < 1e-5
    assert runtime.programs(observation)[1] is None
    assert runtime.reports()[0].operations_per_step == 0


def test_new_values_of_a_known_shape_need_no_new_recording():
    model = ToyModel()
    runtime = Runtime(model)
    for seed in range(3):
        observation, noise = toy_observation(seed=seed), toy_noise(seed=seed)
        assert largest_difference(runtime.act(observation, noise=noise), model.act(observation, noise=noise)) < 1e-5
    assert len(runtime.reports()) == 1


def test_the_loop_holds_what_depends_on_the_noise_and_no_more():
    model = ToyModel()
    runtime, observation = Runtime(model), toy_observation()
    _, loop = runtime.recordings(observation)
    noise, *_ = [node for node in loop.graph.nodes if node.op == "placeholder"]
    moving = {noise}
    for node in loop.graph.nodes:
        if any(source in moving for source in node.all_input_nodes):
            moving.add(node)
    linears = [node for node in loop.graph.nodes if node.target is LINEAR]
    # enter, to_q, gate and up as one, down, leave; keys, values and modulations are computed elsewhere, once.
    assert len(linears) == 5 * model.steps
    assert all(node in moving for node in linears)
    # The modulation became part of the layer norm: besides the linear layers a step has two norms, attention with its
    # residual, silu, product and residual, GELU, and the Euler step.
    assert runtime.reports()[0].operations_per_step == 5 + 9


def test_a_value_that_decides_is_refused():
    with pytest.raises(RuntimeUnsupported, match=r"a tensor's value decides what it computes"):
        Runtime(ToyModel(peeks=True)).act(toy_observation())


def test_steps_that_are_not_alike_are_refused():
    with pytest.raises(RuntimeUnsupported, match="does more with its number than to index the schedule"):
        Runtime(ToyModel(counts=True)).act(toy_observation())


def test_a_step_reads_its_own_row_and_the_following_one():
    rows = rows_of([torch.arange(3), torch.arange(4)], 3)
    assert [[leaf.tolist() for leaf in entry] for entry in rows] == [
        [[0, 1], [0, 1]],
        [[1, 2], [1, 2]],
        [[2, 2], [2, 3]],
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor needs a C++ compiler")
def test_compiled_it_does_the_same():
    model, noise = ToyModel(), toy_noise()
    fast = Runtime(model, RuntimeSettings(precision="fp32", compile=True))
    for seed in (0, 1):
        observation = toy_observation(seed=seed)
        assert largest_difference(fast.act(observation, noise=noise), model.act(observation, noise=noise)) < 1e-5


def test_one_step_and_what_comes_before_it_make_the_loop(monkeypatch):
    """What is compiled, run without a compiler."""
    monkeypatch.setattr("wamkit.inference.runtime_loop.compiled", lambda recording, _: build(recording).run)
    monkeypatch.setattr(runtime_module, "compiled", lambda recording, _: build(recording).run)
    for precision in ("fp32", "bf16"):
        model, observation, noise = ToyModel(), toy_observation(), toy_noise()
        whole, pieces = (Runtime(model, RuntimeSettings(precision=precision, compile=on)) for on in (False, True))
        chunk, reference = (runtime.act(observation, noise=noise) for runtime in (pieces, whole))
        assert largest_difference(chunk, reference) < (1e-5 if precision == "fp32" else 3e-2)
        assert largest_difference(chunk, model.act(observation, noise=noise)) < (1e-5 if precision == "fp32" else 3e-2)


def test_shapes_are_bounded():
    model = ToyModel()
    runtime = Runtime(model, RuntimeSettings(batch_sizes=(1, 2), text_tokens=(8, 16), max_programs=2))
    for task in ("a", "ab", "abcdefgh"):
        runtime.act(toy_observation(1, task=task), noise=toy_noise())
    assert len(runtime.reports()) == 1
    # Five samples run as 2 + 2 + 1; the last one's shape is known.
    observation, noise = toy_observation(5), toy_noise(5)
    chunk = runtime.act(observation, noise=noise)
    assert largest_difference(chunk, model.act(observation, noise=noise)) < 1e-5
    assert [report.shape["image"][0] for report in runtime.reports()] == [2, 1]
    assert runtime.evicted == 0
    runtime.act(toy_observation(1, task="abcdefghijk"), noise=toy_noise())
    assert len(runtime.reports()) == 2
    assert runtime.evicted == 1


def test_weights_are_shared_between_shapes():
    runtime = Runtime(ToyModel())
    runtime.act(toy_observation(1), noise=toy_noise(1))
    before = runtime.constants.bytes()
    runtime.act(toy_observation(2), noise=toy_noise(2))
    assert before > 0
    assert runtime.constants.bytes() < 1.2 * before


def test_warm_up_reports_what_it_cost():
    (report,) = Runtime(ToyModel()).warm_up([toy_observation()])
    assert report.seconds.keys() == {"record", "optimise", "compile_or_capture", "first_run"}
    assert all(seconds >= 0 for seconds in report.seconds.values())
    assert report.shape["image"] == (1, 3, 8, 8)


def test_parts_run_alone():
    model, observation = ToyModel(), toy_observation()
    parts = Runtime(model).parts(observation, toy_noise())
    assert list(parts) == ["see", "read", "denoise_loop"]
    actions = parts["denoise_loop"]()[0]
    torch.testing.assert_close(actions, model.act(observation, noise=toy_noise()).actions, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (RuntimeSettings(precision="fp8"), "fp8 needs an NVIDIA GPU since Hopper"),
        (RuntimeSettings(graphs=True), "CUDA graphs need a CUDA device"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused(settings, said):
    with pytest.raises(RuntimeUnsupported, match=said):
        Runtime(ToyModel(), settings)


def test_models_that_cannot_be_run_are_refused():
    with pytest.raises(RuntimeUnsupported, match="training mode"):
        Runtime(ToyModel().train())
    model = ToyModel()
    model.phases = lambda: None
    with pytest.raises(RuntimeUnsupported, match="toy declares no phases"):
        Runtime(model)


def test_threads_are_set_where_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    Runtime(ToyModel())
    assert asked == []
    Runtime(ToyModel(), RuntimeSettings(threads=1))
    assert asked == [1]


@pytest.fixture
def fp8_on_cpu(monkeypatch):
    """FP8 by ordinary products, so that its scales and its gate can be tested without a GPU."""
    monkeypatch.setattr(runtime_module, "chosen_precision", lambda *_: "fp8")
    monkeypatch.setattr(runtime_module, "calibrate_fp8", partial(calibrate_fp8, linear=emulated_scaled_linear))
    monkeypatch.setattr("wamkit.inference.runtime_precision.SMALLEST", 16)


def test_fp8_passes_its_gate_or_is_refused(fp8_on_cpu):
    model, observations = ToyModel(), [toy_observation(seed=seed) for seed in range(2)]
    runtime = Runtime(model, RuntimeSettings(precision="fp8", fp8_min_cosine=0.98), calibration=observations)
    chunk = runtime.act(observations[0], noise=toy_noise())
    # E4M3 has three bits after the point: rounding shows, and no more than rounding.
    assert 1e-3 < largest_difference(chunk, model.act(observations[0], noise=toy_noise())) < 0.3
    with pytest.raises(RuntimeUnsupported, match="FP8 changes the actions"):
        Runtime(model, RuntimeSettings(precision="fp8", fp8_min_cosine=0.9999999), calibration=observations)
    with pytest.raises(RuntimeUnsupported, match="calibration"):
        Runtime(model, RuntimeSettings(precision="fp8"))
