"""Evaluate in closed loop, beside arms that say what a success rate is worth, with intervals and paired tests.

`wam eval` is the same from the command line. Run 04_train.py first.

    python examples/07_evaluate.py [--toy]
"""

import sys
from pathlib import Path

import wamkit
from wamkit.cli.progress import progress_bar
from wamkit.evaluation.arms import BlindArm, NoOpArm, PolicyArm
from wamkit.evaluation.provenance import checkpoint_record, collect
from wamkit.evaluation.results import build_eval, write_eval
from wamkit.evaluation.rollout import RolloutSettings, rollout
from wamkit.evaluation.statistics import side_by_side
from wamkit.evaluation.workers import EnvFactory
from wamkit.inference.policy import checkpoint_folder

TOY = "--toy" in sys.argv
OUTPUT = Path("outputs/examples/evaluation")

if __name__ == "__main__":  # the simulators run in processes of their own, which import this file
    folder = checkpoint_folder(Path("outputs/examples/run"))
    policy, identity = wamkit.load(folder), checkpoint_record(folder)["sha256"]
    make = EnvFactory("metaworld", {"cameras": policy.cameras} | ({"max_steps": 16} if TOY else {}))
    settings = RolloutSettings(n_episodes=1 if TOY else 10, workers=1 if TOY else None)
    with progress_bar("evaluating") as progress:
        episodes = rollout(
            [PolicyArm(policy, identity=identity), BlindArm(policy, identity=identity), NoOpArm()],
            ["reach-v3"],
            make,
            OUTPUT,
            settings,
            resume=True,
            progress=progress,
        )
    results = build_eval(episodes, collect(checkpoint=folder, seeds=[settings.seed]))
    print("\n".join(side_by_side(results["arms"]).lines()))
    print(write_eval(OUTPUT / "eval.json", results))
