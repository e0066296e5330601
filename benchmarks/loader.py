"""Windows per second: this library's loader against LeRobot's data set with torch's DataLoader, on the same windows.

A window is 2 frames of 128 px (now and 0.2 s later), the state at both, and 16 actions; batches of 32, 2 workers each.
Both read the same recording on the same disk in the same run, in blocks A B B A A B B A, warm caches on both sides; the
ratio is the median over neighbouring blocks. Before any timing the two must return the same frames, states and actions
for the same windows. Building the frame store, which this library does once, is timed apart and counted in the ratio
of the first epoch.

    python benchmarks/loader.py [--root DATASET] [--seconds 4] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wamkit.data.cache import FrameStore
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.loader import WindowLoader
from wamkit.data.mixture import Mixture
from wamkit.data.windows import MixtureEntry, WindowSpec
from wamkit.evaluation.provenance import collect

BATCH, TOY_BATCH, WORKERS, ACTIONS, LATER_S = 32, 2, 2, 16, 0.2
WARM_UP = 6  # batches before the clock starts: more than either side reads ahead


def lerobot_backend() -> str:
    try:
        import torchcodec  # noqa: F401
    except Exception:  # it needs FFmpeg's libraries on the system, and raises what its loader raises
        return "pyav"
    return "torchcodec"


def lerobot_dataset(source: LeRobotSource, backend: str) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    frames = {f"observation.images.{camera}": [0.0, LATER_S] for camera in source.cameras}
    return LeRobotDataset(
        f"benchmark/{source.root.name}",
        root=source.root,
        delta_timestamps=frames
        | {"observation.state": [0.0, LATER_S], "action": [index / source.fps for index in range(ACTIONS)]},
        video_backend=backend,
    )


def lerobot_loader(dataset: Any, rows: np.ndarray, batch: int) -> Iterator[Any]:
    """Its own data set under torch's DataLoader, in our order of windows."""
    order = list(itertools.islice(itertools.cycle(rows.tolist()), 10**6))
    loader = torch.utils.data.DataLoader(dataset, batch, sampler=order, num_workers=WORKERS, drop_last=True)
    return iter(loader)


class DrawsOfBatches(torch.utils.data.Dataset):
    """Our mixture as a map-style data set of whole batches, for DataLoader's processes."""

    def __init__(self, mixture: Mixture, size: int):
        self.mixture, self.size = mixture, size

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, batch: int) -> Any:
        return vars(self.mixture.window(np.arange(batch * self.size, (batch + 1) * self.size)))


def windows_per_second(batches: Iterable[Any], seconds: float, batch: int) -> float:
    iterator = iter(batches)
    for _ in range(WARM_UP):
        next(iterator)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or count < 8:
        next(iterator)
        count += 1
    return count * batch / elapsed


def ours(mixture: Mixture, seconds: float, batch: int, workers: int = WORKERS) -> float:
    with WindowLoader(mixture, batch, workers=workers) as loader:
        return windows_per_second(loader, seconds, batch)


def difference(mixture: Mixture, dataset: Any, rows: np.ndarray, windows: int = 64) -> dict[str, float]:
    """Largest differences over the first windows; frames in 0..255."""
    source = mixture.entries[0].source
    mine = mixture.window(np.arange(windows))
    worst = {"frames": 0.0, "state": 0.0, "actions": 0.0}
    for place in range(windows):
        theirs = dataset[int(rows[place])]
        for camera in source.cameras:
            key = f"observation.images.{camera}"
            assert (mine.frame_valid[camera][place] == ~theirs[f"{key}_is_pad"]).all(), "padding differs"
            gap = (theirs[key] * 255 - mine.frames[camera][place].float()).abs().max()
            worst["frames"] = max(worst["frames"], float(gap))
        inside = ~theirs["action_is_pad"]
        assert (mine.action_valid[place, :, 0] == inside).all(), "padding differs"
        gap = (theirs["action"] - mine.actions[place])[inside].abs().max()
        worst["actions"] = max(worst["actions"], float(gap))
        worst["state"] = max(worst["state"], float((theirs["observation.state"] - mine.state[place]).abs().max()))
    return worst


def measure(root: Path, cache: Path, seconds: float, batch: int = BATCH) -> dict[str, Any]:
    source = LeRobotSource(root)
    start = time.perf_counter()
    resolution = source.resolution(source.cameras[0])
    store = FrameStore.build(source, cache, resolution=resolution)
    build_s = time.perf_counter() - start
    spec = WindowSpec(frame_offsets_s=(0.0, LATER_S), chunk_s=ACTIONS / source.fps, resolution=resolution)
    mixture = Mixture([MixtureEntry(source=source, frame_store=store)], spec)
    _, episodes, starts = mixture.locate(np.arange(len(mixture)))
    rows = np.array([source.episodes[episode].from_row for episode in episodes]) + starts

    backend = lerobot_backend()
    dataset = lerobot_dataset(source, backend)
    worst = difference(mixture, dataset, rows, windows=2 * batch)
    if worst["frames"] > 1.01 or worst["state"] > 1e-6 or worst["actions"] > 1e-6:
        raise SystemExit(f"the two loaders disagree, so a comparison would mean nothing: {worst}")

    def theirs(seconds: float) -> float:
        return windows_per_second(lerobot_loader(dataset, rows, batch), seconds, batch)

    blocks: list[tuple[str, float]] = []
    for name in 2 * ("lerobot", "ours", "ours", "lerobot"):
        blocks.append((name, ours(mixture, seconds, batch) if name == "ours" else theirs(seconds)))
    # Neighbours in time share whatever else the machine was doing; the median pair forgets a disturbed one.
    pairs = [dict(blocks[at : at + 2]) for at in range(0, len(blocks), 2)]
    ratios = [pair["ours"] / pair["lerobot"] for pair in pairs]
    middle = {name: float(np.median([pair[name] for pair in pairs])) for name in ("ours", "lerobot")}
    processes = torch.utils.data.DataLoader(DrawsOfBatches(mixture, batch), batch_size=None, num_workers=WORKERS)
    size = len(mixture)
    window = f"2 frames of {resolution[0]}x{resolution[1]}, {len(source.cameras)} camera, 2 states, {ACTIONS} actions"
    return {
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        "windows_per_s": middle,
        "blocks": blocks,
        "first_epoch": {
            "windows": size,
            "frame_store_build_s": build_s,
            "ours_s": build_s + size / middle["ours"],
            "lerobot_s": size / middle["lerobot"],
            "ratio": (size / middle["lerobot"]) / (build_s + size / middle["ours"]),
        },
        "ours_by_workers": {
            "foreground": ours(mixture, seconds / 2, batch, 0),
            "1 thread": ours(mixture, seconds / 2, batch, 1),
            "2 threads": middle["ours"],
            "2 processes": windows_per_second(processes, seconds / 2, batch),
        },
        "largest_difference": worst,
        "lerobot_video_backend": backend,
        "window": window,
        "batch": batch,
        "workers": WORKERS,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a LeRobotDataset v3; default: a synthetic one, made for the run")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each block")
    parser.add_argument("--toy", action="store_true", help="small pictures, few windows: it runs, and no more")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args(argv)
    toy = arguments.toy
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.root
        if root is None:
            from wamkit.data.synthetic import make_synthetic_dataset

            root = Path(scratch) / "synthetic"
            sizes = {"episodes": 2, "length": 30} if toy else {"episodes": 10, "length": 150}
            make_synthetic_dataset(root, **sizes, fps=20, resolution=(32, 32) if toy else (128, 128))
        seconds, batch = (0.01, TOY_BATCH) if toy else (arguments.seconds, BATCH)
        result = measure(root, Path(scratch) / "cache", seconds, batch)
    result |= {"toy": toy, "load_average": round(os.getloadavg()[0], 2), "provenance": collect(options=vars(arguments))}
    first, rates = result["first_epoch"], result["windows_per_s"]
    print(
        f"{result['window']}; batch {result['batch']}, {WORKERS} workers;"
        f" LeRobot decodes with {result['lerobot_video_backend']}"
    )
    print(f"same windows, largest difference: {result['largest_difference']}")
    print(f"LeRobot   {rates['lerobot']:10.0f} windows/s")
    pairs = ", ".join(f"{ratio:.0f}" for ratio in result["ratios"])
    print(f"wamkit    {rates['ours']:10.0f} windows/s   ratio {result['ratio']:.1f} (pairs: {pairs})")
    print(
        f"first epoch of {first['windows']} windows: LeRobot {first['lerobot_s']:.1f} s, wamkit {first['ours_s']:.1f} s"
        f" (of which the frame store {first['frame_store_build_s']:.1f} s), ratio {first['ratio']:.1f}"
    )
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
