"""What a policy imagined while it acted comes with the chunk: the same future, and no second pass of the trunk."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from micro_policy import HORIZON, micro_policy, seen
from torch.utils._python_dispatch import TorchDispatchMode

from wamkit.inference.execution import Hold, Synchronous
from wamkit.inference.execution_loop import Blocking, ControlLoop
from wamkit.inference.execution_policy import policy_source
from wamkit.inference.monitor import Calibration, Monitor, MonitorError, PolicyImagination, Scale, imagined_of
from wamkit.inference.monitor_response import MonitoredLoop, Stop


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
