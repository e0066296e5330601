"""Published LIBERO data sets: both spellings of their keys, both layouts, pictures in parquet files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wamkit.data.embodiments import LIBERO_ACTION, LIBERO_STATE
from wamkit.data.importers import ImportFailure, detect, import_recording
from wamkit.data.lerobot import LeRobotSource

SPELLINGS = {
    "v3.0": ("observation.images.image", "observation.images.image2", "observation.state", "action"),
    "v2.0": ("image", "wrist_image", "state", "actions"),
}
TASKS = ("pick up the milk", "pick up the ketchup")


def picture(shade: int, row: int) -> dict[str, object]:
    pixels = np.full((32, 32, 3), shade, np.uint8)
    pixels[: 4 + 4 * row] = 255 - shade
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def published(root: Path, version: str) -> Path:
    """Two episodes of three rows, as the two kinds of published data sets store them."""
    first, wrist, state, action = SPELLINGS[version]
    rows = pd.DataFrame(
        [
            {
                first: picture(40, row),
                wrist: picture(160, row),
                state: np.arange(8, dtype=np.float32) + 10 * episode + row,
                action: np.append(np.full(6, 0.1 * row, np.float32), np.float32(row % 2)),
                "episode_index": episode,
                "frame_index": row,
                "timestamp": row / 10,
                "task_index": 1 - episode,
            }
            for episode in range(2)
            for row in range(3)
        ]
    )
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta").mkdir()
    if version == "v3.0":
        rows.to_parquet(root / "data/chunk-000/file-000.parquet")
        pd.DataFrame({"task_index": [0, 1]}, index=pd.Index(TASKS)).to_parquet(root / "meta/tasks.parquet")
    else:
        for episode, part in rows.groupby("episode_index"):
            part.to_parquet(root / f"data/chunk-000/episode_{episode:06d}.parquet")
        lines = [json.dumps({"task_index": index, "task": task}) for index, task in enumerate(TASKS)]
        (root / "meta/tasks.jsonl").write_text("\n".join(lines))
    image = {"dtype": "image", "shape": [32, 32, 3]}
    features = {first: image, wrist: image, state: {"dtype": "float32", "shape": [8], "names": ["state"]}}
    features[action] = {"dtype": "float32", "shape": [7], "names": ["actions"]}
    info = {"codebase_version": version, "fps": 10, "robot_type": "panda", "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.mark.parametrize("version", list(SPELLINGS))
def test_it_arrives_under_lerobots_names_for_libero(version, tmp_path):
    root = published(tmp_path / "source", version)
    assert detect(root) == "libero"
    summary = import_recording(root, tmp_path / "out")
    source = LeRobotSource(tmp_path / "out")
    assert (source.embodiment, source.fps, source.cameras) == ("libero", 20.0, ("image", "image2"))
    assert (source.state_names, source.action_names) == (LIBERO_STATE, LIBERO_ACTION)
    assert [episode.task for episode in source.episodes] == [TASKS[1], TASKS[0]]
    np.testing.assert_array_equal(source.column("observation.state")[:, 0], [0, 1, 2, 10, 11, 12])
    np.testing.assert_allclose(source.column("action")[:3, 0], [0, 0.1, 0.2], atol=1e-6)
    assert "the source says 10 Hz" in str(summary)
    assert "gripper commands lie in [0, 1]" in str(summary)
    for camera, shade in (("image", 40), ("image2", 160)):
        frames = source.decode(camera, 1, np.arange(3) / 20).astype(int)
        assert np.abs(frames[:, -8:] - shade).mean() < 6
        assert np.abs(frames[2, :10] - (255 - shade)).mean() < 6  # the third row's own picture


def test_damage_and_misuse_are_told(tmp_path):
    root = published(tmp_path / "source", "v2.0")
    with pytest.raises(ImportFailure, match="--task has no meaning for libero"):
        import_recording(root, tmp_path / "out", task="x")
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": TASKS[0]}))
    with pytest.raises(ImportFailure, match="Episode 0 has task 1"):
        import_recording(root, tmp_path / "out")
    (root / "data/chunk-000/episode_000000.parquet").write_bytes(b"x")
    with pytest.raises(ImportFailure, match="truncated or damaged"):
        import_recording(root, tmp_path / "other")
