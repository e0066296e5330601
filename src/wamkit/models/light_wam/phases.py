"""Light-WAM's `act` in phases: VAE, words, the backbone up to its last tap, the action expert; no denoise steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wamkit.models.phases import Phase, State
from wamkit.models.video.phases import VideoActPhases
from wamkit.types import ActionChunk


class LightWAMPhases(VideoActPhases):
    """See `wamkit.models.phases.ActPhases`; every function of the model that is called here is one that `act` calls."""

    @property
    def steps(self) -> int:
        """None: the chunk is decoded in one pass."""
        return 0

    def prefix(self) -> tuple[Phase, ...]:
        """All there is."""
        return (
            *self.beginning(),
            Phase("video_backbone", self._through),
            Phase("action_expert", self._decode),
        )

    def _through(self, state: State) -> Mapping[str, Any]:
        return {"states": self.model.read(state["present"], state["words"], state.get("words_valid"))}

    def _decode(self, state: State) -> Mapping[str, Any]:
        return {"actions": self.model.expert(state["states"], self.model.config.max_actions)}

    def chunk(self, x: Tensor | None, state: State) -> ActionChunk:
        """What the action expert gave."""
        assert x is None, "Light-WAM starts from no noise"
        return self.finished(state["actions"], state)
