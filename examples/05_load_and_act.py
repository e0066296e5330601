"""Load a checkpoint and let it act in a simulator, step by step: the whole of closed-loop control in a few lines.

An observation is a dictionary under LeRobot's keys, an action chunk comes back in physical units with its times. Run
04_train.py first.

    python examples/05_load_and_act.py [--toy]
"""

import sys

import wamkit
from wamkit.envs.registry import make_env

TOY = "--toy" in sys.argv

if __name__ == "__main__":
    policy = wamkit.load("outputs/examples/run")
    print(f"a {policy.model.name} of stage {policy.stage!r}, looks through {', '.join(policy.cameras)}")

    env = make_env("metaworld", "reach-v3", cameras=policy.cameras, max_steps=32 if TOY else None)
    observation = env.reset_trial(0, split="eval")  # an initial state that no recording began with
    success = truncated = False
    policy.reset()
    while not (success or truncated):
        chunk = policy.act(observation)
        actions = chunk.actions[0, chunk.valid[0]].numpy()
        for number, action in enumerate(actions):
            last = number == len(actions) - 1
            seen, success, truncated = env.step_action(action, render=last)  # a picture only where it is needed
            if success or truncated:
                break
        if not (success or truncated):
            observation = seen
    print(f"a chunk: {len(actions)} actions over {float(chunk.times[0, chunk.valid[0]][-1]):.3f} s")
    print("success" if success else "no success within the time limit")
    env.close()
