"""Does the physical-time code let recordings of several control rates train one policy? LaWAM's appendix C.4.

Demonstrations at MetaWorld's native 80 Hz, and the same ones seen at 40 and 20 Hz: a group of position deltas becomes
their sum, the last gripper effort counts, and each branch has its own statistics. No branch adds a demonstration, so
the policy of the native rate alone is the reference. Three arms, equal steps, all evaluated at 80 Hz:

  native            80 Hz alone
  mixed             80, 40 and 20 Hz, each action token coded by its time in seconds
  mixed_index       the same, coded by its index: the same code means another time in each branch

    python benchmarks/mixed_frequency.py [--seeds 0 1 2] [--episodes 50] [--arms ...] [--toy] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import _closed_loop as closed_loop

from wamkit.cli.demo import TASKS
from wamkit.data.lerobot import LeRobotSource
from wamkit.models.lawam import LaWAMConfig, preset
from wamkit.training.config import DatasetConfig

STRIDES = (1, 2, 4)
PAIRS = (("mixed", "mixed_index"), ("native", "mixed"), ("native", "mixed_index"))


def mixed_dataset(options: argparse.Namespace, recordings: Path) -> DatasetConfig:
    """One recording under three strides."""
    names = LeRobotSource(recordings).action_names or ()
    rule = tuple("last" if "gripper" in name else "sum" for name in names)
    roots = (str(recordings),) * len(STRIDES)
    return closed_loop.dataset(options, recordings, roots=roots, strides=STRIDES, combine=(rule,) * len(STRIDES))


def without_time_code(config: LaWAMConfig) -> LaWAMConfig:
    return dataclasses.replace(config, action=dataclasses.replace(config.action, time_code="index"))


def arms(options: argparse.Namespace) -> list[closed_loop.TrainedArm]:
    config = preset(options.preset)
    return [
        closed_loop.TrainedArm("native", config, lambda root: closed_loop.dataset(options, root)),
        closed_loop.TrainedArm("mixed", config, lambda root: mixed_dataset(options, root)),
        closed_loop.TrainedArm("mixed_index", without_time_code(config), lambda root: mixed_dataset(options, root)),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = closed_loop.parsed(closed_loop.parser(__doc__, TASKS, "mixed_frequency"), arguments)
    closed_loop.run(options, arms(options), PAIRS, rates_hz=[80.0 / stride for stride in STRIDES])


if __name__ == "__main__":
    main()
