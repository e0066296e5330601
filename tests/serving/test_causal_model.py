"""A real causal model behind the server: RepWAM, told over the wire what was seen and executed, as in the process."""

from __future__ import annotations

import numpy as np
import pytest
from fake_policy import running
from micro_causal import repwam

from wamkit.client import ChunkSource, PolicyClient
from wamkit.data.contract_terms import BodyContract, CameraContract, Contract, VectorContract
from wamkit.data.normalize import ACTION, Normalizer
from wamkit.inference.execution import Hold, Synchronous
from wamkit.inference.execution_loop import Blocking, ControlLoop
from wamkit.inference.execution_policy import PolicySource
from wamkit.inference.policy import Policy
from wamkit.inference.runtime import RuntimeSettings
from wamkit.serving.batching import Item
from wamkit.serving.served import ServedPolicy, SessionMemory

RATE, SIZE = 20.0, (16, 16)


def policy() -> Policy:
    model = repwam().eval()
    mean, std = np.array([0.5, -0.5]), np.array([0.1, 2.0])
    action = VectorContract(names=("x", "y"), mean=tuple(mean), std=tuple(std), low=(-9.0, -9.0), high=(9.0, 9.0))
    camera = CameraContract(name="front", recorded_as="front", size=SIZE)
    body = BodyContract(embodiment="custom", statistics="custom", rate_hz=RATE, cameras=(camera,), action=action)
    contract = Contract(
        cameras=(("front", SIZE),),
        resolution=SIZE,
        resize="stretch",
        horizon_s=float(model.config.horizon_s),
        bodies=(body,),
    )
    return Policy(model, Normalizer({"custom": {ACTION: {"mean": mean, "std": std}}}), contract, precision="fp32")


class SameNoise(ChunkSource):
    def __call__(self, observation):
        return self._asked(observation, seed=7)


class SameNoiseHere(PolicySource):
    def _next_seed(self) -> int:
        return 7


def seen(tick: int, robot: int) -> dict:
    rng = np.random.default_rng([tick, robot])
    return {
        "observation.images.front": rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        "task": ("open the door", "go")[robot],
    }


def test_two_robots_of_one_served_model_go_on_from_their_own_pasts():
    hold = Hold((0.0, 0.0))
    with running(ServedPolicy(policy())) as server:
        clients = [PolicyClient(server.address, timeout_s=60.0) for _ in range(2)]
        assert clients[0].metadata["takes"] == ["executed", "observed"]
        assert clients[0].metadata["picture_interval_s"] == pytest.approx(0.05)
        assert clients[0].chunk_source().look_interval_s == pytest.approx(0.2)
        sources = [SameNoise(client) for client in clients] + [SameNoiseHere(policy()) for _ in range(2)]
        loops = [ControlLoop(s, Synchronous(hold, 4), rate_hz=RATE, thinking=Blocking()) for s in sources]
        done: list[list[np.ndarray]] = [[] for _ in loops]
        for loop in loops:
            loop.reset()
        for tick in range(12):
            for number, loop in enumerate(loops):
                robot = number % 2
                action = loop.act(lambda tick=tick, robot=robot: seen(tick, robot))
                if robot:  # what is executed is not what was planned
                    action = action * np.float32(0.5)
                    loop.executed(action)
                done[number].append(action)
        for client in clients:
            client.close()
    for robot in (0, 1):
        np.testing.assert_allclose(done[robot], done[robot + 2], rtol=1e-4, atol=1e-5)
    forgetful = SameNoiseHere(policy())
    fresh = forgetful(seen(8, 0))[:4]
    assert np.abs(np.array(done[0][8:12]) - fresh).max() > 1e-3, "its past changes what it does"


def test_a_plan_is_gone_on_from_within_an_episode():
    served = ServedPolicy(policy())
    memory = SessionMemory()
    (first,) = served.act([Item(observation=seen(0, 0), seed=7, memory=memory)])
    assert served.metadata()["chunk"]["inpaints"] is True
    done, plan = first[:4], first[4:]
    pictures = [seen(tick, 0) for tick in (1, 2, 3)]
    told = dict(executed=done, observed=pictures, previous=plan, delay=2)
    (second,) = served.act([Item(observation=seen(4, 0), seed=7, memory=memory, **told)])
    np.testing.assert_array_equal(second[:2], plan[:2])
    assert memory.held.rows[0].frames == 2


def test_a_runtime_is_warmed_up_for_all_that_episodes_grow_into():
    served = ServedPolicy(policy())
    warmed: list[int] = []

    class Counting:
        settings = RuntimeSettings(batch_sizes=(1, 2, 4))

        def warm_up(self, observations) -> None:
            warmed.extend(observation.batch_size for observation in observations)

        def act(self, observation, *, noise=None):
            return served._policy.model.act(observation, noise=noise)

        def reports(self) -> list:
            return warmed

    served._policy.runtime = Counting()
    assert served.warm_up(2) == 2
    assert warmed == [1, 2]
