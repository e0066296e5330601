"""Training windows of a video model per second: latents from the store against encoding each batch's clips.

Windows are those of Light-WAM's `tiny` policy stage: clips of 5 pictures of 128 px, 16 actions, batches of 32. Both
ways end in the same tensors, which is checked first: the latents of the clip and everything else that a window holds.
The VAE has random weights, which does not change its speed. Blocks A B B A; the ratio is the median over neighbouring
blocks. Filling the store, which is done once, is timed apart.

    python benchmarks/latents.py [--preset tiny] [--seconds 4] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader import commit

from wamkit.data.cache import FrameStore
from wamkit.data.latent_store import LatentStore
from wamkit.data.mixture import Mixture
from wamkit.data.synthetic import make_synthetic_dataset
from wamkit.data.windows import MixtureEntry, WindowSpec
from wamkit.models.light_wam import LightWAM, preset

BATCH = 32


def rate(batch: Callable[[int], Any], seconds: float) -> float:
    """Windows per second; the first batch is not counted."""
    batch(0)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or count < 2:
        count += 1
        batch(count)
    return count * BATCH / elapsed


@torch.no_grad()
def measure(folder: Path, name: str, seconds: float, episodes: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = LightWAM(preset(name)).eval()
    config, encoder = model.config, model.clip_encoder("policy")
    source = make_synthetic_dataset(
        folder / "data",
        episodes=episodes,
        length=60,
        fps=80,
        cameras=config.cameras,
        resolution=config.resolution,
        action_dim=4,
    )
    frames = FrameStore.build(source, folder / "cache", resolution=config.resolution)
    start = time.perf_counter()
    store = LatentStore.build(
        frames,
        encoder,
        encoder_hash=encoder.weights_hash(),
        preprocessing=encoder.preprocessing,
        offsets_s=config.frame_offsets_s,
        directory=folder / "cache",
        cameras={camera: camera for camera in encoder.cameras},
        dtype=np.float16,
    )
    fill_s = time.perf_counter() - start
    shape = dict(
        frame_offsets_s=config.frame_offsets_s,
        resolution=config.resolution,
        chunk_s=config.horizon_s,
        max_actions=config.max_actions,
    )
    stored = Mixture([MixtureEntry(source=source, frame_store=frames, feature_store=store)],
                     WindowSpec(**shape, feature_views=1), None, seed=0)  # fmt: skip
    plain = Mixture([MixtureEntry(source=source, frame_store=frames)], WindowSpec(**shape), None, seed=0)

    def draws(number: int) -> np.ndarray:
        return np.arange(number * BATCH, (number + 1) * BATCH)

    def read(number: int) -> torch.Tensor:
        return model.latents_of(stored.window(draws(number)))[0]

    def encode(number: int) -> torch.Tensor:
        return model.latents_of(plain.window(draws(number)))[0]

    worst = float((read(0) - encode(0)).abs().max() / encode(0).abs().max())
    if worst > 1e-2:
        raise SystemExit(f"stored and encoded latents differ by {worst:.3f} of their size: a comparison means nothing")
    blocks = [
        (way, rate(read if way == "store" else encode, seconds)) for way in ("encode", "store", "store", "encode")
    ]
    pairs = [dict(blocks[at : at + 2]) for at in range(0, len(blocks), 2)]
    return {
        "ratio": float(np.median([pair["store"] / pair["encode"] for pair in pairs])),
        "windows_per_s": {way: float(np.median([pair[way] for pair in pairs])) for way in ("store", "encode")},
        "blocks": blocks,
        "fill_s": fill_s,
        "clips": int(frames.counts.sum()),
        "bytes_per_clip": int(np.prod(store.gather(config.cameras[0], np.zeros(1), np.zeros((1, 1), int)).shape[1:]))
        * 2,
        "largest_relative_difference": worst,
        "batch": BATCH,
        "preset": name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=("tiny", "small"))
    parser.add_argument("--seconds", type=float, default=4.0, help="for each block")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(Path(scratch), arguments.preset, arguments.seconds, arguments.episodes)
    result |= {
        "benchmark": "latents",
        "commit": commit(),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch_threads": 1,
        },
    }
    print(f"windows per second: {result['windows_per_s']}; the store is {result['ratio']:.1f} times as fast")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
