"""How many MetaWorld pictures and physics steps a second this machine makes.

A picture is what an observation costs: the scene is updated, drawn at the asked size (not resized), read back and
turned upright. Physics steps run with random actions and without pictures. Both are measured in one process; pictures
also in one process a core at once, which is how recordings and evaluations draw.

    python benchmarks/render.py [--resolution 128] [--camera corner2] [--seconds 3] [--processes N] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from wamkit.envs.base import Environment
from wamkit.envs.registry import make_env
from wamkit.evaluation.provenance import collect


def rate(call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Calls per second, and per second of CPU time (what a machine busy with other work can still tell)."""
    for _ in range(5):
        call()
    calls, start, cpu = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        call()
        calls += 1
    return calls / elapsed, calls / (time.process_time() - cpu)


def physics_rate(env: Environment, seconds: float) -> float:
    rng = np.random.default_rng(0)
    env.reset_trial(0, render=False)

    def step() -> None:
        if env.step_action(rng.uniform(-1, 1, 4), render=False)[2]:
            env.reset_trial(0, render=False)

    return rate(step, seconds)[0]


def frames_rate(task: str, resolution: int, camera: str, seconds: float, ready, start) -> float:
    """Frames per second of one of several processes, which begin together."""
    env = make_env("metaworld", task, resolution=resolution, cameras=(camera,))
    env.reset_trial(0, render=False)
    env.render_frame()
    ready.put(task)
    start.wait()
    frames = rate(env.render_frame, seconds)[0]
    env.close()
    return frames


def _worker(answers, *arguments) -> None:
    answers.put(frames_rate(*arguments))


def together(task: str, options: argparse.Namespace) -> float:
    """Frames per second of the whole machine: the sum over processes that draw at the same time."""
    context = multiprocessing.get_context("spawn")
    answers, ready, start = context.Queue(), context.Queue(), context.Event()
    arguments = (answers, task, options.resolution, options.camera, options.seconds, ready, start)
    processes = [context.Process(target=_worker, args=arguments) for _ in range(options.processes)]
    for process in processes:
        process.start()
    for _ in processes:
        ready.get(timeout=120)
    start.set()
    total = sum(answers.get(timeout=60 + 10 * options.seconds) for _ in processes)
    for process in processes:
        process.join()
    return total


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["button-press-topdown-v3", "drawer-open-v3", "pick-place-v3"])
    parser.add_argument("--camera", default="corner2_near")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that draw at once; default one a core")
    parser.add_argument("--toy", action="store_true", help="one task for a moment: it runs, and no more")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(argv)
    if options.toy:
        options.tasks, options.resolution, options.seconds, options.processes = options.tasks[:1], 32, 0.01, 1

    rows, versions = {}, {}
    for task in options.tasks:
        env = make_env("metaworld", task, resolution=options.resolution, cameras=(options.camera,))
        env.reset_trial(0, render=False)
        frames, frames_cpu = rate(env.render_frame, options.seconds)
        rows[task] = {
            "frames_per_s": round(frames, 1),
            "frames_per_cpu_s": round(frames_cpu, 1),
            "steps_per_s": round(physics_rate(env, options.seconds), 1),
        }
        versions = dict(env.description.versions)
        env.close()
        rows[task]["machine_frames_per_s"] = round(together(task, options), 1)
        if not options.json:
            print(
                f"{task:28s} {rows[task]['frames_per_s']:7.1f} frames/s, {rows[task]['machine_frames_per_s']:7.1f} by "
                f"{options.processes} processes {rows[task]['steps_per_s']:9.1f} steps/s"
            )
    result = {
        "benchmark": "render",
        "toy": options.toy,
        "frames_per_s": min(row["frames_per_s"] for row in rows.values()),
        "frames_per_cpu_s": min(row["frames_per_cpu_s"] for row in rows.values()),
        "machine_frames_per_s": min(row["machine_frames_per_s"] for row in rows.values()),
        "processes": options.processes,
        "resolution": options.resolution,
        "camera": options.camera,
        "tasks": rows,
        "rendering": os.environ.get("MUJOCO_GL", ""),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": versions,
        "provenance": collect(options=vars(options)),
    }
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
