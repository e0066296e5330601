"""In-painting of the causal models: the decoder agrees with a plan, and the episode goes on as if it had acted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from micro_causal import lingbot, repwam
from micro_weights import seeded

from wamkit.actions.flow_field import soft_mask
from wamkit.evaluation.latency_policy import unit_terms
from wamkit.inference.execution import ExecutionError, Hold, RealTimeChunking
from wamkit.inference.execution_loop import ControlLoop, InpaintingSource, Thinking
from wamkit.inference.execution_policy import policy_source
from wamkit.inference.policy import Policy
from wamkit.models.causal.config import CausalModelError
from wamkit.models.registry import model_class, model_names

MODELS = {
    "repwam_acts": lambda: repwam(mode="action_only"),
    "repwam_imagines": repwam,
    "lingbot_va": lingbot,
    "guided": lambda: repwam(mode="action_only", action_guidance=1.5),
    "shifted": lambda: repwam(mode="action_only", action_shift=0.2),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]().eval()


def test_models_that_denoise_actions_say_that_they_in_paint():
    can = {name for name in model_names() if model_class(name).capabilities.inpaints_actions}
    assert can >= {"repwam", "lingbot_va"}


def test_it_agrees_with_the_plan_as_far_as_it_weighs(model):
    observation = model.fake_sequence(1, seed=3).observation()
    noise = torch.randn(2, *model.action_noise_shape, generator=seeded())
    model.recall(None)
    reference = model.act(observation, noise=noise)
    own, kept = reference.actions, model.remember()
    known, weights = torch.where(reference.valid[..., None], own + 1.0, 9.0), torch.zeros_like(own)
    model.recall(None)
    free = model.inpaint(observation, known, weights, noise=noise)
    torch.testing.assert_close(free.actions, own, rtol=1e-5, atol=1e-5)
    assert torch.equal(free.times, reference.times)
    assert torch.equal(free.valid, reference.valid)
    # The episode has come to where acting would have brought it.
    for episode, other in zip(model.remember(), kept, strict=True):
        assert torch.equal(episode.rows[0].keys, other.rows[0].keys)
    # Half of the four actions, of the first sample alone.
    weights[0, :2] = 1.0
    model.recall(None)
    guided = model.inpaint(observation, known, weights, noise=noise).actions
    assert (guided - known)[0, :2].abs().mean() < 0.5 * (own - known)[0, :2].abs().mean()
    torch.testing.assert_close(guided[1], own[1], rtol=1e-5, atol=1e-5)
    assert torch.equal(guided[~reference.valid], torch.zeros_like(guided[~reference.valid]))


def test_the_overlap_is_drawn_the_less_the_less_it_weighs(model):
    observation = model.fake_sequence(1, seed=3).observation()
    noise = torch.randn(2, *model.action_noise_shape, generator=seeded())
    model.recall(None)
    own = model.act(observation, noise=noise).actions
    known = own + 1.0
    weights = soft_mask(4, 1, own.shape[1])[None, :, None].expand_as(own)
    model.recall(None)
    guided = model.inpaint(observation, known, weights, noise=noise).actions
    left = (guided - known).abs()[:, :4].mean(dim=(0, 2))
    assert left[0] < 0.5
    assert left[0] < left[3]


def test_it_follows_the_episode_like_an_act():
    model = MODELS["repwam_acts"]().eval()
    window = model.fake_sequence(2, seed=3)
    noise = torch.zeros(2, *model.action_noise_shape)
    nothing = torch.zeros(2, *model.action_noise_shape)

    def look(frame: int):
        seen = {camera: pictures[:, 4 * frame] for camera, pictures in window.frames.items()}
        return replace(window.observation(), images=seen)

    model.recall(None)
    model.inpaint(look(0), nothing, nothing, noise=noise)
    with pytest.raises(CausalModelError, match="nobody said what was executed"):
        model.inpaint(look(1), nothing, nothing, noise=noise)
    model.executed(window.actions[:, :2])
    model.observed({camera: pictures[:, 1:4] for camera, pictures in window.frames.items()})
    model.inpaint(look(1), nothing, nothing, noise=noise)
    assert [episode.rows[0].frames for episode in model.remember()] == [2, 2]


class Late(Thinking):
    """The answer is there so many control periods after the question."""

    def __init__(self, periods: int) -> None:
        self.periods, self.left = periods, 0
        self.answer: np.ndarray | None = None

    def begin(self, job: Callable[[], np.ndarray]) -> None:
        self.answer, self.left = job(), self.periods + 1

    def finished(self) -> np.ndarray | None:
        self.left -= 1
        if self.left > 0 or self.answer is None:
            return None
        answer, self.answer = self.answer, None
        return answer

    def forget(self) -> None:
        self.answer = None


HOLD = Hold((0.0,) * 5)


def a_policy() -> Policy:
    model = repwam(mode="action_only", pictures="held").eval()
    return Policy(model, *unit_terms(model), precision="fp32")


def seen(tick: int) -> dict[str, object]:
    picture = np.random.default_rng(tick).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return {"observation.images.front": picture, "task": "open the door"}


def test_real_time_chunking_of_a_causal_policy(monkeypatch):
    """It holds for one period at first, which brings the executor off the model's frames of two actions."""
    policy = a_policy()
    asked: list[tuple[np.ndarray, int, np.ndarray]] = []
    inpaint = policy.inpaint

    def watched(observations, previous, delays, **options):
        chunk = inpaint(observations, previous, delays, **options)
        asked.append((previous[0], delays[0], chunk.actions[0].numpy()))
        return chunk

    monkeypatch.setattr(policy, "inpaint", watched)
    source = policy_source(policy, seed=1)
    assert isinstance(source, InpaintingSource)
    assert source.look_interval_s == pytest.approx(0.2)
    loop = ControlLoop(source, RealTimeChunking(HOLD, 2), rate_hz=10.0, thinking=Late(1))
    loop.reset()
    actions = np.stack([loop.act(lambda tick=tick: seen(tick)) for tick in range(12)])
    assert loop.executor.counts.held == 1
    assert np.abs(actions[1:]).max() > 0
    assert len(asked) >= 3
    for previous, delay, chunk in asked:
        assert delay == 1
        np.testing.assert_array_equal(chunk[:delay], previous[:delay])
    # Asked at ticks 0, 4, 6, 8 and 10: five frames have passed since the first.
    (episode,) = policy.remember()
    assert episode.rows[0].frames == 6


def test_executors_that_ask_within_a_frame_are_refused():
    source = policy_source(a_policy())
    with pytest.raises(ExecutionError, match="every 2 actions and the executor asks after 3: .* a multiple of 2"):
        ControlLoop(source, RealTimeChunking(HOLD, 3), rate_hz=10.0)
    with pytest.raises(ExecutionError, match="no whole number of periods at 12 Hz"):
        ControlLoop(source, RealTimeChunking(HOLD, 3), rate_hz=12.0)
