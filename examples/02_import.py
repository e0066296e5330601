"""Import a recording made elsewhere: here a bare video, which has neither states nor actions.

With a folder as argument that folder is imported instead: DROID, Bridge, RT-1, RLDS, LeRobot v2.1 or video,
whichever it is. `wam import` is the same from the command line.

    python examples/02_import.py [FOLDER] [--toy]
"""

import shutil
import sys
from pathlib import Path

import av
import numpy as np

from wamkit.data.importers import detect, import_recording
from wamkit.data.lerobot import LeRobotSource

TOY = "--toy" in sys.argv
FOLDERS = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
IMPORTED = Path("outputs/examples/imported")


def film_a_square(path: Path, frames: int = 60, rate: int = 10) -> None:
    """A grey scene in which something moves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(frames):
            picture = np.full((96, 128, 3), 90, np.uint8)
            picture[40:60, 2 * number % 108 : 2 * number % 108 + 20] = (230, 120, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    if FOLDERS:
        folder = Path(FOLDERS[0])
    else:
        folder = Path("outputs/examples/video")
        for number in range(1 if TOY else 3):
            film_a_square(folder / f"{number}" / "front.mp4")

    print(f"{folder} is understood as {detect(folder)!r}")
    shutil.rmtree(IMPORTED, ignore_errors=True)
    print(import_recording(folder, IMPORTED))

    source = LeRobotSource(IMPORTED)
    print(f"embodiment {source.embodiment!r}; states: {source.state_names}; actions: {source.action_names}")
    picture = source.decode(source.cameras[0], 0, np.array([1.0]))[0]
    print(f"the picture one second into the first episode: {picture.dtype} {picture.shape}")
