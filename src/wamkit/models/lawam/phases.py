"""LaWAM's `act` in phases: encoder, trunk, LaWM, the action expert's context, then its Euler steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wamkit.actions.flow_expert import Context
from wamkit.losses.flow_matching import euler_levels
from wamkit.models.lawam.acting import Intention, LaWAMActing
from wamkit.models.phases import ActPhases, Phase, State
from wamkit.types import ActionChunk, Observation

IMAGE = "image."
"""Before a camera's name, in the inputs."""


class LaWAMPhases(ActPhases):
    """See `wamkit.models.phases.ActPhases`; every function of the model that is called here is one that `act` calls."""

    def __init__(self, model: LaWAMActing) -> None:
        self.model = model

    @property
    def steps(self) -> int:
        """The action expert's Euler steps."""
        return self.model.config.action.denoise_steps

    def inputs(self, observation: Observation, text_tokens: tuple[int, ...] = ()) -> dict[str, Tensor]:
        """Pictures, token ids and their validity, embodiment and rate."""
        ids, valid = self.model.vlm.tokenize(observation.task)
        room = next((length for length in sorted(text_tokens) if length >= ids.shape[1]), ids.shape[1]) - ids.shape[1]
        device = observation.embodiment.device
        return {
            **{IMAGE + camera: observation.images[camera] for camera in self.model.config.cameras},
            "token_ids": nn.functional.pad(ids, (0, room)).to(device),
            "token_valid": nn.functional.pad(valid, (0, room)).to(device),
            "embodiment": observation.embodiment,
            "rate_hz": observation.rate_hz,
        }

    def prefix(self) -> tuple[Phase, ...]:
        """LaWM only where this LaWAM imagines a subgoal."""
        imagines = self.model.config.subgoal in ("insulated", "coupled")
        return (
            Phase("vision_encoder", self._encode),
            Phase("vlm", self._read),
            *([Phase("lawm", self._imagine)] if imagines else []),
            Phase("action_context", self._prepare),
        )

    def _encode(self, state: State) -> Mapping[str, Any]:
        return {"present": self.model.encode(state[IMAGE + self.model.config.cameras[0]])}

    def _read(self, state: State) -> Mapping[str, Any]:
        model = self.model
        images = {camera: state[IMAGE + camera] for camera in model.config.cameras}
        always = torch.ones_like(state["embodiment"], dtype=torch.bool)
        trunk = model.vlm(images, dict.fromkeys(images, always), state["token_ids"], state["token_valid"])
        latent = None if model.config.subgoal == "none" else model.latent_head(trunk.latent_queries)
        return {"trunk": trunk} | ({} if latent is None else {"latent_action": latent})

    def _imagine(self, state: State) -> Mapping[str, Any]:
        return {"subgoal": self.model.lam.decoder(state["present"], state["latent_action"])}

    def _prepare(self, state: State) -> Mapping[str, Any]:
        model = self.model
        times, valid = model.chunk_times(state["rate_hz"])
        code = model.flow.time_code(times)
        return {"context": model.action_context(_intention(state)), "times": times, "valid": valid, "time_code": code}

    def schedule(self) -> list[Tensor]:
        """The modulations of every norm at every step, [steps, E] each."""
        levels = euler_levels(self.steps, self.model.flow.leave.weight.device)
        return self.model.flow.modulations(levels[:-1])

    def step(self, x: Tensor, step: int, schedule: list[Tensor], state: State) -> Tensor:
        """One Euler step: x + velocity / steps."""
        context: Context = state["context"]
        now = [modulation[step].expand(x.shape[0], 1, -1) for modulation in schedule]
        velocity = self.model.flow.velocity(
            x.unsqueeze(1), now, context, state["time_code"], state["valid"], state["embodiment"]
        )
        return x + velocity.squeeze(1) / self.steps

    def chunk(self, x: Tensor | None, state: State) -> ActionChunk:
        """In float32, with the time stamps, and the subgoal as what it imagined."""
        assert x is not None, "LaWAM's expert starts from noise"
        imagined = self.model.expected(_intention(state))
        return ActionChunk(actions=x.float(), times=state["times"], valid=state["valid"], imagined=imagined)


def _intention(state: State) -> Intention:
    """What the prefix gave, under the model's own name for it."""
    return Intention(state["present"], state.get("latent_action"), state.get("subgoal"), state["trunk"])
