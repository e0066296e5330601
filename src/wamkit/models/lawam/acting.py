"""How LaWAM imagines and acts: it predicts a latent action, lets LaWM turn it into a subgoal, and acts towards it.

p(a, u_T, z | o, l) = p(z | o, l) . LaWM(u_T | u, z) . p(a | o, l, u, u_T)   (LaWAM Eq. 3)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.actions.flow_expert import Context, FlowExpert
from wamkit.actions.flow_field import VelocityField, inpainting, integrate
from wamkit.dynamics.base import Posterior
from wamkit.dynamics.latent_action import LatentActionModel
from wamkit.dynamics.linear_transition import LatentActionTokenizer
from wamkit.encoders.base import VisualEncoder
from wamkit.encoders.qwen3_vl import Qwen3VLTrunk, TrunkOutput
from wamkit.losses import flow_matching
from wamkit.models.base import StageError, WorldActionModel
from wamkit.models.chunk import chunk_times
from wamkit.models.lawam.config import LaWAMConfig
from wamkit.types import ActionChunk, Future, Observation


class Intention(NamedTuple):
    """What the policy computes before it acts: present, latent action, subgoal, and the trunk's output."""

    present: Float[Tensor, "B N D"]
    latent_action: Float[Tensor, "B Q Z"] | None
    subgoal: Float[Tensor, "B N D"] | None
    trunk: TrunkOutput


class LaWAMActing(WorldActionModel):
    """The inference half of `wamkit.models.lawam.model.LaWAM`, which composes the parts that are named here."""

    config: LaWAMConfig
    vision_encoder: VisualEncoder
    lam: LatentActionModel | LatentActionTokenizer
    vlm: Qwen3VLTrunk
    latent_head: nn.Module
    """See `wamkit.models.lawam.latent_head`."""
    flow: FlowExpert
    latent_token: nn.Linear
    """From a latent action to a token of the expert's stream; only where ``subgoal="latent_action_only"``."""

    # World model

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Float[Tensor, "B N D"]:
        """Features of the primary view's frames, uint8 [B, 3, H, W]; the encoder is frozen."""
        return self.vision_encoder(frames)

    def infer_latent_action(self, present: Float[Tensor, "B N D"], future: Float[Tensor, "B N D"]) -> Posterior:
        """Inverse dynamics q(z | u, u_T)."""
        return self.lam.infer(present, future)

    def predict(self, present: Float[Tensor, "B N D"], latent_action: Float[Tensor, "B Q Z"]) -> Float[Tensor, "B N D"]:
        """LaWM alone: one horizon ahead."""
        return self.lam.decoder(present, latent_action)

    # From the observation to the subgoal

    def intend(
        self,
        observation: Observation,
        present: Float[Tensor, "B N D"] | None = None,
        there: Mapping[str, Bool[Tensor, "B"]] | None = None,
    ) -> Intention:
        """Everything before the action expert: trunk, latent action, subgoal.

        Args:
            observation: the present.
            present: its features, where they are known already.
            there: which samples have each camera; None: all have all. A missing auxiliary view is left out.
        """
        cameras = self.config.cameras
        images = {camera: observation.images[camera] for camera in cameras}
        device = observation.embodiment.device
        ids, valid = self.vlm.tokenize(observation.task)
        if there is None:
            there = dict.fromkeys(cameras, torch.ones(observation.batch_size, dtype=torch.bool, device=device))
        trunk = self.vlm(images, there, ids.to(device), valid.to(device))
        if present is None:
            present = self.encode(images[cameras[0]])
        if self.config.subgoal == "none":
            return Intention(present, None, None, trunk)
        latent = self.latent_head(trunk.latent_queries)
        if self.config.subgoal == "latent_action_only":
            return Intention(present, latent, None, trunk)
        return Intention(present, latent, self.lam.decoder(present, latent), trunk)

    # Acting

    def action_context(self, intention: Intention) -> Context:
        """What the action expert reads in every denoise step: present, subgoal and the trunk's hidden states."""
        stream = [intention.present]
        if intention.subgoal is not None:
            # Knowledge insulation: the action loss must not bend the subgoal.
            stream.append(intention.subgoal.detach() if self.config.subgoal == "insulated" else intention.subgoal)
        elif intention.latent_action is not None:
            stream.append(self.latent_token(intention.latent_action))
        dtype = intention.trunk.hidden.dtype
        dynamics = torch.cat([part.to(dtype) for part in stream], dim=1)
        return self.flow.prepare(dynamics, intention.trunk.hidden, intention.trunk.valid)

    @property
    def action_noise_shape(self) -> tuple[int, int]:
        """Padded chunk length and padded action width."""
        return self.config.max_actions, self.config.action.action_dim

    def chunk_times(self, rate_hz: Float[Tensor, "B"]) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
        """Time stamps i/h of a chunk, and which of its tokens lie inside the horizon (Eq. 6)."""
        config = self.config
        return chunk_times(
            rate_hz, horizon_s=config.horizon_s, max_actions=config.max_actions, valid_steps=config.valid_steps
        )

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        *,
        noise: Float[Tensor, "B K A"] | None = None,
        generator: torch.Generator | None = None,
        subgoal: Float[Tensor, "B N D"] | None = None,
    ) -> ActionChunk:
        """Action chunk by Euler steps, and the subgoal as what it imagined.

        ``subgoal`` replaces LaWM's, to test whether the expert believes it.
        """
        intention = self.intend(observation)
        if subgoal is not None:
            intention = intention._replace(subgoal=subgoal)
        return self._decode(observation, intention, noise, generator)

    @torch.no_grad()
    def inpaint(
        self,
        observation: Observation,
        known: Float[Tensor, "B K A"],
        weights: Float[Tensor, "B K A"],
        *,
        noise: Float[Tensor, "B K A"] | None = None,
        generator: torch.Generator | None = None,
    ) -> ActionChunk:
        """The action expert's field, guided towards the known plan; nothing before the expert differs from `act`."""
        levels = flow_matching.euler_levels(self.config.action.denoise_steps).tolist()
        return self._decode(
            observation,
            self.intend(observation),
            noise,
            generator,
            through=lambda field: inpainting(field, known, weights, levels),
        )

    def _decode(
        self,
        observation: Observation,
        intention: Intention,
        noise: Float[Tensor, "B K A"] | None,
        generator: torch.Generator | None,
        through: Callable[[VelocityField], VelocityField] = lambda field: field,
    ) -> ActionChunk:
        """Noise to actions along the expert's field, or along what ``through`` makes of it."""
        times, valid = self.chunk_times(observation.rate_hz)
        noise = self.chunk_noise(observation, noise, generator)
        field = through(self.flow.field(self.action_context(intention), times, valid, observation.embodiment))
        actions = integrate(field, noise, self.config.action.denoise_steps)
        return ActionChunk(actions=actions.float(), times=times, valid=valid, imagined=self.expected(intention))

    # Imagining

    @torch.no_grad()
    def imagine(
        self,
        observation: Observation,
        actions: Float[Tensor, "B K A"] | None = None,
        *,
        latent_actions: Float[Tensor, "B T Q Z"] | None = None,
    ) -> Future:
        """The subgoal one horizon ahead, or LaWM's roll-out over given latent actions, one horizon each.

        Raises:
            StageError: ``actions`` are given (LaWM is driven by latent actions, which `infer_latent_action` reads
                from two frames), or the model was composed without a subgoal.
        """
        if actions is not None:
            raise StageError("LaWAM imagines under latent actions, not robot actions: pass latent_actions")
        if latent_actions is None:
            future = self.expected(self.intend(observation))
            if future is None:
                raise StageError(f"this LaWAM was composed with subgoal={self.config.subgoal!r}: it imagines nothing")
            return future
        present = self.encode(observation.images[self.config.cameras[0]])
        frames: list[Tensor] = []
        for step in range(latent_actions.shape[1]):
            frames.append(self.predict(frames[-1] if frames else present, latent_actions[:, step]))
        return self._future(present, frames, latent_actions.flatten(1, 2))

    def expected(self, intention: Intention) -> Future | None:
        """The subgoal as a future; None where this LaWAM makes none."""
        if intention.subgoal is None:
            return None
        return self._future(intention.present, [intention.subgoal], intention.latent_action)

    def _future(self, present: Tensor, frames: list[Tensor], latent_action: Tensor | None) -> Future:
        """Features one horizon apart."""
        times = self.config.horizon_s * torch.arange(1, len(frames) + 1, device=present.device, dtype=torch.float32)
        return Future(
            space="features",
            values=torch.stack(frames, dim=1).float(),
            times=times.expand(len(present), -1),
            present=present.float(),
            latent_action=latent_action,
        )
