"""What the `act` of the models on a video backbone begins with, as phases: pictures to a latent, words, times."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wamkit.models.phases import ActPhases, Phase, State
from wamkit.models.video.world_model import VideoWorldModel
from wamkit.types import ActionChunk, Observation

IMAGE = "image."
"""Before a camera's name, in the inputs."""

INSTRUCTIONS = 64
"""Batches of instructions whose features are kept on the device."""


class VideoActPhases(ActPhases):
    """Adds ``present`` [B, C, 1, h, w], ``words``, ``words_valid``, ``times`` and ``valid`` to the state.

    The words' features have a fixed length, so there is no padding to choose. They are computed once for each
    instruction and stay on the device.
    """

    def __init__(self, model: VideoWorldModel) -> None:
        self.model: Any = model
        self._words: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()

    def inputs(self, observation: Observation, text_tokens: tuple[int, ...] = ()) -> dict[str, Tensor]:
        """Pictures, the words' features, the rate and, where there is one, the state."""
        state = {} if observation.state is None else {"state": observation.state}
        return {
            **{IMAGE + camera: observation.images[camera] for camera in self.model.config.cameras},
            "words": self._features(observation.task),
            "rate_hz": observation.rate_hz,
            **state,
        }

    def _features(self, task: tuple[str, ...]) -> Tensor:
        known = self._words.get(task)
        if known is None:
            known = self._words[task] = self.model.text(task, self.model.proprioception.weight.device)
            while len(self._words) > INSTRUCTIONS:
                self._words.popitem(last=False)
        self._words.move_to_end(task)
        return known

    def beginning(self) -> tuple[Phase, ...]:
        """The phases that all these models begin with."""
        return (Phase("vae", self._see), Phase("proprioception", self._read))

    def _see(self, state: State) -> Mapping[str, Any]:
        frames = {camera: state[IMAGE + camera].unsqueeze(1) for camera in self.model.config.cameras}
        return {"present": self.model.vae.encode(self.model.clip_of(frames))}

    def _read(self, state: State) -> Mapping[str, Any]:
        words, words_valid = self.model.with_proprioception(state["words"], state.get("state"))
        times, valid = self.model.chunk_times(state["rate_hz"])
        # Nests of tensors only: where every word is real there is no mask.
        mask = {} if words_valid is None else {"words_valid": words_valid}
        return {"words": words, "times": times, "valid": valid, **mask}

    def finished(self, actions: Tensor, state: State) -> ActionChunk:
        """In float32, with the time stamps."""
        return ActionChunk(actions=actions.float(), times=state["times"], valid=state["valid"])
