"""``wam demo``: the whole road at laptop size, from recording to report. Each step that is done is not done again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wamkit.cli.groups import ActingPolicyFlags, DatasetFlags, EnvFlags, UsedPolicyFlags
from wamkit.cli.parsing import parse

if TYPE_CHECKING:
    from wamkit.training.config import TrainConfig

# Two tasks share one scene, so only the instruction tells them apart; all three move an object along a path by contact,
# and where the object stands differs from trial to trial.
TASKS = ("faucet-open-v3", "faucet-close-v3", "window-open-v3")
MAX_STEPS = 250
"""About three times what the expert needs."""
UNSEEN = 1000
"""Added to the seed of the recording that the world model is measured on: other initial states, other noise."""
N_ACTION_STEPS = 8
"""Half a chunk is executed before the next look."""
ARMS = "policy,no_op,random,expert,blind,swapped_instruction"
RECIPE = "lawam_metaworld"


@dataclass(frozen=True)
class DemoArguments:
    """Record three MetaWorld tasks, train LaWAM tiny on them, evaluate it beside control arms, write the report."""

    output_dir: Path = Path("outputs/demo")
    """Folder for recordings, checkpoints, measurements and report.html; a demo that stopped goes on."""
    seed: int = 0
    """Of the training and of what the policy samples."""
    toy: bool = False
    """A few episodes and steps of everything: shows that the road is open, not that the policy is good."""


def run(argv: Sequence[str]) -> int:
    """Runs the verb."""
    arguments = parse(DemoArguments, argv, verb="demo")
    output, seconds = arguments.output_dir, {}
    recordings, unseen = output / "recordings", output / "recordings_unseen"

    def timed(name: str, step: Callable[[], str]) -> str:
        print(f"[{name}]", flush=True)
        started = time.monotonic()
        said = step()
        seconds[name] = time.monotonic() - started
        return said

    timed("record", lambda: _record(recordings, arguments, 1 if arguments.toy else 25))
    # The world model is measured on demonstrations of their own, so that the policy may learn from all of its own.
    timed("record unseen", lambda: _record(unseen, arguments, 1 if arguments.toy else 5, UNSEEN))
    timed("train", lambda: _train(recordings, arguments))
    print(timed("imagine", lambda: _imagine(unseen, arguments)))
    table = timed("evaluate", lambda: _evaluate(arguments))
    timed("latency", lambda: _latency(arguments))
    report = timed("report", lambda: _report(arguments))
    print(table)
    print(f"{report} ({', '.join(f'{name} {spent:.0f} s' for name, spent in seconds.items())})")
    return 0


def demo_config(recordings: Path, arguments: DemoArguments) -> TrainConfig:
    """The recipe's config for this demo."""
    from wamkit.cli.train import load_recipe

    config = load_recipe(RECIPE)
    if arguments.toy:
        stages = tuple(
            dataclasses.replace(stage, steps=2, warmup_steps=0, batch_size=4, learning_rate=1e-4)
            for stage in config.stages
        )
        config = dataclasses.replace(config, stages=stages)
    return dataclasses.replace(
        config,
        dataset=dataclasses.replace(config.dataset, roots=(str(recordings),), holdout_episodes=0),
        output_dir=str(arguments.output_dir),
        seed=arguments.seed,
        resume=True,
    )


def _record(recordings: Path, arguments: DemoArguments, episodes: int, beyond: int = 0) -> str:
    from wamkit.cli.progress import progress_bar
    from wamkit.cli.train import load_recipe
    from wamkit.envs.recording import record_episodes

    window = load_recipe(RECIPE).stages[-1].window
    with progress_bar("recording") as progress:
        summary = record_episodes(
            "metaworld",
            TASKS,
            recordings,
            episodes=episodes,
            seed=arguments.seed + beyond,
            resolution=window.resolution,
            cameras=window.cameras,
            # So few episodes are recorded here sooner than processes of their own start.
            workers=0 if arguments.toy else None,
            resume=True,
            progress=progress,
        )
    print(summary)
    return ""


def _train(recordings: Path, arguments: DemoArguments) -> str:
    from wamkit.cli.progress import progress_bar
    from wamkit.training.loop import train

    with progress_bar("training") as progress:
        return str(train(demo_config(recordings, arguments), progress=progress))


def _imagine(recordings: Path, arguments: DemoArguments) -> str:
    from wamkit.cli.imagine import ImagineArguments, imagine

    return imagine(
        ImagineArguments(
            policy=UsedPolicyFlags(arguments.output_dir),
            dataset=DatasetFlags(recordings),
            output_dir=arguments.output_dir,
            windows=24 if arguments.toy else 384,
            seed=arguments.seed,
        )
    )


def _evaluate(arguments: DemoArguments) -> str:
    from wamkit.cli.evaluate import EvalArguments, EvalFlags, evaluate

    flags = EvalFlags(n_episodes=20, n_action_steps=N_ACTION_STEPS, max_steps=MAX_STEPS, arms=ARMS)
    if arguments.toy:
        flags = EvalFlags(n_episodes=1, arms=ARMS, max_steps=12, videos=1)
    return evaluate(
        EvalArguments(
            policy=ActingPolicyFlags(arguments.output_dir),
            env=EnvFlags(type="metaworld", task=",".join(TASKS)),
            output_dir=arguments.output_dir,
            eval=flags,
            seed=arguments.seed,
            resume=True,
        )
    )


def _latency(arguments: DemoArguments) -> str:
    from wamkit.cli.report import LATENCY_FILE
    from wamkit.evaluation.latency import GLANCE
    from wamkit.evaluation.latency_policy import short_latency
    from wamkit.evaluation.provenance import collect
    from wamkit.evaluation.results import write_json
    from wamkit.inference.policy import checkpoint_folder, load

    folder = checkpoint_folder(arguments.output_dir)
    protocol = GLANCE
    if arguments.toy:
        protocol = dataclasses.replace(GLANCE, window=1, least_warm_up=1, most_warm_up=3, calls=2, slow_calls=2)
    measured = short_latency(load(folder, runtime=True), protocol)
    record = collect(checkpoint=folder, seeds=[arguments.seed])
    write_json(arguments.output_dir / LATENCY_FILE, measured | {"provenance": record})
    return ""


def _report(arguments: DemoArguments) -> str:
    from wamkit.cli.report import report_on

    notes = ["A toy run: a few steps of everything, no result."] if arguments.toy else []
    return str(report_on(arguments.output_dir, title="LaWAM tiny on three MetaWorld tasks", notes=notes))
