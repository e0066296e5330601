"""What a policy's latency costs in closed loop, for each way of executing its chunks. MetaWorld, in simulated time.

The policy's answer is used a fixed number of control ticks after its observation (0 to 2 chunk lengths), while the
world goes on. Four executors, all asking for the next chunk after half of one:

  synchronous           waits for each chunk and holds meanwhile
  asynchronous          goes on with the old chunk, enters the new one at the action whose time it is
  temporal_ensembling   the same, and averages all chunks that speak of a time; asks after a quarter of a chunk
  real_time_chunking    the same as asynchronous, each chunk in-painted onto the one under way

Success is counted at the time limit and at half of it: in a world that waits, latency costs time first. Jerk is that of
the hand, from its measured positions.

    python benchmarks/reaction.py [--policy outputs/demo] [--episodes 10] [--latencies 0 0.25 0.5 1 2] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _simulated_time as simulated
import numpy as np

from wamkit.cli.demo import MAX_STEPS, TASKS
from wamkit.envs.metaworld import MetaWorldEnvironment
from wamkit.evaluation.detection import mean_interval
from wamkit.evaluation.provenance import checkpoint_record, collect
from wamkit.evaluation.results import write_json
from wamkit.evaluation.statistics import compare, success_rate
from wamkit.inference.execution import EXECUTORS, Executor, Hold
from wamkit.inference.policy import checkpoint_folder

REFERENCE = 0.5
"""Latency, in chunks, at which the executors are compared."""
FIRST_TRIAL = 400
"""Not the trials of the demo's own evaluation, on which its settings were chosen."""


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--policy", type=Path, default=Path("outputs/demo"), help="a checkpoint of the demo's recipe")
    flags.add_argument("--tasks", nargs="+", default=list(TASKS))
    flags.add_argument("--executors", nargs="+", default=list(EXECUTORS), choices=list(EXECUTORS))
    flags.add_argument(
        "--latencies", type=float, nargs="+", default=[0.0, 0.25, 0.5, 1.0, 2.0], help="in chunk lengths"
    )
    flags.add_argument("--episodes", type=int, default=10, help="unseen initial states, for each task and cell")
    flags.add_argument("--max_steps", type=int, default=MAX_STEPS)
    flags.add_argument("--seed", type=int, default=0, help="of the policy's noise")
    flags.add_argument("--output_dir", type=Path, default=Path("outputs/reaction"))
    flags.add_argument("--toy", action="store_true", help="one short episode a cell: shows that it runs, nothing else")
    flags.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return flags


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; ``--toy`` sets what was not asked for otherwise."""
    flags = parser()
    if flags.parse_known_args(arguments)[0].toy:
        flags.set_defaults(episodes=1, max_steps=24, tasks=list(TASKS[:1]), latencies=[0.0, 0.5])
    return flags.parse_args(arguments)


def make_executor(name: str, hold: Hold, chunk: int) -> Executor:
    """Each asks for the next chunk after half of one; ensembling, which needs several at once, after a quarter."""
    steps = max(1, chunk // 4 if name == "temporal_ensembling" else chunk // 2)
    return EXECUTORS[name](hold, steps)


def arm_name(executor: str, latency: float) -> str:
    return f"{executor}@{latency:g}"


def jerk(positions: np.ndarray, rate_hz: float) -> float:
    """Mean size of the third derivative of a path [T, 3], m/s^3; 0 where it has no three steps."""
    third = np.diff(positions, n=3, axis=0)
    return float(np.linalg.norm(third, axis=1).mean() * rate_hz**3) if len(third) else 0.0


def episode(
    env: MetaWorldEnvironment, key: simulated.Key, executor: Executor, latency: int, seed: int
) -> simulated.Episode:
    """One episode; ``latency`` in ticks."""
    _, task, trial = key
    positions = [env.reset_trial(trial, render=False)["observation.state"][:3]]
    under_way = None
    success = truncated = False
    while not (success or truncated):
        if under_way is not None and executor.tick - under_way[0].tick >= latency:
            executor.receive(*under_way)
            under_way = None
        request = executor.request()
        if request is not None:
            kind = "inpaint" if executor.inpaints else "act"
            number = simulated.policy_seed(seed, task, trial, request.number)
            chunk = yield simulated.Ask(kind, env.observe(), number, request)
            if latency == 0:
                executor.receive(request, chunk)
            else:
                under_way = (request, chunk)
        _, success, truncated = env.step_action(executor.step().action, render=False)
        positions.append(env.observe(images=False)["observation.state"][:3])
    counts = executor.counts
    return {
        "seed": seed,
        "success": success,
        "steps": executor.tick,
        "jerk": round(jerk(np.array(positions, np.float64), env.description.rate_hz), 3),
        "requests": counts.requests,
        "held": counts.held,
        "stale": counts.stale,
    }


def cell(episodes: Sequence[dict[str, Any]], deadlines: Sequence[int], rate_hz: float) -> dict[str, Any]:
    """One executor at one latency."""
    tasks = sorted({e["task"] for e in episodes})
    solved = [e["steps"] / rate_hz for e in episodes if e["success"]]
    return {
        "success": {
            str(limit): success_rate(e["success"] and e["steps"] <= limit for e in episodes).to_json()
            for limit in deadlines
        },
        "tasks": {task: success_rate(e["success"] for e in episodes if e["task"] == task).to_json() for task in tasks},
        "seconds_to_success": mean_interval(solved) if solved else None,
        "jerk": mean_interval([e["jerk"] for e in episodes]),
        "held_share": sum(e["held"] for e in episodes) / sum(e["steps"] for e in episodes),
        "stale_actions": mean_interval([float(e["stale"]) for e in episodes]),
        "requests": mean_interval([float(e["requests"]) for e in episodes]),
    }


def comparisons(episodes: Sequence[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """At the reference latency: in-painting against each other executor, and each executor against itself at none."""
    named = [*options.executors]
    pairs = [
        (arm_name("real_time_chunking", REFERENCE), arm_name(other, REFERENCE))
        for other in named
        if other != "real_time_chunking" and "real_time_chunking" in named
    ]
    pairs += [(arm_name(name, REFERENCE), arm_name(name, 0.0)) for name in named]
    if not {0.0, REFERENCE} <= set(options.latencies):
        return []
    lines = []
    for limit in (options.max_steps, options.max_steps // 2):
        within = [e | {"success": e["success"] and e["steps"] <= limit} for e in episodes]
        lines += [compare(within, *pair).to_json() | {"deadline_steps": limit} for pair in pairs]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    policy = simulated.load_policy(options.policy, toy=options.toy)
    body = policy.body()
    chunk = round(policy.contract.horizon_s * body.rate_hz)
    ticks = {latency: round(latency * chunk) for latency in options.latencies}
    arms = {arm_name(name, latency): (name, ticks[latency]) for latency in ticks for name in options.executors}
    # Trial by trial, so that a run that is stopped has as many episodes of each cell.
    trials = range(FIRST_TRIAL, FIRST_TRIAL + options.episodes)
    keys = [(arm, task, trial) for trial in trials for task in options.tasks for arm in arms]
    real = options.policy.exists()
    checkpoint = checkpoint_folder(options.policy) if real else None
    settings = {
        "checkpoint": checkpoint_record(checkpoint)["sha256"] if checkpoint else "random weights",
        "max_steps": options.max_steps,
        "seed": options.seed,
    }
    log = simulated.EpisodeLog(options.output_dir / "episodes.jsonl", settings)

    def begin(env: MetaWorldEnvironment, key: simulated.Key) -> simulated.Episode:
        name, latency = arms[key[0]]
        executor = make_executor(name, simulated.hold_of(env.description), chunk)
        return episode(env, key, executor, latency, options.seed)

    run = partial(simulated.run, policy, max_steps=options.max_steps, title="reaction")
    episodes = run(keys, begin, log)
    deadlines = (options.max_steps, options.max_steps // 2)
    result = {
        "benchmark": "reaction",
        "toy": options.toy,
        "chunk": chunk,
        "rate_hz": body.rate_hz,
        "deadlines_steps": list(deadlines),
        "cells": [
            {"executor": name, "latency_chunks": latency, "latency_ticks": ticks[latency]}
            | cell([e for e in episodes if e["arm"] == arm_name(name, latency)], deadlines, body.rate_hz)
            for name in options.executors
            for latency in options.latencies
        ],
        "comparisons": comparisons(episodes, options),
        "provenance": collect(
            checkpoint=checkpoint,
            config={k: v for k, v in vars(options).items() if k not in ("output_dir", "json", "policy")},
            seeds=[options.seed],
        ),
    }
    path = write_json(options.output_dir / "result.json", result)
    for row in result["cells"]:
        shown = [f"{100 * row['success'][str(limit)]['rate']:3.0f} %" for limit in deadlines]
        print(
            f"{row['executor']:20s} {row['latency_chunks']:4.2f} chunks: success {' / '.join(shown)} within "
            f"{deadlines[0]} / {deadlines[1]} steps, jerk {row['jerk']['mean']:.1f} m/s^3, "
            f"held {100 * row['held_share']:.0f} %"
        )
    print(path)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
