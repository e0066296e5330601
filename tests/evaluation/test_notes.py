"""What a simulator says must stand beside its numbers does: in the episodes, in eval.json, in the report."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fake_world import FakeFactory, FakeWorld

from wamkit.evaluation.arms import NoOpArm
from wamkit.evaluation.provenance import LIBRARIES
from wamkit.evaluation.report import write_report
from wamkit.evaluation.results import build_eval, load_eval, write_eval
from wamkit.evaluation.workers import Job, _Worker

NOTE = "LIBERO with stand-in visuals"


class NotedFactory(FakeFactory):
    def __call__(self, task: str) -> FakeWorld:
        world = super().__call__(task)
        world._spec = dataclasses.replace(world._spec, notes=(NOTE,))
        return world


class Pipe:
    def __init__(self) -> None:
        self.sent = []

    def send(self, message) -> None:
        self.sent.append(message)


def episode(make, task: str) -> dict:
    """One episode, as a worker reports it."""
    pipe = Pipe()
    worker = _Worker(make, pipe, [{}], slots=1)  # type: ignore[arg-type]
    worker.start(
        0, Job(task=task, trial=0, split="eval", seed=0, actor=NoOpArm(), images=False, video=None, keep_success=True)
    )
    (kind, _, result), *_ = pipe.sent
    assert kind == "done"
    result.pop("filmed")
    return {"arm": "no_op", "task": task, "trial": 0, "seed": 0, "retries": 0, **result}


def test_a_note_reaches_eval_json_and_the_report(tmp_path):
    episodes = [episode(NotedFactory(max_steps=3), "line"), episode(FakeFactory(max_steps=3), "line-2")]
    assert episodes[0]["notes"] == [NOTE]
    assert "notes" not in episodes[1]
    path = write_eval(tmp_path / "eval.json", build_eval(episodes, {}))
    assert load_eval(path)["notes"] == [NOTE]
    assert NOTE in write_report(tmp_path / "report.html", eval=path, notes=["and this"]).read_text()
    assert "notes" not in build_eval(episodes[1:], {})


def test_liberos_versions_are_part_of_a_result():
    assert {"hf-libero", "robosuite", "mujoco"} <= set(LIBRARIES)
