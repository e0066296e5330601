"""wandb for real, offline: what was logged lies in its file, and a resumed training continues the same run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from wamkit.training.log import TrainingLog, WandbTracker

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow


def logged(folder: Path) -> tuple[list[dict[str, float]], str]:
    """The history that an offline run left on the disk, and the run's id, once wandb's own process has written it."""
    end = time.monotonic() + 60.0
    while not (found := _on_disk(folder))[1] and time.monotonic() < end:
        time.sleep(0.5)
    return found


def _on_disk(folder: Path) -> tuple[list[dict[str, float]], str]:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (file,) = folder.glob("*.wandb")
    store, rows, identity, ended = DataStore(), [], "", False
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            identity = record.run.run_id
        elif kind == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append(row | {"step": record.history.step.num})
        ended |= kind == "exit"
    return rows, identity if ended else ""


def test_a_run_is_logged_and_continued(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for kind in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind.lower()))
    found = []
    for first in (1, 3):
        log = TrainingLog(tmp_path, first - 1, WandbTracker(tmp_path, "a run", {"seed": 0, "stages": ["policy"]}))
        for step in (first, first + 1):
            log.write({"step": step, "stage": "policy", "loss": 1.0 / step})
        log.close()
        newest = max((tmp_path / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime_ns)
        found.append(logged(newest))
        time.sleep(1.0)  # wandb names a run's folder by the second, and no training is resumed within one
    assert found[0][1] == found[1][1] == (tmp_path / "wandb_run_id.txt").read_text()
    rows = [row for rows, _ in found for row in rows]
    assert [(row["step"], row["policy/loss"]) for row in rows] == [(step, 1.0 / step) for step in (1, 2, 3, 4)]
    assert len((tmp_path / "train_log.jsonl").read_text().splitlines()) == 4
