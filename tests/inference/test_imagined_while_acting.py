"""What a policy imagined while it acted comes with the chunk: the same future, and no second pass of the trunk."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from micro_policy import HORIZON, micro_policy, seen
from torch.utils._python_dispatch import TorchDispatchMode

from wamkit.inference.monitor import PolicyImagination, imagined_of


class Products(TorchDispatchMode):
    """Counts matrix products: what a pass costs, whoever calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm")
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
