"""Roll the world model out by itself: LaWM predicts features from features, driven by latent actions alone.

The latent actions are read from a held-out episode's frames, 0.2 s apart. LaWM then starts from the first frame, sees
no other, and is compared with doing nothing (copying the present). Run 04_train.py first.

    python examples/06_imagine.py
"""

import numpy as np
import torch

import wamkit
from wamkit.data.lerobot import LeRobotSource
from wamkit.training.stages import holdout_split

STEPS = 3

if __name__ == "__main__":
    policy = wamkit.load("outputs/examples/run", device="cpu", precision="fp32")
    model, camera = policy.model, policy.cameras[0]
    source = LeRobotSource("outputs/examples/recording")
    _, held_out = holdout_split(len(source.episodes), 2)

    times = model.config.horizon_s * np.arange(STEPS + 1)
    pictures = source.decode(camera, held_out[0], times)
    with torch.no_grad():
        seen = model.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2))  # [T + 1, tokens, width]
        latent_actions = model.infer_latent_action(seen[:-1], seen[1:]).mean.unsqueeze(0)  # [1, T, 1, width]

    first = {
        f"observation.images.{camera}": pictures[0],
        "observation.state": source.column("observation.state")[source.episodes[held_out[0]].from_row],
        "task": source.episodes[held_out[0]].task,
    }
    future = policy.imagine(first, latent_actions=latent_actions)
    for step in range(STEPS):
        error = float((future.values[0, step] - seen[step + 1]).square().mean())
        still = float((future.present[0] - seen[step + 1]).square().mean())
        print(f"{float(future.times[0, step]):.1f} s ahead: error {error:.4f}, copy-the-present {still:.4f}")

    subgoal = policy.imagine(first)  # without latent actions: what the policy itself is about to bring about
    print(f"the policy's own subgoal: {tuple(subgoal.values.shape)}, {float(subgoal.times[0, 0]):.1f} s ahead")
