"""Videos and pictures of the report, embedded as data."""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wamkit.errors import WamkitError
from wamkit.evaluation import report_text as text
from wamkit.evaluation.report_figures import Chart


@dataclass(frozen=True)
class ReportVideo:
    """A recorded episode to show."""

    path: Path
    arm: str
    task: str
    trial: int
    success: bool
    note: str = ""


@dataclass(frozen=True)
class ReportFigure:
    """A further picture for the report: PNG bytes or a `Chart`, with a title and a caption."""

    title: str
    image: bytes | Chart
    caption: str = ""


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_entry(image: bytes | Chart, alt: str = "") -> dict[str, str]:
    """A picture as the template takes it: ``light``, ``dark`` (or empty) and ``alt``."""
    if isinstance(image, Chart):
        light, dark = (data_uri(part, "image/png") for part in (image.light, image.dark))
        return {"light": light, "dark": dark, "alt": image.alt or alt}
    kind = "image/jpeg" if image[:2] == b"\xff\xd8" else "image/png"
    return {"light": data_uri(image, kind), "dark": "", "alt": alt}


def _poster(path: Path) -> str:
    """The middle frame of a video, so that a page that is printed or not yet played shows something."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = stream.frames or 1
            for index, frame in enumerate(container.decode(stream)):
                if index >= frames // 2:
                    buffer = io.BytesIO()
                    frame.to_image().save(buffer, format="JPEG", quality=80)
                    return data_uri(buffer.getvalue(), "image/jpeg")
    except (FFmpegError, IndexError) as error:
        raise WamkitError(f"The video {path} cannot be decoded ({error}): evaluate again to record it anew.") from None
    return ""


@dataclass(frozen=True)
class ReportFilm:
    """An imagined episode to show beside the recorded one."""

    path: Path
    caption: str


def films_from_imagine(imagine: Mapping[str, Any], root: Path) -> list[ReportFilm]:
    """The films that the roll-outs of an ``imagine.json`` name.

    Args:
        imagine: The object of ``imagine.json``.
        root: The folder that the paths are relative to.
    """
    found = []
    for episode in (imagine.get("episode_rollouts") or {}).get("episodes", ()):
        if episode["film"]:
            task = f"“{episode['task']}”" if episode["task"] else "no instruction"
            caption = f"Episode {episode['episode']}, {task}, {episode['seconds']:.1f}{text.NBSP}s"
            if episode["swapped_with"] is not None:
                caption += f"; on the right it is told what was done in episode {episode['swapped_with']}"
            found.append(ReportFilm(Path(root) / episode["film"], caption))
    return found


def film_entries(films: Sequence[ReportFilm], budget_mb: float) -> list[dict[str, str]]:
    """Films as the template takes them, up to a size; of those beyond it the caption says that they are left out."""
    entries, size = [], 0
    for film in films:
        path = Path(film.path)
        if not path.is_file():
            raise WamkitError(f"There is no film {path}: run wam imagine again, or leave it out of the report.")
        size += path.stat().st_size
        if size > budget_mb * 2**20:
            entries.append({"caption": f"{film.caption}; left out here for its size, see {path.name}", "source": ""})
            continue
        source = data_uri(path.read_bytes(), mimetypes.guess_type(path.name)[0] or "video/mp4")
        entries.append({"caption": film.caption, "source": source, "poster": _poster(path)})
    return entries


def videos_from_eval(
    evaluation: Mapping[str, Any], root: Path, *, arms: Sequence[str] | None = None, per_cell: int = 2
) -> list[ReportVideo]:
    """Videos that the episodes of an ``eval.json`` name, a few for each arm, task and outcome; failures first.

    Args:
        evaluation: The object of ``eval.json``.
        root: The folder that the episodes' ``video`` paths are relative to.
        arms: Which arms; all by default.
        per_cell: At most so many successes and so many failures for each arm and task, lowest trials first.
    """
    taken: dict[tuple[str, str, bool], int] = {}
    found = []
    for episode in sorted(evaluation["episodes"], key=lambda e: (e["success"], e["task"], e["seed"], e["trial"])):
        cell = (episode["arm"], episode["task"], episode["success"])
        if not episode.get("video") or (arms is not None and episode["arm"] not in arms):
            continue
        if taken.get(cell, 0) < per_cell:
            taken[cell] = taken.get(cell, 0) + 1
            found.append(ReportVideo(Path(root) / episode["video"], cell[0], cell[1], episode["trial"], cell[2]))
    return found


def gallery(videos: Iterable[ReportVideo], budget_mb: float) -> dict[str, Any]:
    """Videos by arm, the policy first, as the template takes them; those beyond the budget are counted."""
    groups: dict[str, list[dict[str, Any]]] = {}
    left_out, size = 0, 0
    order = {"policy": 0}
    for video in sorted(videos, key=lambda v: (order.get(v.arm, 1), v.arm)):
        path = Path(video.path)
        if not path.is_file():
            raise WamkitError(f"There is no video {path}: leave it out of the report or evaluate again.")
        size += path.stat().st_size
        if size > budget_mb * 2**20:
            left_out += 1
            continue
        kind = mimetypes.guess_type(path.name)[0] or "video/mp4"
        groups.setdefault(text.arm_label(video.arm), []).append(
            {
                "source": data_uri(path.read_bytes(), kind),
                "poster": _poster(path),
                "task": video.task,
                "trial": video.trial,
                "success": video.success,
                "note": video.note,
            }
        )
    return {"groups": groups, "left_out": left_out, "budget_mb": budget_mb}
