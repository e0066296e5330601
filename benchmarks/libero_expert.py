"""How often LIBERO's scripted expert succeeds, task by task, on LIBERO's own initial states. Physics only, no pictures.

The expert was tuned on trials of the split ``train``, which are drawn by LIBERO's samplers; what is counted here are
trials 0, 1, ... of ``eval``, LIBERO's fixed states, none of which it was tuned on.

    python benchmarks/libero_expert.py --output_dir outputs/libero_expert [--tasks libero_object,libero_spatial]
        [--n 20] [--workers 1] [--toy] [--json]

An interrupted run goes on where it stopped; finished episodes are kept in ``--output_dir``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from wamkit.envs.registry import expand_tasks, instruction
from wamkit.evaluation.arms import ExpertArm
from wamkit.evaluation.provenance import collect
from wamkit.evaluation.results import build_eval
from wamkit.evaluation.rollout import RolloutSettings, rollout
from wamkit.evaluation.workers import EnvFactory


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tasks", default="libero_object,libero_spatial")
    parser.add_argument("--n", type=int, default=20, help="initial states of each task")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timeout_s", type=float, default=600.0, help="an episode that takes longer is run again")
    parser.add_argument("--toy", action="store_true", help="one task, one short episode: no result")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON, the last")
    arguments = parser.parse_args(argv)
    tasks = expand_tasks("libero", tuple(arguments.tasks.split(",")))
    options: dict[str, int] = {"resolution": 16}
    if arguments.toy:
        tasks, arguments.n = tasks[:1], 1
        options["max_steps"] = 5

    settings = RolloutSettings(
        n_episodes=arguments.n,
        workers=arguments.workers,
        batch_size=arguments.workers,
        timeout_s=arguments.timeout_s,
        startup_s=arguments.timeout_s,
    )

    def told(done: int, total: int, note: str = "") -> None:
        print(f"{done}/{total} {note}", flush=True)

    episodes = rollout(
        [ExpertArm()],
        tasks,
        EnvFactory("libero", options),
        arguments.output_dir,
        settings,
        resume=(arguments.output_dir / "episodes.jsonl").exists(),
        progress=told,
    )
    instructions = {task: instruction("libero", task) for task in tasks}
    extra = {"benchmark": "libero_expert", "instructions": instructions, "toy": arguments.toy}
    result = build_eval(episodes, collect(), **extra)
    for task, rate in result["arms"]["expert"]["tasks"].items():
        low, high = rate["ci95"]
        steps = [episode["steps"] for episode in episodes if episode["task"] == task and episode["success"]]
        mean = f"{sum(steps) / len(steps):.0f} steps" if steps else "-"
        print(f"{task}  {rate['successes']}/{rate['n']}  [{100 * low:.0f}, {100 * high:.0f}]  {mean}")
    print(*result.get("notes", ()), sep="\n")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
