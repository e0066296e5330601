"""What the report shows of imagined pictures: error against horizon, dependence on actions, whole episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wamkit.evaluation.report_figures import Curve, curves_chart
from wamkit.evaluation.report_media import ReportFilm, film_entries, image_entry
from wamkit.evaluation.report_text import ratio_text

ROWS = 8
"""Horizons in a table, spread evenly over all that were measured."""
WINDOW_CURVES = (
    ("model", "imagined", 0, False),
    ("copy_present", "copy the present", None, True),
    ("reconstruction", "the tokenizer alone", 2, True),
)
EPISODE_CURVES = (
    ("true", "imagined, told its actions", 0, False),
    ("swapped", "told another episode's", 1, False),
    ("none", "told none", 3, False),
    ("copy_first", "copy the first picture", None, True),
    ("reconstruction", "the tokenizer alone", 2, True),
)
"""Key, name, colour, whether dashed."""


def pixel_section(imagine: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of windows: ``pixel_error`` as chart and table."""
    error = imagine.get("pixel_error")
    if not error:
        return None
    ratios = [None] * len(error["horizon_s"])
    if "ratio" in error:
        pairs = zip(error["ratio"], error["ratio_ci95"], strict=True)
        ratios = [f"{ratio:.2f} ({low:.2f}–{high:.2f})" for ratio, (low, high) in pairs]
    return _curves(error, WINDOW_CURVES) | {"ratios": ratios, "told": imagine.get("forward_dynamics")}


def rollout_section(
    imagine: Mapping[str, Any], films: Sequence[ReportFilm], budget_mb: float = 24.0
) -> dict[str, Any] | None:
    """Of whole episodes: ``episode_rollouts`` as films, chart, table and findings.

    Args:
        imagine: The object of ``imagine.json``.
        films: From `wamkit.evaluation.report_media.films_from_imagine`.
        budget_mb: Films beyond this size are left out.
    """
    rolled = imagine.get("episode_rollouts")
    if not rolled:
        return None
    findings = [
        (words, ratio_text(rolled[name]), _interval(rolled.get(f"{name}_ci95")))
        for name, words in (
            ("over_copy", "Squared error over copying the first picture (below 1 it knows more)"),
            ("swapped_over_true", "Squared error told another episode's actions, over told its own (1 = ignored)"),
            ("none_over_true", "Squared error told no actions, over told its own"),
            ("swap_effect", "How far swapped actions move the video, over how far the recorded one goes (0 = ignored)"),
        )
        if rolled.get(name) is not None
    ]
    shown = _curves(rolled, EPISODE_CURVES)
    ssim = _known(rolled["ssim"], EPISODE_CURVES)
    return shown | {
        "ssim": image_entry(curves_chart(rolled["horizon_s"], ssim, "SSIM")),
        "findings": findings,
        "films": film_entries(films, budget_mb),
        "count": len(rolled["episodes"]),
        "told": rolled["main"] == "true",
        "at": [rolled["episodes_at"][index] for index in shown["indices"]],
    }


def _curves(error: Mapping[str, Any], known: Sequence[tuple[str, str, int | None, bool]]) -> dict[str, Any]:
    """PSNR by horizon as ``chart`` and as the ``rows`` of a table with ``columns``; ``indices`` says of which."""
    horizon, curves = error["horizon_s"], _known(error["psnr"], known)
    last = len(horizon) - 1
    indices = sorted({round(step * last / max(ROWS - 1, 1)) for step in range(ROWS)})
    rows = [
        (f"{horizon[index]:.3g}\u00a0s", ["–" if (v := c.values[index]) is None else f"{v:.1f}" for c in curves])
        for index in indices
    ]
    return {
        "chart": image_entry(curves_chart(horizon, curves, "PSNR (dB)")),
        "columns": [curve.label for curve in curves],
        "rows": rows,
        "indices": indices,
    }


def _known(
    values: Mapping[str, Sequence[float | None]], known: Sequence[tuple[str, str, int | None, bool]]
) -> list[Curve]:
    return [Curve(label, values[key], series, dashed) for key, label, series, dashed in known if key in values]


def _interval(ci95: Sequence[float] | None) -> str:
    if ci95 is None:
        return "no interval of one episode"
    return f"95\u00a0% interval {ratio_text(ci95[0])}–{ratio_text(ci95[1])}"
