"""Pictures of the report: curves in a light and a dark version, and heat maps laid over camera frames."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from wamkit.errors import WamkitError


@dataclass(frozen=True, kw_only=True)
class SubgoalExample:
    """One imagined subgoal over the frame it starts from (LaWAM, appendix B)."""

    now: UInt8[np.ndarray, "H W 3"]
    later: UInt8[np.ndarray, "H W 3"]
    """The true frame one horizon later."""
    grid: tuple[int, int]
    """Rows and columns of patches, N in all."""
    patch: int
    """The patch of the present that is looked for in the future; a mover, such as the gripper."""
    similarity_predicted: Float[np.ndarray, "N"]
    """Its cosine similarity with every patch of the predicted subgoal."""
    similarity_true: Float[np.ndarray, "N"]
    change_predicted: Float[np.ndarray, "N"]
    """Distance of every patch between present and predicted subgoal."""
    change_true: Float[np.ndarray, "N"]
    label: str
    horizon_s: float
    source: str = ""
    """Where the subgoal came from."""


@dataclass(frozen=True, kw_only=True)
class TransferExample:
    """The latent action between two frames of one scene, applied to another scene."""

    source_now: UInt8[np.ndarray, "H W 3"]
    source_later: UInt8[np.ndarray, "H W 3"]
    source_change: Float[np.ndarray, "N"]
    target_now: UInt8[np.ndarray, "H W 3"]
    target_change: Float[np.ndarray, "N"]
    """Distance of every patch between the other scene's present and what is predicted for it."""
    grid: tuple[int, int]
    source_label: str
    target_label: str


@dataclass(frozen=True)
class Chart:
    """One figure as PNG for both colour schemes, and the words for who cannot see it."""

    light: bytes
    dark: bytes
    alt: str


@dataclass(frozen=True)
class Theme:
    """Colours of a chart; the background is left transparent."""

    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]


# Series colours after Okabe and Ito (told apart by all common kinds of colour vision), lightened for the dark page.
LIGHT = Theme("#1d2430", "#667085", "#e3e6eb", ("#0b62b8", "#c24f00", "#00795a", "#a8437f", "#8a6d00", "#3d8fc4"))
DARK = Theme("#e6e9ee", "#98a2b3", "#2f3744", ("#6cb2f5", "#f0954e", "#3ccb9d", "#e08fc0", "#e0c24a", "#9ad0f0"))

BOOKKEEPING = frozenset(
    {
        "step", "stage", "stage_step", "lr", "learning_rate", "samples_per_s", "data_wait_ratio", "rss_mb", "epoch",
        "grad_norm", "seconds", "time",
    }
)  # fmt: skip
"""Fields of a training log that are no losses."""


def _figure(theme: Theme, columns: int = 1, width: float = 7.2, height: float = 2.9):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.patch.set_alpha(0.0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(theme.muted)
        axis.tick_params(colors=theme.muted, labelsize=8, length=3)
        axis.xaxis.label.set_color(theme.muted)
        axis.yaxis.label.set_color(theme.muted)
        axis.grid(axis="y", color=theme.grid, linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    # Without the software's name and version the same data give the same bytes.
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def _legend(figure, theme: Theme, columns: int) -> None:
    """Below the axes, in a figure that grows by its rows: it never lies on a curve."""
    entries = len(figure.axes[0].get_lines())
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-entries // columns))
    figure.legend(
        loc="outside lower center", ncols=columns, frameon=False, fontsize=8, labelcolor=theme.ink, handlelength=1.6
    )


def horizon_chart(feature_error: Mapping[str, Any]) -> Chart:
    """Error against horizon, the model beside copy-the-present.

    Args:
        feature_error: The entry of ``imagine.json``.
    """
    horizon = feature_error["horizon_s"]

    def draw(theme: Theme) -> bytes:
        figure, (axis,) = _figure(theme)
        lines = (("model", "world model, open loop", "-"), ("copy_present", "copy the present", "--"))
        for colour, (key, label, style) in zip((theme.series[0], theme.muted), lines, strict=True):
            axis.plot(
                horizon, feature_error[key], style, color=colour, marker="o", markersize=4, linewidth=2, label=label
            )
        if "policy" in feature_error:
            axis.plot(
                horizon[:1], [feature_error["policy"]["model"]], "D", color=theme.series[1], markersize=6,
                label="policy's own subgoal", linestyle="none",
            )  # fmt: skip
        axis.set_xlabel("horizon (s)", fontsize=8.5)
        axis.set_ylabel("standardised feature error", fontsize=8.5)
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        _legend(figure, theme, columns=3)
        return _png(figure)

    words = "; ".join(
        f"at {t:.2g} s {model:.3f} against {copy:.3f}"
        for t, model, copy in zip(horizon, feature_error["model"], feature_error["copy_present"], strict=True)
    )
    return Chart(draw(LIGHT), draw(DARK), f"Feature error of the world model against copying the present: {words}.")


@dataclass(frozen=True)
class Curve:
    """One line of a `curves_chart`."""

    label: str
    values: Sequence[float | None]
    """None where there is nothing."""
    series: int | None
    """Which of the theme's colours; None: grey."""
    dashed: bool = False


def curves_chart(horizon_s: Sequence[float], curves: Sequence[Curve], unit: str) -> Chart:
    """Some quantity against the horizon.

    Args:
        horizon_s: The times.
        curves: Of that many values each; where they meet, the first lies on top.
        unit: What they are, for the axis.
    """

    def draw(theme: Theme) -> bytes:
        figure, (axis,) = _figure(theme)
        for order, curve in enumerate(curves):
            known = [(t, value) for t, value in zip(horizon_s, curve.values, strict=True) if value is not None]
            axis.plot(
                [t for t, _ in known], [value for _, value in known], "--" if curve.dashed else "-", linewidth=2,
                color=theme.muted if curve.series is None else theme.series[curve.series], label=curve.label,
                marker="o" if len(known) < 12 else None, markersize=4, zorder=3 - order / len(curves),
            )  # fmt: skip
        axis.set_xlabel("horizon (s)", fontsize=8.5)
        axis.set_ylabel(unit, fontsize=8.5)
        axis.set_xlim(left=0)
        _legend(figure, theme, columns=3)
        return _png(figure)

    def ends(curve: Curve) -> str:
        known = [value for value in curve.values if value is not None]
        return f"{curve.label} from {known[0]:.3g} to {known[-1]:.3g}" if known else f"{curve.label} nowhere"

    words = "; ".join(ends(curve) for curve in curves)
    return Chart(draw(LIGHT), draw(DARK), f"{unit} up to {horizon_s[-1]:.2g} s ahead: {words}.")


def training_charts(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, Chart]]:
    """Loss curves, one chart for each stage in the order of the log.

    Args:
        records: Lines of ``train_log.jsonl``: ``stage``, ``step`` (or ``stage_step``), and losses by name; those
            of ``validation/<name>`` are drawn dashed.

    Returns:
        Stage name and chart; a stage without any loss is left out.
    """
    stages: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for record in records:
        step = record.get("stage_step", record.get("step"))
        if step is None:
            raise WamkitError(
                "A line of the training log has no 'step': give the train_log.jsonl that `wam train` wrote."
            )
        series = stages.setdefault(str(record.get("stage", "training")), {})
        for name, value in record.items():
            if name not in BOOKKEEPING and isinstance(value, (int, float)) and not isinstance(value, bool):
                x, y = series.setdefault(name, ([], []))
                x.append(step)
                y.append(value)
    return [(stage, _training_chart(stage, series)) for stage, series in stages.items() if series]


def _training_chart(stage: str, series: Mapping[str, tuple[list[float], list[float]]]) -> Chart:
    def plain(name: str) -> str:
        return name.removeprefix("validation/")

    names = list(dict.fromkeys(plain(name) for name in series))

    def draw(theme: Theme) -> bytes:
        figure, (axis,) = _figure(theme, width=3.8, height=2.4)
        positive = [y for _, values in series.values() for y in values if y > 0]
        for name, (x, y) in series.items():
            colour = theme.ink if plain(name) == "loss" else theme.series[names.index(plain(name)) % len(theme.series)]
            held_out = name != plain(name)
            axis.plot(
                x, y, "--" if held_out else "-", color=colour, linewidth=2.0 if plain(name) == "loss" else 1.4,
                marker="o" if held_out or len(x) == 1 else None, markersize=3,
                label=plain(name) + (" (held out)" if held_out else ""),
            )  # fmt: skip
        # Terms of one stage lie decades apart; a log axis needs them positive.
        if positive and len(positive) == sum(len(y) for _, y in series.values()):
            axis.set_yscale("log")
        axis.set_xlabel("step", fontsize=8.5)
        _legend(figure, theme, columns=2)
        return _png(figure)

    words = "; ".join(f"{name} from {y[0]:.3g} to {y[-1]:.3g}" for name, (_, y) in series.items())
    return Chart(draw(LIGHT), draw(DARK), f"Training of stage {stage}: {words}.")


def _enlarged(frame: UInt8[np.ndarray, "H W 3"], side: int):
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(frame)).convert("RGB")
    factor = max(1.0, side / max(image.size))
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def _jpeg(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def photo(
    frame: UInt8[np.ndarray, "H W 3"], *, grid: tuple[int, int] | None = None, patch: int | None = None, side: int = 256
) -> bytes:
    """A frame as JPEG, with one patch in a green box where asked for."""
    from PIL import ImageDraw

    image = _enlarged(frame, side)
    if patch is not None and grid is not None:
        rows, columns = grid
        row, column = divmod(patch, columns)
        height, width = image.height / rows, image.width / columns
        box = [column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1]
        # Dark under bright: the box stands out on any background.
        ImageDraw.Draw(image).rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline=(0, 60, 20), width=5)
        ImageDraw.Draw(image).rectangle(box, outline=(60, 230, 110), width=3)
    return _jpeg(image)


def overlay(
    frame: UInt8[np.ndarray, "H W 3"],
    heat: Float[np.ndarray, "N"],
    grid: tuple[int, int],
    *,
    low: float,
    high: float,
    colours: str = "inferno",
    side: int = 256,
) -> bytes:
    """A heat map over a grey version of the frame, as JPEG; what is at ``low`` shows the frame alone.

    Args:
        frame: The picture underneath.
        heat: A value for each patch, row by row.
        grid: Rows and columns.
        low: The value without colour; maps to be compared share ``low`` and ``high``.
        high: The value of full colour.
        colours: A matplotlib colour map of even lightness.
        side: Length of the longer side in pixels, at least.
    """
    from matplotlib import colormaps
    from PIL import Image

    if heat.shape != (grid[0] * grid[1],):
        raise WamkitError(f"A heat map of {heat.shape} values does not fit a grid of {grid[0]} x {grid[1]} patches.")
    if not np.isfinite(heat).all():
        raise WamkitError("A heat map holds values that are not finite: the model's prediction is broken.")
    image = _enlarged(frame, side)
    level = np.clip((heat.reshape(grid) - low) / max(high - low, 1e-12), 0.0, 1.0)
    smooth = Image.fromarray((255 * level).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    level = np.asarray(smooth, dtype=np.float32) / 255
    # Grey and dimmed, so that all colour in the picture is the heat map's.
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32) * 0.75
    tint = colormaps[colours](0.15 + 0.85 * level)[..., :3] * 255
    alpha = (0.85 * np.sqrt(level))[..., None]
    return _jpeg(Image.fromarray((grey * (1 - alpha) + tint * alpha).clip(0, 255).astype(np.uint8)))


def subgoal_panels(example: SubgoalExample) -> list[tuple[bytes, str]]:
    """The pictures of one subgoal example with their captions; predicted and true share a scale."""
    top = float(np.quantile(np.concatenate([example.change_true, example.change_predicted]), 0.99))
    sharp = float(max(example.similarity_true.max(), example.similarity_predicted.max()))
    # Half of the best similarity is background: showing it would tint the whole picture.
    similar = {"low": 0.4 * sharp, "high": sharp, "colours": "viridis"}
    changed = {"low": 0.1 * top, "high": top, "colours": "inferno"}
    grid, seconds = example.grid, f"{example.horizon_s:.2g}\u00a0s"
    return [
        (photo(example.now, grid=grid, patch=example.patch), "now; the patch looked for"),
        (overlay(example.now, example.similarity_predicted, grid, **similar), f"where it is imagined in {seconds}"),
        (overlay(example.later, example.similarity_true, grid, **similar), f"where it really is in {seconds}"),
        (overlay(example.now, example.change_predicted, grid, **changed), "change imagined"),
        (overlay(example.now, example.change_true, grid, **changed), "change that came"),
        (photo(example.later), f"the true frame {seconds} later"),
    ]


def transfer_panels(example: TransferExample) -> list[tuple[bytes, str]]:
    """The pictures of one transfer example with their captions; each map has its own scale."""

    def changed(frame: np.ndarray, heat: np.ndarray) -> bytes:
        top = float(np.quantile(heat, 0.99))
        return overlay(frame, heat, example.grid, low=0.1 * top, high=top)

    return [
        (photo(example.source_now), f"scene A now ({example.source_label})"),
        (photo(example.source_later), "scene A one horizon later"),
        (changed(example.source_now, example.source_change), "change in A: the latent action is read here"),
        (photo(example.target_now), f"scene B now ({example.target_label})"),
        (changed(example.target_now, example.target_change), "change imagined in B under A's latent action"),
    ]


def save_examples(path: Path, subgoals: Sequence[SubgoalExample], transfers: Sequence[TransferExample]) -> Path:
    """Keep examples for a later ``wam report``; read back by `load_examples`."""
    arrays: dict[str, Any] = {"counts": np.array([len(subgoals), len(transfers)])}
    for kind, items in (("subgoal", subgoals), ("transfer", transfers)):
        for index, item in enumerate(items):
            arrays |= {f"{kind}/{index}/{name}": np.asarray(value) for name, value in asdict(item).items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("wb") as file:
        np.savez_compressed(file, **arrays)
    return Path(path)


def load_examples(path: Path) -> tuple[list[SubgoalExample], list[TransferExample]]:
    """Examples that `save_examples` kept."""
    with np.load(path, allow_pickle=False) as arrays:

        def read(kind: str, cls: type, index: int) -> Any:
            values = {field.name: arrays[f"{kind}/{index}/{field.name}"] for field in fields(cls)}
            plain = {name: value.item() if value.ndim == 0 else value for name, value in values.items()}
            return cls(**plain | {"grid": tuple(int(side) for side in values["grid"])})

        first, second = (int(count) for count in arrays["counts"])
        return (
            [read("subgoal", SubgoalExample, i) for i in range(first)],
            [read("transfer", TransferExample, i) for i in range(second)],
        )
