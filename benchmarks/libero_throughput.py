"""Episodes per hour on LIBERO: ``wam eval`` and ``lerobot-eval`` with the same policy, one after the other.

Two demonstrations are recorded, a policy is trained on them for two steps a stage (it will succeed at nothing, so every
episode of both runs has the same length), and each command evaluates it on the same tasks, at the same resolution, with
the same number of actions executed of each chunk. Time is that of the whole command, imports included.

    python benchmarks/libero_throughput.py --output_dir outputs/libero [--tasks 0,1] [--n 10] [--batch_size 2]
        [--resolution 128] [--n_action_steps 8] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wamkit.envs.libero_assets import assets_folder, import_libero
from wamkit.evaluation.provenance import collect
from wamkit.evaluation.results import load_eval

SUITE = "libero_object"


def timed(command: list[str], **environment: str) -> float:
    """Seconds that a command takes; its output goes through."""
    print("$", " ".join(command), flush=True)
    start = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | environment)
    return time.perf_counter() - start


def home_with_assets(folder: Path) -> Path:
    """A home where LIBERO's package finds the meshes that wamkit uses, instead of downloading them."""
    place = folder / "home/.cache/libero"
    place.mkdir(parents=True)
    (place / "assets").symlink_to(assets_folder())
    return (folder / "home").resolve()


def wam(*words: str) -> list[str]:
    return [sys.executable, "-m", "wamkit.cli", *words]


def untrained_policy(folder: Path, resolution: int, episodes: int) -> Path:
    """A policy of the recipe ``light_wam_libero`` after two steps a stage on as many demonstrations."""
    from wamkit.recipes.light_wam_libero import light_wam_libero

    record = wam("record", "--env.type", "libero", "--env.task", f"{SUITE}_0", "--env.resolution", str(resolution))
    timed([*record, "--episodes", str(episodes), "--output_dir", str(folder / "data")])
    few = [
        word
        for stage in light_wam_libero().stages
        for flag, value in (("steps", "2"), ("warmup_steps", "0"), ("batch_size", "2"))
        for word in (f"--stages.{stage.name}.{flag}", value)
    ]
    train = wam("train", "light_wam_libero", "--dataset.roots", str(folder / "data"), "--dataset.holdout_episodes", "0")
    timed([*train, "--output_dir", str(folder / "run"), *few])
    return folder / "run/checkpoints/last/pretrained_model"


def measure(arguments: argparse.Namespace, policy: Path) -> dict[str, dict[str, Any]]:
    """Command -> seconds, episodes, and what each said of itself."""
    tasks, steps = [int(task) for task in arguments.tasks.split(",")], str(arguments.n_action_steps)
    ours, theirs = arguments.output_dir / "wam_eval", arguments.output_dir / "lerobot_eval"
    limit = ["--eval.max_steps", str(arguments.max_steps)] if arguments.max_steps else []
    their_limit = [f"--env.episode_length={arguments.max_steps}"] if arguments.max_steps else []
    runs: dict[str, dict[str, Any]] = {}
    command = wam("eval", "--policy.path", str(policy), "--env.type", "libero", "--output_dir", str(ours))
    command += ["--env.task", ",".join(f"{SUITE}_{task}" for task in tasks), "--eval.n_episodes", str(arguments.n)]
    command += ["--eval.arms", "policy", "--eval.videos", "0", "--eval.n_action_steps", steps, "--device", "cpu"]
    seconds = timed([*command, *limit, "--eval.batch_size", str(arguments.batch_size)])
    episodes = load_eval(ours / "eval.json")["episodes"]
    runs["wam eval"] = {
        "seconds": seconds,
        "episodes": len(episodes),
        "environment_steps": sum(episode["steps"] for episode in episodes),
        "successes": sum(episode["success"] for episode in episodes),
    }
    size = arguments.resolution
    command = ["lerobot-eval", f"--policy.path={policy}", "--policy.device=cpu", f"--policy.n_action_steps={steps}"]
    command[0] = str(Path(sys.executable).with_name(command[0]))
    command += ["--env.type=libero", f"--env.task={SUITE}", f"--env.task_ids={tasks}", f"--output_dir={theirs}"]
    command += [f"--env.observation_height={size}", f"--env.observation_width={size}", *their_limit]
    command += [f"--eval.n_episodes={arguments.n}", f"--eval.batch_size={arguments.batch_size}"]
    seconds = timed(command, HOME=str(home_with_assets(arguments.output_dir)))
    info = json.loads((theirs / "eval_info.json").read_text())
    runs["lerobot-eval"] = {
        "seconds": seconds,
        "episodes": len(tasks) * arguments.n,
        "said": {key: info["overall"][key] for key in ("eval_s", "pc_success") if key in info.get("overall", {})},
    }
    for run in runs.values():
        run["episodes_per_hour"] = 3600 * run["episodes"] / run["seconds"]
    return runs


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tasks", default="0,1", help="numbers of libero_object's tasks")
    parser.add_argument("--n", type=int, default=10, help="episodes of each task")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--n_action_steps", type=int, default=8)
    parser.add_argument("--max_steps", type=int, help="time limit of an episode; LIBERO's by default")
    parser.add_argument("--toy", action="store_true", help="one episode of sixteen steps each: no result")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON, the last")
    arguments = parser.parse_args(argv)
    if arguments.toy:
        arguments.tasks, arguments.n, arguments.batch_size, arguments.max_steps = "0", 1, 1, 16
        arguments.resolution = 32
    shutil.rmtree(arguments.output_dir, ignore_errors=True)
    arguments.output_dir.mkdir(parents=True)
    import_libero()  # leaves LIBERO's configuration in the environment, for lerobot-eval too
    runs = measure(arguments, untrained_policy(arguments.output_dir, arguments.resolution, 1 if arguments.toy else 2))
    ratio = runs["wam eval"]["episodes_per_hour"] / runs["lerobot-eval"]["episodes_per_hour"]
    conditions = {key: getattr(arguments, key) for key in ("tasks", "n", "batch_size", "resolution", "n_action_steps")}
    for name, run in runs.items():
        print(f"{name}: {run['episodes_per_hour']:.0f} episodes an hour ({run['episodes']} in {run['seconds']:.0f} s)")
    print(f"ratio {ratio:.2f}")
    if arguments.json:
        record = {"benchmark": "libero_throughput", "runs": runs, "ratio": ratio, "conditions": conditions}
        print(json.dumps(record | {"toy": arguments.toy, "provenance": collect()}))


if __name__ == "__main__":
    main()
