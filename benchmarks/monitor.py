"""Does surprise tell that something is wrong, how late, and what is a hand-over worth? MetaWorld, with faults.

A policy acts; whenever it looks (each half chunk) the monitor compares what was imagined a horizon before with what is
seen. First, episodes without faults calibrate it: those that succeed give a scale and a conformal threshold. Then, on
other trials, a fault strikes at a random moment and stays: an occluded camera, a moved object, dropped or delayed
actions, a wrong instruction, changed lighting. Each trial runs without a fault too.

  AUROC        of the greatest surprise in the second after the onset, against the same stretch of the same trial
               without the fault
  detection    alarms after the onset, and how late
  hand-over    from the alarm on the simulator's expert acts, under the same fault; against the policy going on alone

    python benchmarks/monitor.py [--policy outputs/demo] [--episodes 10] [--false_alarm_rate 0.1] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _simulated_time as simulated
import numpy as np
from _faults import FAULTS, Fault

from wamkit.cli.demo import MAX_STEPS, TASKS
from wamkit.envs.base import trial_seed
from wamkit.envs.metaworld import MetaWorldEnvironment
from wamkit.evaluation.detection import paired_auroc
from wamkit.evaluation.provenance import checkpoint_record, collect
from wamkit.evaluation.results import write_json
from wamkit.evaluation.statistics import compare, success_rate
from wamkit.inference.execution import Synchronous
from wamkit.inference.monitor import Monitor
from wamkit.inference.monitor_calibration import Calibration, Scale, Surprise, calibrate, scores
from wamkit.inference.monitor_response import HandOver
from wamkit.inference.policy import checkpoint_folder

NORMALISATIONS = ("copy_present", "horizon")
ONLINE = "copy_present"
"""The normalisation whose alarms hand over."""
CALIBRATION_TRIAL, FIRST_TRIAL = 2000, 600
ONSET_STEPS = (16, 48)
WINDOW_S = 1.0
"""After the onset, for the AUROC."""


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--policy", type=Path, default=Path("outputs/demo"), help="a checkpoint of the demo's recipe")
    flags.add_argument("--tasks", nargs="+", default=list(TASKS))
    flags.add_argument("--faults", nargs="+", default=list(FAULTS)[1:], choices=list(FAULTS)[1:])
    flags.add_argument("--calibration_episodes", type=int, default=24, help="for each task")
    flags.add_argument("--episodes", type=int, default=10, help="for each task and fault, with and without hand-over")
    flags.add_argument("--false_alarm_rate", type=float, default=0.1)
    flags.add_argument("--memory", type=int, default=1, help="surprises that are averaged")
    flags.add_argument("--max_steps", type=int, default=MAX_STEPS)
    flags.add_argument("--seed", type=int, default=0, help="of the policy's noise")
    flags.add_argument("--output_dir", type=Path, default=Path("outputs/monitor"))
    flags.add_argument(
        "--toy", action="store_true", help="short episodes of one fault: shows that it runs, nothing else"
    )
    flags.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    if flags.parse_known_args(arguments)[0].toy:
        small: dict[str, Any] = dict(calibration_episodes=4, episodes=1, max_steps=48, false_alarm_rate=0.5)
        flags.set_defaults(**small, tasks=list(TASKS[:1]), faults=["occluded_camera"])
    return flags.parse_args(arguments)


def onset_of(task: str, trial: int) -> int:
    """The control period in which a fault strikes; the same for all faults of a trial."""
    return int(np.random.default_rng(trial_seed("onset", task, trial)).integers(*ONSET_STEPS))


def episode(
    env: MetaWorldEnvironment,
    key: simulated.Key,
    fault: Fault,
    calibration: Calibration | None,
    *,
    onset: int,
    hand_over: bool,
    look_every: int,
    seed: int,
) -> simulated.Episode:
    """One episode; looks and chunks fall together, ``look_every`` control periods apart."""
    _, task, trial = key
    spec = env.description
    env.reset_trial(trial, render=False)
    executor = Synchronous(simulated.hold_of(spec), look_every)
    monitor, response = Monitor(calibration), HandOver(lambda _: env.expert_action())
    alarms: list[float] = []
    success = truncated = False
    step = 0
    last = None
    while not (success or truncated):
        if step == onset:
            fault.strike()
        acts = not (hand_over and response.alarm is not None)
        if acts and step % look_every == 0:
            observation = env.observe()
            observation = fault.seen(observation) if step >= onset else observation
            alarm = monitor.observe(step / spec.rate_hz, (yield simulated.Ask("imagine", observation)))
            if alarm is not None:
                alarms.append(alarm.at)
                response.raise_alarm(alarm)
            acts = not (hand_over and response.alarm is not None)
            if acts and (request := executor.request()) is not None:
                number = simulated.policy_seed(seed, task, trial, request.number)
                executor.receive(request, (yield simulated.Ask("act", observation, number)))
        action = executor.step().action if acts else response.action(dict, last)
        last = fault.done(action) if step >= onset else action
        _, success, truncated = env.step_action(last, render=False)
        step += 1
    return {
        "seed": seed,
        "success": success,
        "steps": step,
        "onset_s": onset / spec.rate_hz,
        "struck": step > onset,
        "alarms_s": alarms,
        "surprises": [[round(s.at, 4), round(s.horizon, 4), s.error, s.change] for s in monitor.history],
    }


def surprises(record: dict[str, Any]) -> list[Surprise]:
    return [Surprise(*row) for row in record["surprises"]]


def window_score(record: dict[str, Any], scale: Scale, memory: int, start: float, end: float) -> float | None:
    """The greatest score of an episode in [start, end]; None where there was no look."""
    history = surprises(record)
    inside = [v for s, v in zip(history, scores(history, scale, memory), strict=True) if start <= s.at <= end]
    return float(max(inside)) if inside else None


def separation(
    faulty: Sequence[dict[str, Any]],
    clean: dict[tuple[str, int], dict[str, Any]],
    scale: Scale,
    options: Any,
    rate: float,
) -> dict[str, Any] | None:
    """AUROC over the trials in which both episodes were looked at after the onset, over stretches of equal length."""
    pairs = []
    for record in faulty:
        partner, start = clean[record["task"], record["trial"]], record["onset_s"]
        end = min(start + WINDOW_S, (partner["steps"] - 1) / rate, (record["steps"] - 1) / rate)
        values = [window_score(each, scale, options.memory, start, end) for each in (record, partner)]
        if None not in values:
            pairs.append(values)
    return paired_auroc(*zip(*pairs, strict=True)) if pairs else None


def summarise(
    name: str,
    alone: Sequence[dict[str, Any]],
    helped: Sequence[dict[str, Any]],
    clean: dict,
    scales: dict,
    options: Any,
    rate: float,
) -> dict[str, Any]:
    """One fault (or none)."""
    struck = [e for e in alone if e["struck"]]
    # An alarm before the onset is a false one, whatever follows.
    calm = [e for e in struck if not any(at < e["onset_s"] for at in e["alarms_s"])]
    delays = [e["alarms_s"][0] - e["onset_s"] for e in calm if e["alarms_s"]]
    row: dict[str, Any] = {
        "fault": name,
        "struck": len(struck),
        "success_alone": success_rate(e["success"] for e in alone).to_json(),
        "success_hand_over": success_rate(e["success"] for e in helped).to_json(),
        "comparison": compare(
            [e | {"arm": "alone"} for e in alone] + [e | {"arm": "hand_over"} for e in helped], "hand_over", "alone"
        ).to_json(),
    }
    if name == "clean":
        for kind, wanted in (("successful", True), ("failed", False)):
            chosen = [bool(e["alarms_s"]) for e in alone if e["success"] is wanted]
            row[f"alarms_{kind}"] = success_rate(chosen).to_json() if chosen else None
        return row
    row["detected"] = success_rate(bool(e["alarms_s"]) for e in calm).to_json() if calm else None
    row["delay_s"] = {str(q): float(np.quantile(delays, q)) for q in (0.25, 0.5, 0.75)} if delays else None
    row["auroc"] = {kind: separation(struck, clean, scale, options, rate) for kind, scale in scales.items()}
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    policy = simulated.load_policy(options.policy, toy=options.toy)
    rate = policy.body().rate_hz
    look_every = max(1, round(policy.contract.horizon_s * rate) // 2)
    checkpoint = checkpoint_folder(options.policy) if options.policy.exists() else None
    settings = {
        "checkpoint": checkpoint_record(checkpoint)["sha256"] if checkpoint else "random weights",
        "max_steps": options.max_steps,
        "seed": options.seed,
        "tasks": options.tasks,
    }
    tasks = tuple(options.tasks)

    def runner(calibration: Calibration | None):
        def begin(env: MetaWorldEnvironment, key: simulated.Key) -> simulated.Episode:
            arm, task, trial = key
            name, _, response = arm.partition("/")
            rng = np.random.default_rng(trial_seed("fault", name, task, trial))
            fault = FAULTS.get(name, Fault)(env, rng, tasks)
            return episode(
                env,
                key,
                fault,
                calibration,
                onset=onset_of(task, trial),
                hand_over=response == "hand_over",
                look_every=look_every,
                seed=options.seed,
            )

        return begin

    log = simulated.EpisodeLog(options.output_dir / "calibration.jsonl", settings)
    first = CALIBRATION_TRIAL
    keys = [("calibration", task, t) for t in range(first, first + options.calibration_episodes) for task in tasks]
    found = simulated.run(policy, keys, runner(None), log, max_steps=options.max_steps, title="calibration")
    # A toy's policy solves nothing: there, any episode calibrates.
    good = [surprises(e) for e in found if e["success"] or options.toy]
    calibrations = {
        kind: calibrate(good, options.false_alarm_rate, normalisation=kind, memory=options.memory)
        for kind in NORMALISATIONS
    }
    calibrations[ONLINE].save(options.output_dir / "calibration.json")

    settings |= {"threshold": calibrations[ONLINE].threshold, "memory": options.memory}
    log = simulated.EpisodeLog(options.output_dir / "episodes.jsonl", settings)
    names = ("clean", *options.faults)
    trials = range(FIRST_TRIAL, FIRST_TRIAL + options.episodes)
    arms = [f"{name}/{response}" for name in names for response in ("alone", "hand_over")]
    keys = [(arm, task, trial) for trial in trials for task in tasks for arm in arms]
    episodes = simulated.run(
        policy, keys, runner(calibrations[ONLINE]), log, max_steps=options.max_steps, title="monitor"
    )
    by_arm = {arm: [e for e in episodes if e["arm"] == arm] for arm in arms}
    clean = {(e["task"], e["trial"]): e for e in by_arm["clean/alone"]}
    scales = {kind: calibration.scale for kind, calibration in calibrations.items()}
    result = {
        "benchmark": "monitor",
        "toy": options.toy,
        "false_alarm_rate": options.false_alarm_rate,
        "normalisation": ONLINE,
        "look_every_s": look_every / rate,
        "calibration": {
            "episodes": len(found),
            "successful": sum(e["success"] for e in found),
            "threshold_rests_on": calibrations[ONLINE].episodes,
            "thresholds": {kind: calibration.threshold for kind, calibration in calibrations.items()},
        },
        "rows": [
            summarise(name, by_arm[f"{name}/alone"], by_arm[f"{name}/hand_over"], clean, scales, options, rate)
            for name in names
        ],
        "provenance": collect(
            checkpoint=checkpoint,
            config={k: v for k, v in vars(options).items() if k not in ("output_dir", "json", "policy")},
            seeds=[options.seed],
        ),
    }
    path = write_json(options.output_dir / "result.json", result)
    for row in result["rows"]:
        print(line(row))
    print(path)
    if options.json:
        print(json.dumps(result))


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    success = " -> ".join(f"{100 * row[f'success_{kind}']['rate']:.0f} %" for kind in ("alone", "hand_over"))
    if row["fault"] == "clean":
        alarms = row["alarms_successful"]
        shown = f"false alarms {100 * alarms['rate']:.0f} %" if alarms else "no success to count false alarms on"
    else:
        area, found, delay = row["auroc"][ONLINE], row["detected"], row["delay_s"]
        shown = f"AUROC {area['auroc']:.2f}" if area else "no AUROC"
        shown += f", detected {100 * found['rate']:.0f} %" if found else ""
        shown += f", median delay {delay['0.5']:.2f} s" if delay else ""
    return f"{row['fault']:18s} {shown}; success with hand-over {success}"


if __name__ == "__main__":
    main()
