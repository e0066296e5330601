"""One episode as a causal model remembers it: keys and values, the tokenizer's stream, and what happened since.

An episode is a value: every change makes a new one, and nothing that is held is written to. So a policy, a server's
session or an evaluation's slot may keep it, hand it in with any batch, and hand it in again where a batch has failed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from wamkit.dynamics.causal_cache import Row
from wamkit.encoders.base import VideoStream, VideoTokenizer
from wamkit.models.causal.config import CausalModelError


@dataclass(frozen=True)
class Episode:
    """What is known of an episode at the moment of its last `act`, and what was seen and done since."""

    task: str
    rows: tuple[Row, ...]
    """The past under the instruction and, where guidance asks for it, under none."""
    stream: VideoStream
    """Never pushed to; see `fork`."""
    present: UInt8[Tensor, "3 H W"]
    """The canvas that was last acted on."""
    latent: Float[Tensor, "C h w"]
    """Of the latent frame that ends with it."""
    pictures: tuple[Tensor, ...] = ()
    """Canvases seen since, oldest first."""
    actions: Float[Tensor, "n A"] | None = None
    """Normalised, executed since."""

    def saw(self, pictures: UInt8[Tensor, "T 3 H W"]) -> Episode:
        """The episode with more pictures."""
        return replace(self, pictures=(*self.pictures, *pictures.unbind(0)))

    def did(self, actions: Float[Tensor, "n A"]) -> Episode:
        """The episode with more actions."""
        before = () if self.actions is None else (self.actions,)
        return replace(self, actions=torch.cat([*before, actions]))

    @property
    def done(self) -> int:
        """How many actions were executed since."""
        return 0 if self.actions is None else len(self.actions)

    def new_frames(self, present: UInt8[Tensor, "3 H W"], steps: int) -> int:
        """Latent frames that have passed since the last `act`.

        Args:
            present: The canvas now.
            steps: Actions of one latent frame.

        Raises:
            CausalModelError: the robot moved unannounced, or stopped within a latent frame.
        """
        if self.done == 0:
            if self.pictures or not torch.equal(present, self.present):
                raise CausalModelError(
                    "the picture has changed since the last act, and nobody said what was executed meanwhile: tell"
                    " executed(actions) before each act, or reset() where a new episode begins"
                )
            return 0
        frames, rest = divmod(self.done, steps)
        if rest:
            raise CausalModelError(
                f"{self.done} actions were executed since the last act, and a latent frame holds {steps}: execute"
                f" {frames * steps or steps} or another multiple of {steps} before the next look"
            )
        return frames

    def clip(self, present: UInt8[Tensor, "3 H W"], frames: int, *, held: bool) -> UInt8[Tensor, "1 T 3 H W"]:
        """The pictures of the latent frames that have passed, the present last.

        Args:
            present: The canvas now.
            frames: How many latent frames.
            held: Whether one picture stands for the four of a latent frame.

        Raises:
            CausalModelError: there are too few or too many pictures.
        """
        per = VideoTokenizer.TEMPORAL
        seen = (*self.pictures, present)
        wanted = frames * (1 if held else per)
        if len(seen) != wanted:
            raise CausalModelError(
                f"{frames} latent frames have passed since the last act, for which the model must have seen {wanted}"
                f" pictures, evenly spaced, the present one included; it saw {len(seen)}: tell observed(...) of each,"
                + (
                    f" or look again after each {self.done // frames} actions"
                    if held
                    else " or train it with held ones"
                )
            )
        pictures = torch.stack(seen)
        return (pictures.repeat_interleave(per, dim=0) if held else pictures).unsqueeze(0)


def fork(stream: VideoStream) -> VideoStream:
    """A stream that goes on from the same place and leaves the other where it is.

    Streams replace what they keep instead of writing into it (a test holds them to that), so lists alone are copied.
    """
    twin = copy.copy(stream)
    for name, value in vars(twin).items():
        if isinstance(value, list):
            setattr(twin, name, list(value))
    return twin
