"""Record a simulator's expert into a LeRobot data set.

The first demonstration of each task starts from the first training state of that task, and so on: recording again
gives the same episodes. Failures of the expert are dropped and counted.

    python examples/01_record.py [--toy]
"""

import sys

from wamkit.data.lerobot import LeRobotSource
from wamkit.envs.recording import record_episodes

TOY = "--toy" in sys.argv
RECORDING = "outputs/examples/recording"

if __name__ == "__main__":
    summary = record_episodes(
        "metaworld",
        ["reach-v3", "button-press-topdown-v3"],
        RECORDING,
        episodes=2 if TOY else 10,
        cameras=("corner2_near",),
        video_rate_hz=40.0,  # a picture for every second row; rows stay at the simulator's 80 Hz
        workers=0 if TOY else None,
        resume=True,  # an interrupted recording goes on; a finished one is left as it is
    )
    print(summary)

    source = LeRobotSource(RECORDING)
    print(
        f"rows at {source.fps:g} Hz, new pictures at {source.video_rate_hz:g} Hz, cameras {', '.join(source.cameras)}"
    )
    print("state:", ", ".join(source.state_names or ()))
    print("action:", ", ".join(source.action_names or ()))
    for episode in source.episodes:
        print(f"  episode {episode.index}: {episode.length} rows, {episode.task!r}")
