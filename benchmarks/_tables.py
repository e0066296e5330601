"""Writes the tables of docs/benchmarks.md from benchmarks/results: no number there is typed by hand.

python benchmarks/_tables.py          rewrite the page
python benchmarks/_tables.py --check  exit 1 where the page is not what the results say
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs/benchmarks.md", ROOT / "benchmarks/results"


def percent(rate: dict[str, Any]) -> str:
    low, high = rate["ci95"]
    return f"{100 * rate['rate']:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def closed_loop(result: dict[str, Any]) -> list[str]:
    """Arms by task, then the paired tests."""
    arms = result["arms"]
    tasks = sorted({task for arm in arms.values() for task in arm["tasks"]})
    lines = ["| arm | " + " | ".join([*tasks, "all", "by seed"]) + " |", "|" + "---|" * (len(tasks) + 3)]
    for name, arm in arms.items():
        seeds = arm.get("seeds", {})
        cells = [percent(arm["tasks"][task]) for task in tasks] + [
            f"{percent(arm['overall'])}, n {arm['overall']['n']}"
        ]
        cells.append(", ".join(f"{100 * rate['rate']:.0f}" for rate in seeds.values()) or "one seed")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    if result["comparisons"]:
        lines += ["", "| difference | points | McNemar p | Holm |", "|---|---|---|---|"]
    for line in result["comparisons"]:
        if line["task"] is None:
            low, high = (100 * end for end in line["ci95"])
            points = f"{100 * line['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
            lines.append(
                f"| `{line['arm']}` - `{line['baseline']}` | {points} | {line['p_value']:.2g} | {line['p_holm']:.2g} |"
            )
    return lines


def downsampling(result: dict[str, Any]) -> list[str]:
    """Success as in other closed-loop experiments, then what each factor costs and how well it foresees."""
    heads = ("arm", "s a step", "kept for backward, MiB", "pixel error / copy, by seed", "latent error / copy, by seed")
    rows = [heads, ("---",) * len(heads)]

    def spans(found: list[tuple[float, list[float]]]) -> str:
        return ", ".join(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, (low, high) in found)

    for name, cost in result["cost"].items():
        errors = [seed[name] for seed in result["measured"].values() if name in seed]
        cells = (
            f"`{name}`",
            f"{cost['seconds_per_step']:.2f}",
            f"{cost['kept_for_backward_mib']:.0f}",
            spans([(error["ratio"][-1], error["ratio_ci95"][-1]) for error in errors]),
            spans([(error["latent"]["ratio"], error["latent"]["ci95"]) for error in errors]),
        )
        rows.append(cells)
    return [*closed_loop(result), "", *("| " + " | ".join(row) + " |" for row in rows)]


def repwam(result: dict[str, Any]) -> list[str]:
    """Success as in other closed-loop experiments, then how the imagined video of each arm and seed does."""
    rows = [("arm", "seed", "video error / copying the present", "told another's actions / its own"), ("---",) * 4]
    for seed, arms in result["measured"].items():
        for name, found in arms.items():
            cells = (
                (f"{found[key]:.3f} [{found[f'{key}_ci95'][0]:.3f}, {found[f'{key}_ci95'][1]:.3f}]")
                for key in ("over_copy", "swapped_over_true")
            )
            rows.append((f"`{name}`", seed, *cells))
    return [*closed_loop(result), "", *("| " + " | ".join(row) + " |" for row in rows)]


def ratio(row: dict[str, Any]) -> str:
    low, high = row["ratio_ci95"]
    return f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]"


def recordings(result: dict[str, Any]) -> list[str]:
    """Held-out error by recording, beside that on episodes trained on."""
    held, trained = result["held_out"], result.get("trained", {"recordings": {}})
    heads = ("recording", "horizon, s", "error", "copy", "error / copy", "shuffled", "windows, episodes", "trained on")
    rows = [heads, ("---",) * len(heads)]
    for name, row in held["recordings"].items():
        seen = trained["recordings"].get(name)
        rows.append(
            (
                name,
                f"{row['horizon_s']:.2f}",
                f"{row['error']:.3f}",
                f"{row['copy_present']:.3f}",
                ratio(row),
                f"x {row['latent_action_shuffled']:.2f}",
                f"{row['windows']}, {row['episodes']}",
                ratio(seen) if seen else "",
            )
        )
    overall = ratio(trained["overall"]) if "overall" in trained else ""
    count = str(held["overall"]["episodes"])
    rows.append(("all, each alike", "", "", "", ratio(held["overall"]), "", f"{count} episodes", overall))
    return ["| " + " | ".join(row) + " |" for row in rows]


def encoders(result: dict[str, Any]) -> list[str]:
    """R2 of hand and object by task, mean and range over seeds."""
    tasks = list(result["frames"])
    lines = ["| encoder | " + " | ".join(f"{task}: hand, object" for task in tasks) + " | all |"]
    lines.append("|" + "---|" * (len(tasks) + 2))
    kinds = ("end_effector", "object")

    def spread(values: list[float]) -> str:
        return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    for name, seeds in result["encoders"].items():
        rows = list(seeds.values())
        cells = [
            ", ".join(f"{sum(row['tasks'][task][kind]['r2'] for row in rows) / len(rows):.3f}" for kind in kinds)
            for task in tasks
        ]
        cells.append(", ".join(spread([row[kind] for row in rows]) for kind in kinds))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def latent_actions(result: dict[str, Any]) -> list[str]:
    """A row for each way to make a latent action, by tokenizer: what the robot did, and what its step does."""
    heads = ["latent action", "parameters", "R2 of the action", "R2 of the motion", "step / copy"]
    heads += ["wrong / own", "arm / background", "transfer"]
    lines = []
    for tokenizer, arms in result["results"].items():
        lines += [f"`{tokenizer}`:", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for name, seeds in arms.items():
            rows = list(seeds.values())
            cells = [f"`{name}`", f"{rows[0]['parameters']:,}" if rows[0]["parameters"] else "none"]
            cells += [_probe_cell([row[kind] for row in rows]) for kind in ("action", "motion")]
            cells += [
                _mean_cell([row.get(entry, {}).get(key) for row in rows])
                for entry, key in (("step", "ratio"), ("wrong", "ratio"))
            ]
            cells.append(_mean_cell([row.get("effect_region", {}).get("ratio") for row in rows]))
            cells.append(_mean_cell([row.get("transfer", {}).get("target_over_source") for row in rows]))
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return lines[:-1]


def _probe_cell(probes: list[dict[str, Any]]) -> str:
    """Mean over seeds of R2, its range, and the mean ends of the intervals over episodes."""
    if any("r2" not in probe for probe in probes):
        return "not measured"
    values = [probe["r2"] for probe in probes]
    low, high = (sum(probe["ci95"][end] for probe in probes) / len(probes) for end in (0, 1))
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.2f}{spread} [{low:.2f}, {high:.2f}]"


def _mean_cell(values: list[Any]) -> str:
    """Mean over seeds of a number or of a list with one."""
    known = [value[0] if isinstance(value, list) else value for value in values if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else ""


def latency(result: dict[str, Any]) -> list[str]:
    """A row for each model and boundary."""
    heads = ("model", "boundary", "plain p50", "runtime p50", "p99", "faster", "null", "efficiency", "operations")
    rows = [heads, ("---",) * len(heads)]
    for name, row in result["rows"].items():
        counts = row["operations"]
        for boundary, cell in row["boundaries"].items():
            spans = [cell[which]["p50_ci95_ms"] for which in ("plain", "runtime")]
            threads = f"{row['threads']} thread{'s' * (row['threads'] != 1)}"
            rows.append(
                (
                    f"{name} `{row['preset']}`, {row['precision']['runtime']}, {threads}",
                    boundary,
                    f"{cell['plain']['p50_ms']:.2f} [{spans[0][0]:.2f}, {spans[0][1]:.2f}]",
                    f"{cell['runtime']['p50_ms']:.2f} [{spans[1][0]:.2f}, {spans[1][1]:.2f}]",
                    f"{cell['runtime']['p99_ms']:.2f}",
                    ratio({"ratio": cell["ratio"], "ratio_ci95": cell["ci95"]}),
                    ratio({"ratio": cell["null"]["ratio"], "ratio_ci95": cell["null"]["ci95"]}),
                    f"{row['efficiency']:.2f}" if boundary == "model" else "",
                    f"{counts['plain']}, {counts['runtime_prefix']} + "
                    f"{row['denoise_steps']} x {counts['runtime_per_step']:.0f}",
                )
            )
    return ["| " + " | ".join(row) + " |" for row in rows] + latency_peers(result.get("peers", {}))


def latency_peers(peers: dict[str, Any]) -> list[str]:
    """A row for each peer and each of our paths that it was set beside."""
    if not peers:
        return []
    lines = ["", "| peer | p50 | ours | p50 | ours is faster by | null | same results within |", "|" + "---|" * 7]
    for name, entry in peers.items():
        parity = entry["parity"]
        within = "" if parity is None else f"{parity['largest_difference']:.1e}"
        for which, cell in entry["against"].items():
            faster = ratio({"ratio": cell["ratio"], "ratio_ci95": cell["ci95"]})
            null = ratio({"ratio": cell["null"]["ratio"], "ratio_ci95": cell["null"]["ci95"]})
            ours = f"{entry['beside']}, {which}"
            times = [f"{cell[side]['p50_ms']:.2f}" for side in ("peer", "ours")]
            lines.append(f"| `{name}` | {times[0]} | {ours} | {times[1]} | {faster} | {null} | {within} |")
    return lines


def number(entry: dict[str, Any] | None, digits: int = 1) -> str:
    if entry is None:
        return ""
    low, high = entry["ci95"]
    return f"{entry['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def reaction(result: dict[str, Any]) -> list[str]:
    """A row for each executor and latency, then the paired tests."""
    limits = [str(limit) for limit in result["deadlines_steps"]]
    heads = ["executor", "latency, chunks", *(f"success within {limit} steps" for limit in limits)]
    heads += ["s to success", "jerk, m/s³", "holding, %", "n"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for cell in result["cells"]:
        row = [f"`{cell['executor']}`", f"{cell['latency_chunks']:g}"]
        row += [percent(cell["success"][limit]) for limit in limits]
        row += [number(cell["seconds_to_success"], 2), number(cell["jerk"]), f"{100 * cell['held_share']:.0f}"]
        lines.append("| " + " | ".join([*row, str(cell["success"][limits[0]]["n"])]) + " |")
    lines += ["", "| difference | within | points | McNemar p |", "|---|---|---|---|"]
    for line in result["comparisons"]:
        low, high = (100 * end for end in line["ci95"])
        lines.append(
            f"| `{line['arm']}` - `{line['baseline']}` | {line['deadline_steps']} steps "
            f"| {100 * line['difference']:+.1f} [{low:+.1f}, {high:+.1f}] | {line['p_value']:.2g} |"
        )
    return lines


def monitor(result: dict[str, Any]) -> list[str]:
    """A row for each fault: how well, how often and how late it is noticed, and what the hand-over is worth."""
    kinds = list(result["calibration"]["thresholds"])
    heads = ["fault", *(f"AUROC, {kind}" for kind in kinds), "alarms, %", "delay, s (quartiles)"]
    heads += ["success alone, %", "with hand-over, %", "difference", "n"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in result["rows"]:
        low, high = (100 * end for end in row["comparison"]["ci95"])
        tail = [percent(row["success_alone"]), percent(row["success_hand_over"])]
        tail += [f"{100 * row['comparison']['difference']:+.0f} [{low:+.0f}, {high:+.0f}]"]
        tail += [str(row["success_alone"]["n"])]
        if row["fault"] == "clean":
            shown = [
                f"{name}: {percent(row[f'alarms_{name}'])}"
                for name in ("successful", "failed")
                if row[f"alarms_{name}"]
            ]
            lines.append("| " + " | ".join(["none", *("" for _ in kinds), "; ".join(shown), "", *tail]) + " |")
            continue
        areas = [
            f"{area['auroc']:.2f} [{area['ci95'][0]:.2f}, {area['ci95'][1]:.2f}]" if area else ""
            for area in (row["auroc"][kind] for kind in kinds)
        ]
        found = percent(row["detected"]) if row["detected"] else ""
        delay, quartiles = "", row["delay_s"]
        if quartiles:
            delay = f"{quartiles['0.5']:.2f} ({quartiles['0.25']:.2f} to {quartiles['0.75']:.2f})"
        lines.append("| " + " | ".join([row["fault"].replace("_", " "), *areas, found, delay, *tail]) + " |")
    return lines


def serving(result: dict[str, Any]) -> list[str]:
    """What became of the requests."""
    load, stopped = result["load"], result["sigterm"]
    memory, latency = load["memory"], load["latency_ms"]
    rows = [
        ("clients, requests", f"{result['clients']}, {load['requests']}"),
        ("lost, mixed up, reconnections", f"{load['lost']}, {load['mixed_up']}, {load['reconnections']}"),
        ("requests a second", f"{load['requests_per_s']:.0f}"),
        ("latency p50, p95, p99, ms", ", ".join(f"{latency[level]:.1f}" for level in ("p50", "p95", "p99"))),
        ("requests a batch, mean", f"{load['mean_batch']:.1f}"),
        ("memory, MiB", f"{memory['second_quarter_mib']:.1f}, then {memory['last_quarter_mib']:.1f}"),
        ("SIGTERM: accepted, received", f"{stopped['accepted']}, {stopped['received']}"),
        ("SIGTERM: seconds to the end", f"{stopped['shutdown_s']:.2f}"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def loader(result: dict[str, Any]) -> list[str]:
    """Windows a second on either side, and what the first epoch costs."""
    rates, first = result["windows_per_s"], result["first_epoch"]
    lowest, highest = min(result["ratios"]), max(result["ratios"])
    rows = [
        ("wamkit, windows/s", f"{rates['ours']:.0f}"),
        (f"LeRobot (decodes with {result['lerobot_video_backend']}), windows/s", f"{rates['lerobot']:.0f}"),
        ("ratio, median of neighbouring blocks", f"{result['ratio']:.0f} ({lowest:.0f} to {highest:.0f})"),
        (
            f"first epoch of {first['windows']} windows, seconds: wamkit with building its store, LeRobot",
            f"{first['ours_s']:.2f}, {first['lerobot_s']:.2f} (ratio {first['ratio']:.1f})",
        ),
        ("load average at the end", f"{result['load_average']}"),
    ]
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def render(result: dict[str, Any]) -> list[str]:
    """Pictures and physics steps a second of each task."""
    lines = [
        f"| task | one process, frames/s | {result['processes']} processes, frames/s | physics, steps/s |",
        "|---|---|---|---|",
    ]
    for task, row in result["tasks"].items():
        rates = [row[name] for name in ("frames_per_s", "machine_frames_per_s", "steps_per_s")]
        lines.append(f"| {task} | {' | '.join(f'{rate:.0f}' for rate in rates)} |")
    return lines


def tokenizer(result: dict[str, Any]) -> list[str]:
    """A row for each tokenizer: mean and range over seeds."""
    heads = ("tokenizer", "parameters, M", "numbers a picture", "PSNR, dB", "SSIM", "action R2", "within 0.03, %")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]

    def spread(values: list[float], digits: int) -> str:
        mean, (low, high) = sum(values) / len(values), (min(values), max(values))
        if len(values) == 1:
            return f"{mean:.{digits}f}"
        return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    for name, seeds in result["tokenizers"].items():
        rows = list(seeds.values())
        pixels = [row["reconstruction"] for row in rows if "reconstruction" in row]
        probes = [row["action_probe"] for row in rows if "action_probe" in row]
        cells = [f"{rows[0]['origin']['parameters'] / 1e6:.2f}", f"{rows[0]['latent']['numbers_per_picture']:.0f}"]
        cells += [
            spread([row[kind]["mean"] for row in pixels], digits) if pixels else ""
            for kind, digits in (("psnr", 2), ("ssim", 3))
        ]
        cells += [spread([row["r2"] for row in probes], 3) if probes else ""]
        cells += [spread([100 * row["share_within"]["share"] for row in probes], 1) if probes else ""]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    probes = [
        row["action_probe"]
        for seeds in result["tokenizers"].values()
        for row in seeds.values()
        if "action_probe" in row
    ]
    if probes:
        lines.append(f"| the mean action | | | | | 0 | {100 * probes[0]['share_within']['mean_action']:.1f} |")
    return lines


def libero_expert(result: dict[str, Any]) -> list[str]:
    """A row for each task: successes, interval, and how long a success takes."""
    lines = ["| task | instruction | successes | %, interval | steps to success, mean |", "|" + "---|" * 5]
    for task, rate in result["arms"]["expert"]["tasks"].items():
        steps = [e["steps"] for e in result["episodes"] if e["task"] == task and e["success"]]
        mean = f"{sum(steps) / len(steps):.0f}" if steps else ""
        counts = f"{rate['successes']}/{rate['n']}"
        lines.append(f"| `{task}` | {result['instructions'][task]} | {counts} | {percent(rate)} | {mean} |")
    return [*lines, "", *(f"{note}." for note in result.get("notes", ()))]


def libero_throughput(result: dict[str, Any]) -> list[str]:
    """A row for each command."""
    lines = ["| command | episodes | seconds | episodes an hour |", "|" + "---|" * 4]
    for name, run in result["runs"].items():
        lines.append(f"| `{name}` | {run['episodes']} | {run['seconds']:.0f} | {run['episodes_per_hour']:.0f} |")
    conditions = ", ".join(f"{name} {value}" for name, value in result["conditions"].items())
    return [*lines, "", f"Ratio {result['ratio']:.2f}. {conditions}."]


TABLES = {
    "libero_expert": libero_expert,
    "libero_throughput": libero_throughput,
    "latency": latency,
    "encoders": encoders,
    "latent_actions": latent_actions,
    "mixed_frequency": closed_loop,
    "ablation": closed_loop,
    "auxiliary_video": closed_loop,
    "repwam": repwam,
    "repwam_ablation": repwam,
    "downsampling": downsampling,
    "recordings": recordings,
    "reaction": reaction,
    "monitor": monitor,
    "serving": serving,
    "loader": loader,
    "render": render,
    "tokenizer": tokenizer,
}


def table(name: str) -> str:
    """The table of a benchmark and where it comes from, or that there is none yet."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return "Not yet run."
    result = json.loads(path.read_text())
    record = result["provenance"]
    hardware = record["hardware"]
    machine = f"{hardware['cores']} x {hardware['cpu']}" + "".join(f", {gpu}" for gpu in hardware["gpu"])
    source = (
        f"`{' '.join(record['command'])}`, {record['date'][:10]}, commit {record['code']['commit'][:10]}"
        f"{' with local changes' if record['code']['dirty'] else ''}, {machine}; "
        f"`benchmarks/results/{name}.json`."
    )
    return "\n".join([*TABLES[name](result), "", source])


def page(text: str) -> str:
    """The page with every table as the results say."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    now = PAGE.read_text()
    if "--check" in sys.argv:
        sys.exit(now != page(now))
    PAGE.write_text(page(now))
