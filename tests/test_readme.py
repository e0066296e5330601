"""Every fenced python and bash block of the README and the documentation runs, in order, at toy size.

What is substituted, and nothing else:
- ``wam ...`` lines run in this process, in one folder that is empty at first, a line that stands on two pages once;
  ``make``, ``git`` and ``cd`` lines are in blocks without a language and are not run.
- Sizes: TOY holds flags appended to a verb, so that recordings, stages and evaluations are as small as they can be.
- ``recordings/droid`` is the folder of that name among the real recordings; without it the line is left out.
- ``outputs/demo`` in a python block is the run that the bash blocks before it trained.
- ``observation`` is the first frame of the recording that they made.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from wamkit.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/quickstart.md", "docs/data.md")
CONTINUED_LINE = re.compile(r"\\\n\s*")

TOY = {
    "record": "--workers 0 --video_rate_hz 20",
    "import": "--limit 1",
    "train": "--dataset.holdout_episodes 2 --validation_batches 1 --logger none "
    + " ".join(
        f"--stages.{stage}.steps 1 --stages.{stage}.warmup_steps 0 --stages.{stage}.batch_size 2"
        for stage in ("encoder", "latent_action", "policy")
    ),
    "eval": "--eval.max_steps 20 --eval.videos 1 --eval.workers 1 --eval.arms policy,no_op",
    "imagine": "--windows 16",
}
FEWER = {"--episodes": "3", "--eval.n_episodes": "1"}


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (REPOSITORY / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def command_lines(page: str) -> list[str]:
    """The lines of the bash blocks, continued lines joined."""
    joined = (CONTINUED_LINE.sub(" ", block) for block in blocks(page, "bash"))
    return [line.strip() for block in joined for line in block.splitlines() if line.strip() and line[0] != "#"]


def toy(line: str) -> list[str]:
    """The arguments of a ``wam`` line at toy size."""
    arguments = shlex.split(line, comments=True)[1:]
    for flag, value in FEWER.items():
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = value
    return arguments + shlex.split(TOY.get(arguments[0], ""))


def test_bash_blocks_hold_only_wam():
    lines = [line for page in PAGES for line in command_lines(page)]
    assert len(lines) > 5
    for line in lines:
        assert line.startswith("wam "), f"a bash block is run in the tests, and only wam lines can be: {line}"


def test_readme_links_exist():
    for page in ("README.md", *(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))):
        folder = (REPOSITORY / page).parent
        for target in re.findall(r"\]\(([^)#]+)\)", (REPOSITORY / page).read_text()):
            if "://" not in target:
                assert (folder / target).exists(), f"{page} links to {target}"


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("rendering")
def test_the_pages_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recordings = (REPOSITORY / os.environ.get("WAMKIT_TEST_DATA", "../shared/data")).resolve()
    if recordings.is_dir():
        (tmp_path / "recordings").symlink_to(recordings)
    for line in dict.fromkeys(line for page in PAGES for line in command_lines(page)):
        if "recordings/" not in line or recordings.is_dir():
            assert main([*toy(line), "--debug"]) == 0, line
    (tmp_path / "outputs/demo").symlink_to(tmp_path / "outputs/button")
    namespace = {"observation": first_observation(tmp_path / "data/button")}
    for page in PAGES:
        for block in blocks(page, "python"):
            exec(compile(block, page, "exec"), namespace)
    assert namespace["chunk"].actions.isfinite().all()
    assert namespace["future"].values.isfinite().all()


def first_observation(root: Path) -> dict:
    """What a policy would have seen at the start of a recording."""
    from wamkit.data.lerobot import LeRobotSource

    source = LeRobotSource(root)
    camera, episode = source.cameras[0], source.episodes[0]
    return {
        f"observation.images.{camera}": source.decode(camera, 0, np.zeros(1))[0],
        "observation.state": source.column("observation.state")[0],
        "task": episode.task,
    }
