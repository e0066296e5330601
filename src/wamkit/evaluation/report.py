"""``report.html``: one file that shows a run to a person, works offline, and says what was not measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wamkit.errors import WamkitError
from wamkit.evaluation import encoder_record
from wamkit.evaluation import report_text as text
from wamkit.evaluation.report_figures import (
    SubgoalExample,
    TransferExample,
    horizon_chart,
    subgoal_panels,
    training_charts,
    transfer_panels,
)
from wamkit.evaluation.report_imagined import pixel_section, rollout_section
from wamkit.evaluation.report_media import (
    ReportFigure,
    ReportFilm,
    ReportVideo,
    films_from_imagine,
    gallery,
    image_entry,
    videos_from_eval,
)
from wamkit.evaluation.report_monitor import monitor_table
from wamkit.evaluation.results import load_eval, load_json, validate_eval
from wamkit.json_files import read_json_lines

__all__ = ["ReportFigure", "ReportFilm", "ReportVideo", "films_from_imagine", "videos_from_eval", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"
PROBED = {"object_within_task": "object position less its task's mean"}
"""What encoder probes look for, where the name alone would not say it."""


def _success(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    arms = evaluation["arms"]
    main = text.main_arm(evaluation)
    tasks = sorted({task for arm in arms.values() for task in arm["tasks"]})
    rows = []
    for name, arm in arms.items():
        seeds = [
            f"seed {seed}: {text.percent(rate['rate'])} of {rate['n']}" for seed, rate in arm.get("seeds", {}).items()
        ]
        rows.append(
            {
                "label": text.arm_label(name),
                "main": name == main,
                "cell": text.rate_cell(arm["overall"]),
                "seeds": seeds,
            }
        )
    overall = [entry for entry in evaluation["comparisons"] if entry["task"] is None]
    per_task = [entry for entry in evaluation["comparisons"] if entry["task"] is not None]
    retried = sum(episode["retries"] for episode in evaluation["episodes"])
    return {
        "rows": rows,
        "arms": [{"label": text.arm_label(name), "main": name == main} for name in arms],
        "table_width": 170 + 112 * len(arms),
        "tasks": [(task, [text.rate_cell(arm["tasks"].get(task)) for arm in arms.values()]) for task in tasks],
        "comparisons": [text.comparison_sentences(entry) for entry in overall],
        "task_comparisons": [{"task": entry["task"], **text.comparison_sentences(entry)} for entry in per_task],
        "resolution": text.resolution_sentence(evaluation),
        "episodes": len(evaluation["episodes"]),
        "retried": retried,
    }


def _cards(evaluation: Mapping[str, Any] | None, imagine: Mapping[str, Any], latency: Mapping[str, Any] | None):
    cards = []
    if evaluation is not None:
        rate = evaluation["arms"][text.main_arm(evaluation)]["overall"]
        cards.append(("Success", text.percent(rate["rate"]), f"{text.interval(rate['ci95'])}, n = {rate['n']}"))
        blind = text.overall_comparison(evaluation, "blind")
        if blind:
            points = _minus(f"{100 * blind['difference']:+.0f}\u00a0pts")
            cards.append(("Over its blind self", points, f"{text.signed_interval(blind['ci95'])}, paired"))
    error = imagine.get("feature_error")
    if error:
        own = error.get("policy")
        ratio, (low, high) = (own["ratio"], own["ratio_ci95"]) if own else (error["ratio"][0], error["ratio_ci95"][0])
        title = "Subgoal error ÷ copy" if own else "World-model error ÷ copy"
        cards.append((title, f"{ratio:.2f}", f"{low:.2f}–{high:.2f}, {error['horizon_s'][0]:.2g} s ahead"))
    dependence = imagine.get("action_dependence", {}).get("latent_action")
    if dependence:
        low, high = dependence["ci95"]
        cards.append(("Wrong latent action", f"×{dependence['ratio']:.1f} error", f"{low:.1f}–{high:.1f}; 1 = ignored"))
    latency = latency or {}
    total = latency.get("total", {})
    if "p50_ms" in total:
        detail = f"p99 {total['p99_ms']:.3g} ms" if "p99_ms" in total else latency.get("boundary", "")
        cards.append(("Latency a chunk", f"{total['p50_ms']:.3g} ms", detail))
    return [{"title": title, "value": value, "detail": detail} for title, value, detail in cards]


def _latency(latency: Mapping[str, Any]) -> dict[str, Any]:
    parts, total = latency.get("parts", {}), latency.get("total")
    longest = max((part["p50_ms"] for part in parts.values()), default=0.0)
    measured = [*parts.values(), *([] if total is None else [total])]
    columns = [
        key for key in ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms") if any(key in entry for entry in measured)
    ]
    rows = [
        {
            "name": name.replace("_", " "),
            "width": 100 * part["p50_ms"] / longest if longest else 0.0,
            "numbers": [f"{part[key]:.3g}" if key in part else "" for key in columns],
        }
        for name, part in parts.items()
    ]
    known = {key: value for key, value in latency.items() if key not in ("parts", "total", "provenance")}
    return {
        "columns": [key.removesuffix("_ms") for key in columns],
        "rows": rows,
        "total": None if total is None else [f"{total[key]:.3g}" if key in total else "" for key in columns],
        "conditions": _flat(known),
    }


def _imagine(imagine: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"raw": imagine}
    if imagine.get("feature_error"):
        error = imagine["feature_error"]
        shown["horizon"] = image_entry(horizon_chart(error))
        shown["horizon_rows"] = [
            (f"{t:.2g}\u00a0s", f"{model:.3f}", f"{copy:.3f}", f"{ratio:.2f} ({low:.2f}–{high:.2f})")
            for t, model, copy, ratio, (low, high) in zip(
                error["horizon_s"],
                error["model"],
                error["copy_present"],
                error["ratio"],
                error["ratio_ci95"],
                strict=True,
            )
        ]
    probes = []
    if imagine.get("latent_action_probe"):
        probes.append(("latent action → end-effector motion", imagine["latent_action_probe"]))
    for name, probe in imagine.get("encoder_probe", {}).items():
        what = PROBED.get(name, f"{name.replace('_', ' ')} position")
        probes.append((f"encoder features → {what}", probe))
    shown["probes"] = [
        {
            "name": name,
            "r2": _minus(f"{probe['r2']:.2f}"),
            "interval": f"{probe['ci95'][0]:.2f}–{probe['ci95'][1]:.2f}" if "ci95" in probe else "",
            "control": _minus(f"{probe['control']:.2f}") if "control" in probe else "",
            "n": f"{probe['n_test']} samples" + (f", {probe['episodes']} episodes" if "episodes" in probe else ""),
            "at": max(0.0, min(100.0, 100 * probe["r2"])),
            "low": max(0.0, min(100.0, 100 * probe.get("ci95", [probe["r2"]])[0])),
            "high": max(0.0, min(100.0, 100 * probe.get("ci95", [probe["r2"]])[-1])),
        }
        for name, probe in probes
    ]
    return shown


def _minus(number: str) -> str:
    """With the sign that typesetters use."""
    return number.replace("-", "−")


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as rows of dotted name and text."""
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in _flat(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        return [row for index, item in enumerate(value) for row in _flat(item, f"{prefix}[{index}]")]
    if isinstance(value, (list, tuple)):
        return [(prefix, " ".join(map(str, value)) or "none")]
    return [(prefix, "unknown" if value is None else str(value))]


def _records(logs: Any) -> Sequence[Mapping[str, Any]]:
    """Training records from a ``train_log.jsonl``, a sequence of records, or a sequence of either."""
    if isinstance(logs, Mapping):
        return [logs]
    if not isinstance(logs, (str, Path)):
        return [record for item in logs for record in _records(item)]
    log = Path(logs)
    if not log.exists():
        raise WamkitError(f"There is no training log {log}: leave it out or train with this --output_dir.")
    return read_json_lines(log, WamkitError, "delete that line.", may_be_cut=True)


def write_report(
    output_path: Path,
    *,
    eval: Mapping[str, Any] | Path | None = None,
    imagine: Mapping[str, Any] | Path | None = None,
    training_logs: Path | Sequence[Any] = (),
    videos: Sequence[ReportVideo] = (),
    subgoals: Sequence[SubgoalExample] = (),
    transfers: Sequence[TransferExample] = (),
    films: Sequence[ReportFilm] = (),
    latency: Mapping[str, Any] | None = None,
    figures: Sequence[ReportFigure] = (),
    notes: Sequence[str] = (),
    title: str = "wamkit run",
    video_budget_mb: float = 24.0,
) -> Path:
    """Write one self-contained HTML page; every part may be missing, and a missing one is named on the page.

    Args:
        output_path: The file; replaced as a whole or not at all.
        eval: The object of ``eval.json``, or its path.
        imagine: The object of ``imagine.json``, or its path.
        training_logs: ``train_log.jsonl``, or records with ``stage``, ``step`` and losses.
        videos: See `videos_from_eval`.
        subgoals: From `wamkit.evaluation.imagine.examples` or `report_figures.load_examples`.
        transfers: The same.
        films: Of whole imagined episodes; see `films_from_imagine`.
        latency: ``{"parts": {"<part>": {"p50_ms", ...}}, "total": {"p50_ms", ...}, "boundary": ..., ...}``; by
            default the ``latency`` entry of ``eval``.
        figures: Further pictures.
        notes: Sentences to show at the top, such as a caveat of the data.
        title: What ran.
        video_budget_mb: Videos beyond this size are left out, and counted on the page.

    Returns:
        The path written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    evaluation = (
        load_eval(eval) if isinstance(eval, (str, Path)) else None if eval is None else validate_eval(dict(eval))
    )
    dreams: Mapping[str, Any] = load_json(imagine) if isinstance(imagine, (str, Path)) else imagine or {}
    latency = latency or (evaluation or {}).get("latency")
    page = {
        "title": title,
        "verdict": text.verdict(evaluation, dreams),
        "lead": text.lead_sentences(evaluation, dreams),
        "notes": [*(evaluation or {}).get("notes", ()), *notes],
        "cards": _cards(evaluation, dreams, latency),
        "success": None if evaluation is None else _success(evaluation),
        "videos": gallery(videos, video_budget_mb),
        "subgoals": [
            {"label": e.label, "source": e.source, "panels": [(image_entry(i, c), c) for i, c in subgoal_panels(e)]}
            for e in subgoals
        ],
        "transfers": [
            {
                "label": f"{e.source_label} → {e.target_label}",
                "panels": [(image_entry(i, c), c) for i, c in transfer_panels(e)],
            }
            for e in transfers
        ],
        "imagine": _imagine(dreams),
        "pixels": pixel_section(dreams),
        "rollouts": rollout_section(dreams, films, video_budget_mb),
        "training": [(stage, image_entry(chart)) for stage, chart in training_charts(_records(training_logs))],
        "latency": None if latency is None else _latency(latency),
        "instruction": _instruction(evaluation, dreams),
        "monitor": None if evaluation is None else monitor_table(evaluation),
        "figures": [(f.title, image_entry(f.image, f.caption or f.title), f.caption) for f in figures],
        "encoders": _encoders(evaluation or {}, dreams, latency or {}),
        "provenance": [
            (name, _flat(record["provenance"]))
            for name, record in (
                ("eval.json", evaluation or {}),
                ("imagine.json", dreams),
                ("latency.json", latency or {}),
            )
            if record.get("provenance")
        ],
    }
    page["absent"] = _absent(page, evaluation, dreams)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(page, css=(TEMPLATES / "report.css").read_text())
    output_path = Path(output_path)
    output_path.parent.mkdir(parents=True, exist_ok=True)
    temporary = output_path.with_name(f".{output_path.name}.{os.getpid()}")
    try:
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, output_path)
    finally:
        temporary.unlink(missing_ok=True)
    return output_path


def _encoders(*results: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the checkpoint sees and reads through, from the first result that says it."""
    for result in results:
        found = ((result.get("provenance") or {}).get("checkpoint") or {}).get("encoders")
        if found:
            return [
                {"words": encoder_record.sentence(name, record), "sha256": (record["sha256"] or "")[:12]}
                for name, record in found.items()
            ]
    return []


def _instruction(evaluation: Mapping[str, Any] | None, imagine: Mapping[str, Any]) -> dict[str, Any]:
    swap = (evaluation or {}).get("instruction_swap", {})
    return {
        "sentence": text.instruction_sentence(evaluation) if evaluation else None,
        "path": text.path_sentence(swap),
        "rows": [
            (row["scene"], row["instruction"], row["n"], row["successes"], row.get("followed", "–"))
            for row in swap.get("rows", [])
        ],
        "dependence": imagine.get("instruction_dependence"),
    }


def _absent(
    page: Mapping[str, Any], evaluation: Mapping[str, Any] | None, imagine: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What this report cannot say, and why."""
    gaps = [
        ("Closed-loop success", page["success"], "No evaluation was given; run `wam eval`."),
        ("Videos", page["videos"]["groups"], "No videos were recorded or given."),
        ("World-model metrics", imagine, "No imagine.json was given; run `wam imagine`."),
        (
            "Alarms of a monitor",
            page["monitor"],
            "No monitor watched; run `wam calibrate`, then `wam eval --calibration`.",
        ),
        ("Subgoal heat maps", page["subgoals"], "No examples were given; run `wam imagine`."),
        ("Latent-action transfer", page["transfers"], "No examples were given; run `wam imagine`."),
        ("Training curves", page["training"], "No training log was given."),
        (
            "Latency",
            page["latency"],
            "Latency was not measured; `wam demo` writes a latency.json, and `wam bench latency` measures at length.",
        ),
        ("Provenance", page["provenance"], "The results carry no provenance."),
    ]
    missing = [(name, reason) for name, value, reason in gaps if not value]
    if evaluation is not None:
        for arm in ("no_op", "random", "expert", "blind", "swapped_instruction"):
            if arm not in evaluation["arms"]:
                missing.append((f"Arm “{text.arm_label(arm)}”", "This arm was not run; add it to --eval.arms."))
        if "seeds" not in evaluation["arms"][text.main_arm(evaluation)]:
            missing.append(
                ("Spread between seeds", "One seed was evaluated: the interval covers trials, not trainings.")
            )
    names = {
        "action_dependence.action": "Dependence on robot actions",
        "policy_subgoal": "The policy's own subgoal",
        "encoder_probe.end_effector": "Probe of the end effector's position",
        "encoder_probe.object": "Probe of the object's position",
        "encoder_probe.object_within_task": "Probe of the object's position less its task's mean",
        "episode_rollouts": "Whole episodes imagined",
        "lpips": "LPIPS of imagined video",
        "fvd": "FVD of imagined video",
    }
    for name, reason in imagine.get("not_measured", {}).items():
        missing.append((names.get(name, name.replace("_", " ").capitalize()), reason))
    arms = {"true": "Whole episodes told their actions", "swapped": "Whole episodes told another's actions"}
    for name, reason in (imagine.get("episode_rollouts") or {}).get("not_measured", {}).items():
        missing.append((arms.get(name, f"Whole episodes: {name.replace('_', ' ')}"), reason))
    return missing
