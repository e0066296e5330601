"""Closed-loop episodes in simulated time: latency is a number of control ticks, not what this machine takes.

An episode is a generator: it steps its environment, yields an `Ask` whenever its policy would start thinking, is sent
the answer, and uses it as many ticks later as the latency says. Many episodes run side by side, so that one call of the
policy answers many of them. Finished episodes are appended to a file at once; the same command goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from wamkit.cli.progress import progress_bar
from wamkit.data.contract_terms import BodyContract, Contract
from wamkit.data.normalize import Normalizer
from wamkit.envs.base import EnvSpec, trial_seed
from wamkit.envs.metaworld import MetaWorldEnvironment
from wamkit.errors import WamkitError
from wamkit.inference.execution import Hold, Request
from wamkit.inference.monitor import imagined_of
from wamkit.inference.policy import Policy, load
from wamkit.models.registry import build

AT_ONCE = 8
"""Episodes side by side."""


@dataclass(frozen=True)
class Ask:
    """A call of the policy, for one episode."""

    kind: Literal["act", "inpaint", "imagine"]
    observation: Mapping[str, Any]
    seed: int = 0
    request: Request | None = None


Episode = Generator[Ask, Any, dict[str, Any]]
Key = tuple[str, str, int]
"""Arm, task, trial."""


def answers(policy: Policy, asks: Sequence[Ask]) -> list[Any]:
    """Asks of one kind in one call: chunks [K, A], or what is imagined."""
    observations = [dict(ask.observation) for ask in asks]
    if asks[0].kind == "imagine":
        return imagined_of(policy.imagine(observations))
    seeds = [ask.seed for ask in asks]
    if asks[0].kind == "act":
        return list(policy.act_batch(observations, seeds=seeds))
    requests = [ask.request for ask in asks]
    previous, delays = [r and r.previous for r in requests], [r.delay if r else 0 for r in requests]
    return list(policy.inpaint_batch(observations, previous, delays, seeds=seeds))


def policy_seed(seed: int, task: str, trial: int, number: int) -> int:
    """Of the noise of one chunk: the same for all arms of a trial."""
    return trial_seed("policy", seed, task, trial, number) >> 1


def hold_of(spec: EnvSpec) -> Hold:
    """Displacements of zero; the gripper goes on as it did."""
    keep = tuple(index for index, name in enumerate(spec.action_names) if "gripper" in name)
    return Hold((0.0,) * len(spec.action_names), keep)


class EpisodeLog:
    """Finished episodes on disk, one JSON object a line; the first line says under which settings."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.done = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        same = json.loads(json.dumps(settings))
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # a kill can cut the last one
        if whole and json.loads(whole[0]) != same:
            raise WamkitError(
                f"{path} was begun with other settings or another checkpoint: choose another --output_dir."
            )
        path.write_text("".join(whole or [json.dumps(same) + "\n"]))
        for line in whole[1:]:
            episode = json.loads(line)
            self.done[episode["arm"], episode["task"], episode["trial"]] = episode

    def append(self, episode: dict[str, Any]) -> None:
        self.done[episode["arm"], episode["task"], episode["trial"]] = episode
        with self.path.open("a") as file:
            file.write(json.dumps(episode) + "\n")


class _Environments:
    """Environments by task, used again."""

    def __init__(self, policy: Policy, max_steps: int) -> None:
        self._make = lambda task: MetaWorldEnvironment(task, cameras=policy.cameras, max_steps=max_steps)
        self._free: dict[str, list[MetaWorldEnvironment]] = {}

    def take(self, task: str) -> MetaWorldEnvironment:
        free = self._free.setdefault(task, [])
        return free.pop() if free else self._make(task)

    def give_back(self, env: MetaWorldEnvironment) -> None:
        self._free[env.description.task].append(env)


def run(
    policy: Policy,
    keys: Sequence[Key],
    begin: Callable[[MetaWorldEnvironment, Key], Episode],
    log: EpisodeLog,
    *,
    max_steps: int,
    title: str,
) -> list[dict[str, Any]]:
    """Run what the log does not hold yet.

    Args:
        policy: Answers all asks.
        keys: The episodes, in the order in which they start.
        begin: Makes an episode; its result is merged with ``arm``, ``task`` and ``trial``.
        log: Where finished ones go.
        max_steps: Time limit of the environments.
        title: Of the progress bar.

    Returns:
        The episodes, as ``keys`` are ordered.
    """
    environments, live = _Environments(policy, max_steps), []
    todo = [key for key in keys if key not in log.done]
    todo.reverse()
    with progress_bar(title) as progress:
        while todo or live:
            while todo and len(live) < AT_ONCE:
                key = todo.pop()
                env = environments.take(key[1])
                _advance(live, (key, env, begin(env, key)), None, log, environments)
            # The kind that most of them wait for.
            kinds = [ask.kind for *_, ask in live]
            if not kinds:
                continue
            chosen = max(sorted(set(kinds)), key=kinds.count)
            batch = [entry for entry in live if entry[3].kind == chosen]
            live = [entry for entry in live if entry[3].kind != chosen]
            for (*episode, _), answer in zip(batch, answers(policy, [entry[3] for entry in batch]), strict=True):
                _advance(live, tuple(episode), answer, log, environments)
            progress(len(keys) - len(todo) - len(live), len(keys))
    return [log.done[key] for key in keys]


def _advance(live: list, entry: tuple, answer: Any, log: EpisodeLog, environments: _Environments) -> None:
    """Send an answer to an episode; it goes on living with its next ask, or is done."""
    key, env, episode = entry
    try:
        live.append((key, env, episode, episode.send(answer)))
    except StopIteration as ended:
        arm, task, trial = key
        log.append({"arm": arm, "task": task, "trial": trial, **ended.value})
        environments.give_back(env)


def load_policy(path: Path, *, toy: bool) -> Policy:
    """The checkpoint; where there is none, a toy run takes a model with random weights."""
    if toy and not path.exists():
        return random_policy()
    return load(path, device="cpu")


def random_policy() -> Policy:
    """LaWAM tiny as it is before training: it moves at random."""
    unit = {"mean": np.zeros(4), "std": np.ones(4)}
    normalizer = Normalizer({"metaworld": {"observation.state": unit, "action": unit}}, rates={"metaworld": 80.0})
    body = BodyContract(embodiment="metaworld", statistics="metaworld", rate_hz=80.0, cameras=())
    contract = Contract(cameras=(), resolution=(128, 128), resize="stretch", horizon_s=0.2, bodies=(body,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("lawam", "tiny")
    return Policy(model.eval(), normalizer, contract)
