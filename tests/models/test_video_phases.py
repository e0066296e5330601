"""The phases of the video models: in every mode what `act` computes, and recordable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from micro_video import FAST, fast, light
from micro_weights import seeded

from wamkit.evaluation.latency_policy import observation_ring, unit_terms
from wamkit.inference.monitor import imagined_of, imagined_with
from wamkit.inference.policy import Policy
from wamkit.inference.runtime import Runtime, RuntimeSettings
from wamkit.inference.runtime_record import LINEAR
from wamkit.models.fast_wam import FastWAM
from wamkit.models.fast_wam.config import Mode

FEW_STEPS = replace(FAST.action, denoise_steps=2)


def of_mode(mode: Mode):
    return fast(mode=mode, action=FEW_STEPS).eval()


MODELS = {
    "light": lambda: light().eval(),
    "uncond": lambda: of_mode("uncond"),
    "joint": lambda: of_mode("joint"),
    "idm": lambda: of_mode("idm"),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def observation_and_noise(model, batch: int = 2, seed: int = 0):
    shape = model.action_noise_shape
    noise = None if shape is None else torch.randn(batch, *shape, generator=seeded(seed))
    return model.fake_window(batch, seed=seed).observation(), noise


@pytest.fixture(scope="module")
def runtime(model):
    return Runtime(model, RuntimeSettings(precision="fp32"))


def test_phases_say_what_act_does(model):
    observation, noise = observation_and_noise(model)
    for given in (observation, replace(observation, state=None)):
        reference = model.act(given, noise=noise)
        with torch.no_grad():
            chunk = model.phases().act(given, noise)
        torch.testing.assert_close(chunk.actions, reference.actions, rtol=1e-6, atol=1e-6)
        assert torch.equal(chunk.times, reference.times)
        assert torch.equal(chunk.valid, reference.valid)


def test_the_runtime_equals_the_plain_model(model, runtime):
    for seed in (0, 1):
        observation, noise = observation_and_noise(model, seed=seed)
        observation = replace(observation, task=("open it", f"close number {seed}"))
        chunk, reference = runtime.act(observation, noise=noise), model.act(observation, noise=noise)
        assert (chunk.actions - reference.actions).abs().max() <= 1e-5 * reference.actions.abs().max()
    assert len(runtime.reports()) == 1


def test_the_video_that_was_imagined_comes_with_the_chunk(model, runtime, monkeypatch):
    """In latents, the same through the runtime; as pictures without another pass of the video expert."""
    observation, noise = observation_and_noise(model)
    chunk, reference = runtime.act(observation, noise=noise), model.act(observation, noise=noise)
    if not isinstance(model, FastWAM) or model.config.mode == "uncond":
        assert chunk.imagined is reference.imagined is None
        return
    expected, imagined = reference.imagined, chunk.imagined
    for field in ("values", "present", "times"):
        torch.testing.assert_close(getattr(imagined, field), getattr(expected, field), rtol=1e-5, atol=1e-5)
    assert imagined.times[0].tolist() == pytest.approx([model.config.horizon_s])  # one latent frame of four pictures
    plain = model.imagine(observation)
    monkeypatch.setattr(model, "imagined_after", lambda *_, **__: pytest.fail("imagined once more"))
    monkeypatch.setattr(model.backbone, "forward", lambda *_, **__: pytest.fail("another pass"))
    pictures = model.decoded(imagined, observation)
    assert (pictures.space, pictures.values.shape) == (plain.space, plain.values.shape)
    assert torch.equal(pictures.times, plain.times)
    torch.testing.assert_close(pictures.present, plain.present)
    # Video never sees actions, and here acting takes as many steps as imagining: so they are the same.
    assert model.config.imagine_steps == FEW_STEPS.denoise_steps
    torch.testing.assert_close(pictures.values, plain.values, rtol=0.0, atol=1e-4)
    assert (plain.values - plain.present.unsqueeze(1)).abs().max() > 1e-2


def test_a_monitor_sees_the_pictures_of_what_came_with_the_chunk(monkeypatch):
    """From LeRobot's keys on: those that `imagine` gives, of one pass of imagination."""
    model = of_mode("idm")
    policy = Policy(model, *unit_terms(model), precision="fp32")
    (observation,) = observation_ring(policy, 1)
    (expected,) = imagined_of(policy.imagine(observation))
    imagine_after, passes = model.imagined_after, []
    monkeypatch.setattr(model, "imagined_after", lambda *given: passes.append(1) or imagine_after(*given))
    (seen,) = imagined_with(policy, policy.act(observation, seeds=[0]), [observation])
    assert len(passes) == 1
    for field in ("values", "present", "times"):
        np.testing.assert_allclose(getattr(seen, field), getattr(expected, field), atol=1e-4)


@pytest.mark.parametrize("name", ["light", "uncond"])
def test_bf16_stays_near_fp32(name):
    model = MODELS[name]()
    observation, noise = observation_and_noise(model, 1)
    chunk = Runtime(model, RuntimeSettings(precision="bf16")).act(observation, noise=noise)
    reference = model.act(observation, noise=noise)
    cosine = torch.nn.functional.cosine_similarity(chunk.actions.flatten(), reference.actions.flatten(), dim=0)
    assert cosine >= 0.999
    assert not torch.equal(chunk.actions, reference.actions)


def test_nothing_of_the_words_or_the_video_is_projected_in_the_loop():
    model = of_mode("uncond")
    observation, noise = observation_and_noise(model, 1)
    runtime = Runtime(model, RuntimeSettings(precision="fp32"))
    runtime.act(observation, noise=noise)
    _, loop = runtime.recordings(observation)
    steps, layers = FEW_STEPS.denoise_steps, FAST.video.layers
    # A layer: query-key-value, output, query to the words, output, two of the feed-forward. In and out at the ends.
    assert [node.target for node in loop.graph.nodes].count(LINEAR) == steps * (6 * layers + 2)


def test_an_instruction_is_encoded_once(monkeypatch):
    model = light().eval()
    phases, encoded = model.phases(), []
    encode = model.text._encode
    monkeypatch.setattr(model.text, "_encode", lambda prompts: encoded.append(list(prompts)) or encode(prompts))
    observation, _ = observation_and_noise(model)
    for task in (("a", "b"), ("a", "b"), ("b", "b")):
        first = phases.inputs(replace(observation, task=task))["words"]
        assert torch.equal(first, model.text(task, "cpu"))
    assert encoded == [["a", "b"]]
