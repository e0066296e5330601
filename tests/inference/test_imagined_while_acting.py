"""What a policy imagined while it acted comes with the chunk: the same future, and no second pass of the trunk."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from micro_policy import HORIZON, micro_policy, seen
from torch.utils._python_dispatch import TorchDispatchMode

from wamkit.inference.execution import Hold, Synchronous
from wamkit.inference.execution_loop import Blocking, ControlLoop
from wamkit.inference.execution_policy import policy_source
from wamkit.inference.monitor import Monitor, PolicyImagination, imagined_of
from wamkit.inference.monitor_calibration import Calibration, MonitorError, Scale
from wamkit.inference.monitor_response import MonitoredLoop, Stop
from wamkit.inference.runtime import RuntimeSettings


class Products(TorchDispatchMode):
    """Counts matrix products: what a pass costs, whoever calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("linear", "matmul", "mm", "addmm", "bmm")
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def policy():
    return micro_policy()


def calls(policy, run) -> tuple[Counter, int]:
    """How often trunk, encoder and LaWM run, and all matrix products."""
    counts: Counter = Counter()
    model = policy.model
    parts = {"trunk": model.vlm, "encoder": model.vision_encoder, "lawm": model.lam.decoder}
    hooks = [part.register_forward_hook(lambda *_, name=name: counts.update([name])) for name, part in parts.items()]
    with Products() as products:
        run()
    for hook in hooks:
        hook.remove()
    return counts, products.count


def test_the_future_that_comes_with_a_chunk_is_the_one_that_imagine_gives(policy):
    observations = [seen(0), seen(1, "close the drawer")]
    chunk = policy.act(observations, seeds=[1, 2])
    future = policy.imagine(observations)
    assert chunk.imagined is not None
    torch.testing.assert_close(chunk.imagined.values, future.values)
    torch.testing.assert_close(chunk.imagined.present, future.present)
    assert chunk.imagined.times.flatten().tolist() == pytest.approx([HORIZON] * 2)
    assert (chunk.imagined.values[0] - chunk.imagined.values[1]).abs().max() > 1e-3


def test_a_look_beside_a_chunk_costs_no_pass(policy):
    observation = seen()
    once = {"trunk": 1, "encoder": 1, "lawm": 1}
    alone, products = calls(policy, lambda: policy.act(observation, seeds=[0]))
    assert alone == once
    shared, shared_products = calls(policy, lambda: imagined_of(policy.act(observation, seeds=[0]).imagined))
    assert (shared, shared_products) == (once, products)
    apart, apart_products = calls(
        policy, lambda: (policy.act(observation, seeds=[0]), PolicyImagination(policy)(observation))
    )
    assert apart == dict.fromkeys(once, 2)
    assert apart_products > 1.3 * products, "otherwise the above counts nothing"


def test_a_model_without_a_subgoal_hands_out_none():
    policy = micro_policy(subgoal="none")
    assert policy.act(seen(), seeds=[0]).imagined is None


def test_a_watched_loop_needs_no_look_of_its_own(policy):
    """The same surprises as from looks of their own, at a pass of the trunk for each chunk and none beside."""
    periods, rate, steps = 33, 20.0, 4
    calibration = Calibration(Scale("copy_present", {"400": 1e-3}), 1e9, 0.05, memory=1, episodes=20)

    def surprises(imagination, every, keep: bool):
        source = policy_source(policy, keep_imagined=keep)
        loop = ControlLoop(source, Synchronous(Hold((0.0, 0.0)), steps), rate_hz=rate, thinking=Blocking())
        watched = MonitoredLoop(loop, imagination, Monitor(calibration), Stop(Hold((0.0, 0.0))), every=every)
        watched.reset()
        counts, _ = calls(policy, lambda: [watched.act(lambda tick=tick: seen(tick)) for tick in range(periods)])
        return watched.monitor.history, counts

    apart, passes_apart = surprises(PolicyImagination(policy), steps, keep=False)
    shared, passes = surprises(None, None, keep=True)
    assert passes == dict.fromkeys(("trunk", "encoder", "lawm"), 9)  # a chunk every fourth of 33 periods
    assert passes_apart["trunk"] == 18
    assert [s.at for s in shared] == [s.at for s in apart][: len(shared)]
    assert len(shared) == len(apart) - 1 == 6  # the last answer is compared in the period after it
    for one, other in zip(shared, apart, strict=False):
        assert one.error == pytest.approx(other.error, rel=1e-4)


def test_a_watched_loop_says_what_it_lacks(policy):
    calibration = Calibration(Scale("copy_present", {"400": 1e-3}), 1e9, 0.05, memory=1, episodes=20)
    hold = Hold((0.0, 0.0))

    def watched(source, imagination, every):
        loop = ControlLoop(source, Synchronous(hold, 4), rate_hz=20.0, thinking=Blocking())
        return MonitoredLoop(loop, imagination, Monitor(calibration), Stop(hold), every=every)

    with pytest.raises(MonitorError, match="keep_imagined=True"):
        watched(policy_source(policy), None, None)
    with pytest.raises(MonitorError, match="omit every="):
        watched(policy_source(policy, keep_imagined=True), None, 4)
    with pytest.raises(MonitorError, match="not every None"):
        watched(policy_source(policy), PolicyImagination(policy), None)


@pytest.fixture(scope="module")
def fast():
    return micro_policy(runtime=RuntimeSettings(precision="fp32", batch_sizes=(1, 2), text_tokens=(16,)))


def test_the_runtime_hands_out_what_it_imagined(policy, fast):
    """Equal to the plain path, for one sample, for a batch that is filled up and for one that runs in parts."""
    observations = [seen(index, f"open door {index}") for index in range(3)]
    plain = policy.act(observations, seeds=[1, 2, 3])
    quick = fast.act(observations, seeds=[1, 2, 3])
    assert torch.allclose(plain.actions, quick.actions, atol=1e-5)
    for field in ("values", "present", "latent_action", "times"):
        expected, imagined = getattr(plain.imagined, field), getattr(quick.imagined, field)
        assert imagined.shape == expected.shape
        assert (imagined - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert quick.imagined.space == plain.imagined.space
    assert (plain.imagined.values[0] - plain.imagined.values[1]).abs().max() > 1e-3


def test_under_the_runtime_a_look_beside_a_chunk_costs_no_pass(fast, monkeypatch):
    """No pass of the model, which it would take to imagine apart, and not one product more than acting takes."""
    observation = seen()
    fast.act(observation, seeds=[0])  # records
    source = policy_source(fast, keep_imagined=True)
    counts, products = calls(fast, lambda: fast.act(observation, seeds=[0]))
    assert counts == {}, "the runtime runs its recording, not the model"
    monkeypatch.setattr(fast, "imagine", lambda *_, **__: pytest.fail("a pass of its own"))
    for _ in range(2):
        watched, watched_products = calls(fast, lambda: source(observation))
        assert (watched, watched_products) == (counts, products)
    assert len(source.newly_imagined()) == 2
    assert products > 20, "otherwise the above counts nothing"


def test_the_runtimes_recording_grew_by_no_product_for_it(fast):
    """A model of the same shape that hands out nothing runs as many products."""
    silent = micro_policy(runtime=RuntimeSettings(precision="fp32", batch_sizes=(1,), text_tokens=(16,)))
    silent.model.expected = lambda intention: None
    assert silent.act(seen(), seeds=[0]).imagined is None
    fast.act(seen(), seeds=[0])
    _, without = calls(silent, lambda: silent.act(seen(), seeds=[0]))
    _, with_it = calls(fast, lambda: fast.act(seen(), seeds=[0]))
    assert with_it == without


def test_a_watched_loop_sees_the_same_through_the_runtime(policy, fast):
    calibration = Calibration(Scale("copy_present", {"400": 1e-3}), 1e9, 0.05, memory=1, episodes=20)
    found = []
    for which in (policy, fast):
        source = policy_source(which, keep_imagined=True)
        loop = ControlLoop(source, Synchronous(Hold((0.0, 0.0)), 4), rate_hz=20.0, thinking=Blocking())
        watched = MonitoredLoop(loop, None, Monitor(calibration), Stop(Hold((0.0, 0.0))))
        watched.reset()
        for tick in range(17):
            watched.act(lambda tick=tick: seen(tick))
        found.append([(s.at, s.error, s.change) for s in watched.monitor.history])
    assert len(found[0]) == 2
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
