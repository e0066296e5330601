"""Train LaWAM on the recording of 01_record.py: a recipe is a Python function, and a run is its config.

The stages are the model's own: an encoder that learns from the run's frames, the latent-action model with the world
model LaWM, and the policy. Stop the run at any moment and start it again: it goes on to the same weights.

    python examples/04_train.py [--toy]
"""

import dataclasses
import sys

from wamkit.cli.progress import progress_bar
from wamkit.recipes.lawam_metaworld import lawam_metaworld
from wamkit.training.loop import train

TOY = "--toy" in sys.argv

if __name__ == "__main__":
    recipe = lawam_metaworld()
    shorter = {"encoder": 200, "latent_action": 200, "policy": 400}
    stages = tuple(
        dataclasses.replace(
            stage,
            steps=2 if TOY else shorter[stage.name],
            warmup_steps=0 if TOY else 20,
            batch_size=4 if TOY else stage.batch_size,
        )
        for stage in recipe.stages
    )
    config = dataclasses.replace(
        recipe,
        stages=stages,
        # Two episodes are kept aside: validation, and example 06, look at those alone.
        dataset=dataclasses.replace(recipe.dataset, roots=("outputs/examples/recording",), holdout_episodes=2),
        output_dir="outputs/examples/run",
        validation_batches=1 if TOY else 4,
        logger="none" if TOY else "tensorboard",
        resume=True,
    )
    with progress_bar("training") as progress:
        print(train(config, progress=progress))
