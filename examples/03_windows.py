"""Look at windows in physical time: the same demonstrations at 80 Hz and seen at 20 Hz, in one batch.

A window asks for seconds, not for rows: a frame now and one 0.2 s later, and the actions of those 0.2 s. At 80 Hz they
are sixteen, at 20 Hz four, and their time stamps say where each lies. Run 01_record.py first.

    python examples/03_windows.py
"""

from wamkit.data.cache import FrameStore
from wamkit.data.lerobot import LeRobotSource
from wamkit.data.mixture import Mixture, fit_normalizer
from wamkit.data.windows import MixtureEntry, WindowSpec

RECORDING, CACHE = "outputs/examples/recording", "outputs/examples/cache"

if __name__ == "__main__":
    source = LeRobotSource(RECORDING)
    frames = FrameStore.build(source, CACHE, resolution=128)  # decoded once, then mapped from the disk

    # Actions are changes of position and a gripper effort: seen at 20 Hz, changes add up and the last effort counts.
    rule = tuple("last" if "gripper" in name else "sum" for name in source.action_names or ())
    native = MixtureEntry(source=source, frame_store=frames, weight=1.0)
    slow = MixtureEntry(source=source, frame_store=frames, weight=1.0, stride=4, combine=rule)

    # Only starts whose 0.2 s lie inside the episode; with "clamp" the rest are masked instead.
    spec = WindowSpec(frame_offsets_s=(0.0, 0.2), chunk_s=0.2, resolution=128, past_end="drop")
    mixture = Mixture([native, slow], spec, fit_normalizer([native, slow]), seed=1)
    window = mixture.window(range(6))  # the first six draws; draw k is the same in every process

    print("frames:", {camera: tuple(value.shape) for camera, value in window.frames.items()})
    print("actions:", tuple(window.actions.shape), "padded to the longest chunk")
    for sample in range(window.batch_size):
        valid = window.action_valid[sample].any(dim=-1)
        times = [round(time, 4) for time in window.action_times[sample][valid].tolist()]
        print(f"sample {sample}, told {window.task[sample]!r}:")
        print(f"  {window.rate_hz[sample]:g} Hz, {int(valid.sum())} actions at {times[:4]}... s")
        print(f"  second frame {window.frame_times[sample, 1]:.4f} s ahead")
