"""Fast-WAM's `act` in phases, in each of its modes.

``uncond``: the video expert passes once over the present, the denoise steps are the action expert's alone. ``idm``: the
video is imagined first. ``joint``: a denoise step moves actions and video, so there is nothing of the video to prepare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wamkit.models.fast_wam.model import FastWAM
from wamkit.models.phases import Phase, State
from wamkit.models.video.phases import VideoActPhases
from wamkit.types import ActionChunk, Observation


class FastWAMPhases(VideoActPhases):
    """See `wamkit.models.phases.ActPhases`; every function of the model that is called here is one that `act` calls."""

    def __init__(self, model: FastWAM) -> None:
        super().__init__(model)
        self.joint = model.config.mode == "joint"
        self._video_noise: dict[tuple[int, torch.device], Tensor] = {}

    @property
    def steps(self) -> int:
        """The action expert's Euler steps."""
        return self.model.config.action.denoise_steps

    def inputs(self, observation: Observation, text_tokens: tuple[int, ...] = ()) -> dict[str, Tensor]:
        """And the video's noise, where one is made: it is the same for every chunk, so nothing is drawn in a phase."""
        given = super().inputs(observation, text_tokens)
        if self.model.config.mode != "uncond":
            given["video_noise"] = self._noise_of(observation.batch_size, observation.embodiment.device)
        return given

    def _noise_of(self, batch: int, device: torch.device) -> Tensor:
        if (batch, device) not in self._video_noise:
            shape = (batch, self.model.config.vae.channels, 1, *self.model.latent_size)
            self._video_noise = {(batch, device): self.model.video_noise(torch.empty(shape, device=device))}
        return self._video_noise[batch, device]

    def prefix(self) -> tuple[Phase, ...]:
        """Up to the keys and values that the action expert reads."""
        if self.joint:
            return (*self.beginning(), Phase("joint_context", self._prepare_jointly))
        imagined = [Phase("imagined_video", self._imagine)] if self.model.config.mode == "idm" else []
        return (*self.beginning(), *imagined, Phase("video_expert", self._prepare))

    def _imagine(self, state: State) -> Mapping[str, Any]:
        words = state["words"], state.get("words_valid")
        return {"seen": self.model.imagined_after(state["present"], *words, state["video_noise"])}

    def _prepare(self, state: State) -> Mapping[str, Any]:
        seen = state.get("seen", state["present"])
        return {
            "context": self.model.action_context(seen, state["words"], state.get("words_valid"), state["valid"]),
        }

    def _prepare_jointly(self, state: State) -> Mapping[str, Any]:
        model, video = self.model, self.model.noisy_after(state["present"], state["video_noise"])
        return {
            "video": video,
            "own_words": model.action.words_in(state["words"]),
            "mask": model.attention_mask(model.backbone.grid(video), state["valid"], "joint"),
        }

    def schedule(self) -> tuple[Tensor, Tensor]:
        """Noise levels [steps + 1], and the action expert's code of each step's."""
        levels = self.model.action_levels(self.model.action.enter.weight.device)
        return levels, self.model.action.time_code(levels[:-1])

    def start(self, noise: Tensor, state: State) -> Any:
        """The actions' noise, and the video's where it is denoised beside them."""
        return (noise, state["video"]) if self.joint else noise

    def step(self, x: Any, step: int, schedule: tuple[Tensor, Tensor], state: State) -> Any:
        """One Euler step towards the data."""
        model, (levels, codes), words_valid = self.model, schedule, state.get("words_valid")
        now, following = levels[step], levels[step + 1]
        if self.joint:
            words = state["words"], state["own_words"], words_valid
            return model.joint_step(*x, now, following, *words, state["mask"])
        code = codes[step].expand(len(x), -1, -1, -1)
        return x + (following - now) * model.action_velocity(x, code, state["context"], words_valid)

    def chunk(self, x: Any, state: State) -> ActionChunk:
        """In float32, with the time stamps; and the video that was imagined first, or beside the actions."""
        chunk = self.finished(x[0] if self.joint else x, state)
        video = x[1] if self.joint else state.get("seen")
        return chunk if video is None else replace(chunk, imagined=self.model.latents_ahead(video))
