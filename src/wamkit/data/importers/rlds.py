"""RLDS data sets (Open X-Embodiment) from their tfrecord files, without TensorFlow.

A record is an episode: ``steps/...`` features hold all steps one after the other, images as JPEG or PNG.
``features.json`` says their shapes; the control rate is in none of the files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from wamkit.data.importers.base import (
    ImportFailure,
    ImportOptions,
    ImportSummary,
    Layout,
    Progress,
    Recording,
    Rows,
    even_size,
    read_source,
    refuse_options,
    write_recordings,
)
from wamkit.data.importers.tfrecord import Value, parse_example, read_records

KNOWN = {
    "bridge": (5, "bridge"),
    "fractal20220817_data": (3, "rt1"),
    "droid": (15, "droid"),
    "libero": (20, "libero"),
}
"""Start of a data set's name -> (control rate in Hz, embodiment), from the data sets' papers."""


_PROBED_EPISODES = 8


def understands(source: Path) -> bool:
    """Whether a folder, or a version folder below it, holds an RLDS data set."""
    return bool(_version_folders(source))


def import_rlds(
    source: Path, output_dir: Path, options: ImportOptions = ImportOptions(), *, progress: Progress | None = None
) -> ImportSummary:
    """Imports all splits of an RLDS data set.

    Columns: ``steps/observation/state`` and ``steps/action``; every image of the observation is a camera. For a view
    that an episode lacks, RLDS stores dummies of one colour: it is recorded black and listed as absent. (The flags
    ``episode_metadata/has_<view>`` are not believed: files exist where they are False for views that are there.) A
    view that none of the first episodes has is left out.

    Args:
        source: The data set's folder (with ``dataset_info.json``), or one above it.
        output_dir: Where the data set goes.
        options: Which episodes, named ``<split>/<number>`` (with several files to a split,
            ``<split>-<file>/<number>``); ``fps`` and ``embodiment`` for data sets not in :data:`KNOWN`. With
            ``skip_broken``, what follows the damage in a file is left out.
        progress: Called after each episode.

    Returns:
        What was imported.

    Raises:
        ImportFailure: If a file is truncated or damaged, or the rate is unknown.
    """
    folders = _version_folders(source)
    if not folders:
        raise ImportFailure(f"{source} has no features.json beside *.tfrecord-* files: check the path.")
    if len(folders) > 1:
        raise ImportFailure(f"{source} holds {len(folders)} data sets: name one, such as {folders[0]}.")
    folder = folders[0]
    refuse_options("rlds", options, task="each step has its own instruction")
    name = str(read_source(folder / "dataset_info.json").get("name", folder.parent.name))
    rate, embodiment = _rate(name, options)
    steps = _steps(read_source(folder / "features.json"), folder)
    cameras = _images_of(steps)
    first = [
        example for _, example in islice(_episodes(folder), _PROBED_EPISODES) if not isinstance(example, Exception)
    ]
    if not first:
        raise ImportFailure(f"{folder} holds no episodes: restore its tfrecord files.")
    dummies = [camera for camera in cameras if all(_dummy(example, camera) for example in first)]
    sizes = {
        camera: even_size(*_decode(_bytes(first[0], f"steps/observation/{camera}")[0]).shape[:2])
        for camera in cameras
        if camera not in dummies
    }
    notes = [f"{rate} Hz, the rate of {name}; the files do not hold it"]
    notes += [f"{camera} is a dummy in the first {len(first)} episodes and left out" for camera in dummies]
    layout = Layout(
        fps=rate,
        cameras=sizes,
        embodiment=embodiment,
        state_names=_dimension_names("state", _size(steps.get("observation", {}).get("state"))),
        action_names=_dimension_names("action", _size(steps.get("action"))),
        notes=tuple(notes),
    )
    recordings = (
        Recording(name=episode, load=lambda example=example: _load(example, layout))
        for episode, example in _episodes(folder)
    )
    return write_recordings("rlds", source, output_dir, layout, recordings, options, progress=progress)


def _version_folders(source: Path) -> list[Path]:
    candidates = [source, *sorted(source.glob("*")), *sorted(source.glob("*/*"))]
    return [path for path in candidates if (path / "features.json").is_file() and any(path.glob("*.tfrecord-*"))]


def _rate(name: str, options: ImportOptions) -> tuple[int, str]:
    rate, embodiment = next((facts for start, facts in KNOWN.items() if name.startswith(start)), (None, "custom"))
    rate = options.fps or rate
    if rate is None:
        raise ImportFailure(f"RLDS files do not hold the control rate of {name!r}: say it with --fps.")
    return rate, options.embodiment or embodiment


def _steps(features: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    try:
        steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    except KeyError as error:
        raise ImportFailure(f"{folder / 'features.json'} has no steps ({error}): it is not RLDS.") from error
    observation = steps.get("observation", {}).get("featuresDict", {}).get("features", {})
    return {**steps, "observation": observation}


def _images_of(steps: Mapping[str, Any]) -> list[str]:
    return sorted(key for key, feature in steps["observation"].items() if "image" in feature)


def _size(feature: Mapping[str, Any] | None) -> int:
    if feature is None:
        return 0
    return int(np.prod([int(size) for size in feature["tensor"]["shape"].get("dimensions", [])], dtype=int))


def _dimension_names(name: str, size: int) -> tuple[str, ...]:
    return tuple(f"{name}_{index}" for index in range(size))


def _episodes(folder: Path) -> Iterator[tuple[str, dict[str, Value] | ImportFailure]]:
    """(name, features) of every record, in the order of the files; the damage, where a file cannot be read on."""
    for path in sorted(folder.glob("*.tfrecord-*")):
        start, _, part = path.name.partition(".tfrecord-")
        split, (number, _, of) = start.rsplit("-", 1)[-1], part.partition("-of-")
        split = split if of == "00001" else f"{split}-{number}"
        count = 0
        try:
            for count, record in enumerate(read_records(path), start=1):
                yield f"{split}/{count - 1}", parse_example(record)
        except ImportFailure as error:
            yield f"{split}/{count}", error


def _load(example: Mapping[str, Value] | ImportFailure, layout: Layout) -> Rows:
    if isinstance(example, ImportFailure):
        raise example
    length = max((len(_bytes(example, f"steps/observation/{camera}")) for camera in layout.cameras), default=0)
    columns = {}
    for column, key, names in (
        ("observation.state", "steps/observation/state", layout.state_names),
        ("action", "steps/action", layout.action_names),
    ):
        if not names:
            continue
        values = np.asarray(example.get(key, []), dtype=np.float32)
        length = length or len(values) // len(names)
        if values.size != length * len(names):
            raise ImportFailure(f"{key} has {values.size} numbers for {length} steps of {len(names)}: restore the file")
        columns[column] = values.reshape(length, len(names))
    absent = tuple(camera for camera in layout.cameras if _dummy(example, camera))
    instruction = example.get("steps/language_instruction", [])
    texts = [text.decode(errors="replace").strip() for text in instruction if isinstance(text, bytes)]
    return Rows(
        length=length,
        images=_frames(example, layout, absent, length),
        columns=columns,
        task=texts[0] if texts else "",
        absent_cameras=absent,
    )


def _dummy(example: Mapping[str, Value], camera: str) -> bool:
    images = _bytes(example, f"steps/observation/{camera}")
    return all(_decode(image).std() == 0.0 for image in {images[0], images[-1]})


def _frames(
    example: Mapping[str, Value], layout: Layout, absent: tuple[str, ...], length: int
) -> Iterator[Mapping[str, np.ndarray]]:
    black = {camera: np.zeros((*layout.cameras[camera], 3), np.uint8) for camera in absent}
    seen = {c: _bytes(example, f"steps/observation/{c}") for c in layout.cameras if c not in absent}
    for row in range(length):
        yield black | {camera: _decode(images[row]) for camera, images in seen.items()}


def _bytes(example: Mapping[str, Value], key: str) -> list[bytes]:
    values = example.get(key)
    if not isinstance(values, list):
        raise ImportFailure(f"an episode lacks {key}: restore the file, or leave it out")
    return values


def _decode(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ImportFailure(f"an image cannot be decoded ({error}): restore the file") from error
