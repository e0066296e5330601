from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wamkit.evaluation.arms import (
    BlindArm,
    EvaluationError,
    ExpertArm,
    NoOpArm,
    PolicyArm,
    RandomArm,
    SwappedInstructionArm,
)
from wamkit.evaluation.episode_video import VideoSettings
from wamkit.evaluation.rollout import FORWARD_SIZE, RolloutSettings, rollout

# Worker processes must find the fake world too: they inherit this path.
sys.path.insert(0, str(Path(__file__).parent))
from fake_world import FakeFactory
from micro_policy import micro_policy

TASKS = ("line-a", "line-b")


class NumpyPolicy:
    """Moves by what it sees and by noise from the seed alone; each sample apart."""

    def __init__(self, chunk: int = 4) -> None:
        self.chunk, self.batches, self.seen, self.resets = chunk, [], [], 0

    def reset(self):
        self.resets += 1

    def act_batch(self, observations, *, seeds):
        self.batches.append(len(observations))
        assert len({observation["task"] for observation in observations}) == 1
        self.seen += observations
        chunks = []
        for observation, seed in zip(observations, seeds, strict=True):
            noise = np.random.default_rng(seed).normal(0, 0.05, (self.chunk, 1))
            sight = observation["observation.images.front"].mean() / 255
            chunks.append((0.02 + 0.08 * sight * (len(observation["task"]) % 2 == 0) + noise).astype(np.float32))
        return np.stack(chunks)


def without_time(episodes):
    return [{key: value for key, value in episode.items() if key != "seconds"} for episode in episodes]


def run(folder, arms=None, *, factory=None, **settings):
    policy = NumpyPolicy()
    values = {"n_episodes": 4, "workers": 2, "batch_size": 3, "n_action_steps": 3, "timeout_s": 20, **settings}
    arms = arms if arms is not None else [PolicyArm(policy)]
    return rollout(arms, TASKS, factory or FakeFactory(), folder, RolloutSettings(**values))


def test_neither_workers_nor_batch_nor_order_change_a_result(tmp_path):
    def arms():
        policy = NumpyPolicy()
        told = {task: f"go along {task}s" for task in TASKS}
        return [
            NoOpArm(),
            PolicyArm(policy),
            RandomArm(),
            BlindArm(policy),
            SwappedInstructionArm(policy, told),
            ExpertArm(),
        ]

    few = run(tmp_path / "few", arms(), workers=1, batch_size=1)
    many = run(tmp_path / "many", arms(), workers=2, batch_size=7)
    assert without_time(few) == without_time(many)
    assert [(e["arm"], e["task"], e["trial"]) for e in few] == [
        (arm.name, task, trial) for arm in arms() for task in TASKS for trial in range(4)
    ]
    rates = {arm.name: np.mean([e["success"] for e in few if e["arm"] == arm.name]) for arm in arms()}
    assert rates["expert"] == 1
    assert rates["no_op"] == 0
    assert few[0].keys() == {"arm", "task", "trial", "seed", "success", "steps", "seconds", "retries"}
    policy_episode = next(e for e in few if e["arm"] == "policy")
    assert policy_episode["replans"] == -(-policy_episode["steps"] // 3)
    assert len(policy_episode["path"]) == 1 + policy_episode["steps"] // 2  # 10 Hz world, traced at 5 Hz
    assert [e["told_task"] for e in few if e["arm"] == "swapped_instruction"] == ["line-b"] * 4 + ["line-a"] * 4
    # Another seed is another noise, the same initial states.
    other = run(tmp_path / "other", [PolicyArm(NumpyPolicy())], seed=1)
    assert [e["path"][0] for e in other] == [e["path"][0] for e in few if e["arm"] == "policy"]
    assert [e["path"] for e in other] != [e["path"] for e in few if e["arm"] == "policy"]


def test_a_policy_always_computes_the_same_shape(tmp_path):
    for forward_size, batch_size in ((None, 1), (None, 8), (3, 2), (1, 7)):
        policy = NumpyPolicy()
        settings = {"forward_size": forward_size, "batch_size": batch_size}
        run(tmp_path / f"{forward_size}_{batch_size}", [PolicyArm(policy), BlindArm(policy)], n_episodes=3, **settings)
        assert set(policy.batches) == {forward_size or FORWARD_SIZE}
    with pytest.raises(EvaluationError, match="batches of at least one"):
        run(tmp_path / "none", forward_size=-1)


def test_another_size_of_the_forward_pass_is_another_evaluation(tmp_path):
    run(tmp_path, n_episodes=1)
    settings = RolloutSettings(n_episodes=1, n_action_steps=3, forward_size=2)
    with pytest.raises(EvaluationError, match="policy's forward_size=4, not 2"):
        rollout([PolicyArm(NumpyPolicy())], TASKS, FakeFactory(), tmp_path, settings, resume=True)


def test_an_evaluation_that_recorded_one_size_for_all_arms_goes_on(tmp_path):
    whole = run(tmp_path / "whole", [NoOpArm(), PolicyArm(NumpyPolicy())], n_episodes=2)
    log = tmp_path / "begun" / "episodes.jsonl"
    log.parent.mkdir()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "episodes.jsonl").read_text().splitlines()]
    assert lines[0]["forward_size"] == {"policy": FORWARD_SIZE}
    log.write_text(
        "".join(json.dumps(line) + "\n" for line in [lines[0] | {"forward_size": FORWARD_SIZE}, *lines[1:3]])
    )

    def resume(**changes):
        settings = RolloutSettings(n_episodes=2, n_action_steps=3, workers=1, timeout_s=20, **changes)
        arms = [NoOpArm(), PolicyArm(NumpyPolicy())]
        return rollout(arms, TASKS, FakeFactory(), log.parent, settings, resume=True)

    with pytest.raises(EvaluationError, match="policy's forward_size=4, not 2"):
        resume(forward_size=2)
    assert without_time(resume()) == without_time(whole)
    assert json.loads(log.read_text().splitlines()[0])["forward_size"]["policy"] == FORWARD_SIZE


class Kept:
    """A policy, and the bytes of each chunk that it gave by what it was for."""

    def __init__(self, policy) -> None:
        self.policy, self.chunks, self.batches = policy, {}, []

    def reset(self):
        self.policy.reset()

    def act_batch(self, observations, *, seeds):
        chunks = self.policy.act_batch(observations, seeds=seeds)
        self.batches.append(len({*seeds}))
        for observation, seed, chunk in zip(observations, seeds, chunks, strict=True):
            sight = observation["observation.images.front"].tobytes()
            assert self.chunks.setdefault((seed, sight), chunk.tobytes()) == chunk.tobytes()
        return chunks


def test_a_lawams_chunks_are_equal_to_the_bit_whoever_acts_together(tmp_path):
    def evaluated(name, **settings):
        kept = Kept(micro_policy(10.0, scale=0.01, action_dim=1))
        values = {"n_episodes": 3, "n_action_steps": 2, "timeout_s": 60, **settings}
        arms, factory = [PolicyArm(kept), BlindArm(kept)], FakeFactory(max_steps=7)
        # Instructions of different length: the shorter ones must not be padded to the others'.
        episodes = rollout(arms, ("line", "line-far-away"), factory, tmp_path / name, RolloutSettings(**values))
        return kept, without_time(episodes)

    alone, few = evaluated("alone", workers=1, batch_size=1)
    together, many = evaluated("together", workers=2, batch_size=6)
    assert set(alone.batches) == {1}
    assert max(together.batches) > 1
    assert alone.chunks == together.chunks
    assert few == many
    assert len(set(alone.chunks.values())) == len(alone.chunks) > 20


def test_what_each_arm_shows_to_the_policy(tmp_path):
    policy = NumpyPolicy()
    run(tmp_path, [BlindArm(policy)], n_episodes=1)
    assert policy.resets == 1
    for observation in policy.seen:
        assert set(observation) == {
            "observation.images.front",
            "observation.images.side",
            "observation.state",
            "task",
        }
        assert (observation["observation.images.front"] == 128).all()
        assert observation["observation.images.side"].shape == (6, 8, 3)
    seeing = NumpyPolicy()
    run(tmp_path / "seeing", [PolicyArm(seeing)], n_episodes=2, batch_size=4)
    for observation in seeing.seen:
        level = int(np.clip((observation["observation.state"][0] + 1) * 100, 0, 255))
        assert abs(int(observation["observation.images.front"][0, 0, 0]) - level) <= 1
        assert abs(int(observation["observation.images.side"][5, 7, 2]) - (255 - level)) <= 1
    assert max(seeing.batches) > 1


@pytest.mark.parametrize(("kind", "timeout_s"), [("hang", 4), ("exit", 20), ("raise", 20)])
def test_a_broken_simulator_is_replaced_and_its_episode_retried(tmp_path, kind, timeout_s):
    good = run(tmp_path / "good")
    factory = FakeFactory(folder=str(tmp_path), faults=(("line-a", 2, 5, kind, 1),))
    bad = run(tmp_path / "bad", factory=factory, timeout_s=timeout_s)
    retries = {(e["task"], e["trial"]): e.pop("retries") for e in bad}
    assert retries["line-a", 2] == 1
    assert sum(retries.values()) <= 3  # those that shared the process at most
    for episode in good:
        episode.pop("retries")
    assert without_time(good) == without_time(bad)


def test_an_episode_that_always_breaks_stops_the_evaluation_and_keeps_the_others(tmp_path):
    factory = FakeFactory(folder=str(tmp_path), faults=(("line-b", 3, 2, "exit", 99),))
    with pytest.raises(
        EvaluationError, match=r"policy on line-b, trial 3: its simulator died \(exit code 7\), 2 times"
    ):
        run(tmp_path / "out", factory=factory, max_retries=1)
    kept = (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()
    assert len(kept) > 4


def test_bad_actions_are_told_at_once(tmp_path):
    class Nan(NumpyPolicy):
        def act_batch(self, observations, *, seeds):
            return super().act_batch(observations, seeds=seeds) * np.nan

    class Wide(NumpyPolicy):
        def act_batch(self, observations, *, seeds):
            return np.zeros((len(observations), 4, 7))

    with pytest.raises(EvaluationError, match=r"policy on line-a, trial 0: .* not finite"):
        run(tmp_path / "nan", [PolicyArm(Nan())], batch_size=1)
    with pytest.raises(EvaluationError, match=r"takes \[\d, K, 1\]"):
        run(tmp_path / "wide", [PolicyArm(Wide())], n_episodes=20)
    with pytest.raises(EvaluationError, match="execute 9 actions of a chunk of 4"):
        run(tmp_path / "long", n_action_steps=9)


def test_a_stopped_evaluation_resumes_to_the_same_result(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, total, note=""):
        if done == 5:
            raise Stop

    settings = RolloutSettings(n_episodes=4, workers=2, batch_size=3, n_action_steps=3)
    whole = rollout([PolicyArm(NumpyPolicy())], TASKS, FakeFactory(), tmp_path / "whole", settings)
    with pytest.raises(Stop):
        rollout([PolicyArm(NumpyPolicy())], TASKS, FakeFactory(), tmp_path / "half", settings, progress=stop)
    path = tmp_path / "half" / "episodes.jsonl"
    assert len(path.read_text().splitlines()) == 6  # five episodes under their settings
    with path.open("a") as file:
        file.write('{"arm": "policy", "task": "li')  # killed while it wrote
    with pytest.raises(EvaluationError, match="resume that evaluation"):
        rollout([PolicyArm(NumpyPolicy())], TASKS, FakeFactory(), tmp_path / "half", settings)
    with pytest.raises(EvaluationError, match="seed=0, not 3"):
        rollout(
            [PolicyArm(NumpyPolicy())],
            TASKS,
            FakeFactory(),
            tmp_path / "half",
            RolloutSettings(n_episodes=4, n_action_steps=3, seed=3),
            resume=True,
        )
    calls = []
    resumed = rollout(
        [PolicyArm(NumpyPolicy())],
        TASKS,
        FakeFactory(),
        tmp_path / "half",
        settings,
        resume=True,
        progress=lambda done, total, note="": calls.append((done, total)),
    )
    assert calls == [(6, 8), (7, 8), (8, 8)]
    assert without_time(resumed) == without_time(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    with pytest.raises(EvaluationError, match="arm policy="):
        rollout(
            [PolicyArm(NumpyPolicy(), identity="other")], TASKS, FakeFactory(), tmp_path / "half", settings, resume=True
        )


def test_chosen_episodes_are_filmed(tmp_path):
    import av

    episodes = rollout(
        [ExpertArm(), PolicyArm(NumpyPolicy())],
        TASKS,
        FakeFactory(),
        tmp_path,
        RolloutSettings(n_episodes=2, workers=1, batch_size=2),
        videos=VideoSettings(trials=1, arms=("expert",), every=2, resolution=32),
    )
    filmed = [e for e in episodes if "video" in e]
    assert [(e["arm"], e["trial"]) for e in filmed] == [("expert", 0)] * 2
    for episode in filmed:
        with av.open(str(tmp_path / episode["video"])) as container:
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert container.streams.video[0].average_rate == 5
        steps = episode["steps"]
        assert len(pictures) == 1 + steps // 2 + steps % 2
        assert pictures[0].shape == (32, 32, 3)
        assert pictures[-1].mean() > pictures[0].mean() + 30  # the point moved on


def test_failures_are_kept_whichever_trial(tmp_path):
    episodes = rollout(
        [ExpertArm(), NoOpArm()],
        TASKS,
        FakeFactory(),
        tmp_path,
        RolloutSettings(n_episodes=2, workers=1, batch_size=2),
        videos=VideoSettings(trials=0, failures_of=("expert", "no_op"), every=2, resolution=32),
    )
    filmed = {(e["arm"], e["task"], e["trial"]) for e in episodes if "video" in e}
    failed = {(e["arm"], e["task"], e["trial"]) for e in episodes if not e["success"]}
    assert filmed == failed
    assert {arm for arm, _, _ in failed} == {"no_op"}  # the expert succeeds, and its videos are gone
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == sorted(
        Path(e["video"]).name for e in episodes if "video" in e
    )


def test_arguments_that_cannot_be(tmp_path):
    with pytest.raises(EvaluationError, match="each arm once"):
        rollout([NoOpArm(), NoOpArm()], TASKS, FakeFactory(), tmp_path)
    with pytest.raises(EvaluationError, match="each task once"):
        rollout([NoOpArm()], (), FakeFactory(), tmp_path)
    with pytest.raises(EvaluationError, match="at least one episode"):
        rollout([NoOpArm()], TASKS, FakeFactory(), tmp_path, RolloutSettings(n_episodes=0))


def test_a_killed_evaluation_leaves_no_process_behind(tmp_path):
    script = f"""
import sys
import time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fake_world import FakeFactory
from wamkit.evaluation.arms import ExpertArm
from wamkit.evaluation.rollout import RolloutSettings, rollout

if __name__ == "__main__":
    factory = FakeFactory(folder={str(tmp_path)!r}, faults=(("line-a", 0, 0, "hang", 99),))
    rollout([ExpertArm()], "line-a", factory, {str(tmp_path / "out")!r}, RolloutSettings(workers=2))
"""
    path = tmp_path / "evaluate.py"
    path.write_text(script)
    main = subprocess.Popen([sys.executable, str(path)], start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "line-a_0_hang").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(main.pid, 0)  # the group is there
    main.kill()
    main.wait()
    while time.monotonic() < deadline:
        try:
            os.killpg(main.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        os.killpg(main.pid, signal.SIGKILL)
        pytest.fail("worker processes outlived the killed evaluation")
