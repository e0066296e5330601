"""LaWAM: a policy that predicts a latent action, lets LaWM turn it into a subgoal, and acts towards it.

p(a, u_T, z | o, l) = p(z | o, l) . LaWM(u_T | u, z) . p(a | o, l, u, u_T)   (LaWAM Eq. 3)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.actions.flow_expert import AlternatingBlock, Context, FlowExpert
from wamkit.actions.flow_field import VelocityField, inpainting, integrate
from wamkit.data.augment import random_shift
from wamkit.dynamics.base import FramePairs, Posterior
from wamkit.dynamics.latent_action import LatentActionModel, StateChangePredictor
from wamkit.dynamics.linear_transition import LatentActionTokenizer, LinearTransitionConfig
from wamkit.encoders.base import VisualEncoder
from wamkit.encoders.dinov3 import DINOv3, DINOv3Config
from wamkit.encoders.patch_encoder import PatchEncoder
from wamkit.encoders.qwen3_vl import Qwen3VLTrunk, TrunkOutput
from wamkit.losses import flow_matching
from wamkit.losses.latent_action import distillation
from wamkit.losses.reduction import masked_mean, sample_mean
from wamkit.models.base import Capabilities, ParameterGroup, StageError, WorldActionModel
from wamkit.models.chunk import chunk_times, padded
from wamkit.models.fake_window import fake_robot_window
from wamkit.models.lawam.config import LaWAMConfig, preset
from wamkit.models.lawam.latent_head import latent_action_head
from wamkit.models.phases import ActPhases
from wamkit.nn.adaln import AdaLNZeroBlock
from wamkit.nn.transformer_block import TransformerBlock
from wamkit.types import ActionChunk, Future, Losses, LossTerm, Observation, Window


class Intention(NamedTuple):
    """What the policy computes before it acts: present, latent action, subgoal, and the trunk's output."""

    present: Float[Tensor, "B N D"]
    latent_action: Float[Tensor, "B Q Z"] | None
    subgoal: Float[Tensor, "B N D"] | None
    trunk: TrunkOutput


class LaWAM(WorldActionModel):
    """LaWAM whole: visual encoder, latent-action model with LaWM, vision-language trunk, action expert."""

    name = "lawam"
    config_class = LaWAMConfig
    capabilities = Capabilities(
        coupling="cascaded",
        modality="latent",
        paradigm="imagine_then_execute",
        act_needs_future=True,
        imagines=("features",),
        action_conditioned=True,
        trains_action_free=True,
        inpaints_actions=True,
    )

    def __init__(self, config: LaWAMConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_encoder: VisualEncoder = (
            DINOv3(config.encoder) if isinstance(config.encoder, DINOv3Config) else PatchEncoder(config.encoder)
        )
        grid, width = self.vision_encoder.grid, self.vision_encoder.width
        chosen, distance = config.latent_action, config.reconstruction
        self.lam = (
            LatentActionTokenizer(chosen, grid, width, reconstruction=distance)
            if isinstance(chosen, LinearTransitionConfig)
            else LatentActionModel(chosen, grid, width, reconstruction=distance, kl_weight=config.kl_weight)
        )
        self.vlm = Qwen3VLTrunk(config.vlm, latent_queries=config.latent_queries, action_queries=config.action_queries)
        self.latent_head = latent_action_head(self.lam, config.vlm.width)
        self.flow = FlowExpert(config.action, dynamics_width=width, language_width=config.vlm.width)
        if config.subgoal == "latent_action_only":
            self.latent_token = nn.Linear(self.lam.latent_width, width)

    @classmethod
    def preset(cls, name: str) -> LaWAMConfig:
        """See `wamkit.models.lawam.config.preset`."""
        return preset(name)

    def load_pretrained_trunks(self) -> None:
        """Load DINOv3's and Qwen3-VL's published weights, where the config names them."""
        if isinstance(self.vision_encoder, DINOv3):
            self.vision_encoder.load_pretrained()
        if self.config.vlm.weights is not None:
            self.vlm.load_pretrained()

    # Stages

    @property
    def stages(self) -> tuple[str, ...]:
        """``encoder`` only where the encoder is trained on the run's own frames."""
        own = ("encoder",) if isinstance(self.vision_encoder, PatchEncoder) else ()
        return (*own, "latent_action", "policy")

    def prepare_stage(self, stage: str) -> None:
        """Encoder, then the LAM, then the policy with the LAM's encoder as a frozen teacher."""
        self.check_stage(stage)
        if stage == "encoder":
            self.train_only(self.vision_encoder)
        elif stage == "latent_action":
            self.train_only(self.lam)
        else:
            self.train_only(self.vlm, self.flow)
            if self.config.vlm.freeze_token_embeddings:
                self.vlm.model.language_model.embed_tokens.requires_grad_(False)
            if self.config.subgoal != "none":
                self.latent_head.requires_grad_(True).train()
            if self.config.subgoal in ("insulated", "coupled"):
                self.lam.decoder.requires_grad_(True).train()
            if self.config.subgoal == "latent_action_only":
                self.latent_token.requires_grad_(True).train()

    def parameter_groups(self, stage: str) -> list[ParameterGroup]:
        """In stage ``policy`` the action expert has the full learning rate, all else ``trunk_lr_scale`` of it."""
        groups = super().parameter_groups(stage)
        if stage != "policy":
            return groups
        expert = {id(parameter) for parameter in self.flow.parameters()}
        split: list[ParameterGroup] = []
        for group in groups:
            for name, scale, member in (("expert", 1.0, True), ("trunk", self.config.trunk_lr_scale, False)):
                params = [p for p in group["params"] if (id(p) in expert) is member]
                if params:
                    split.append(
                        ParameterGroup(
                            name=f"{name}_{group['name']}",
                            params=params,
                            lr_scale=scale,
                            weight_decay=group["weight_decay"],
                        )
                    )
        return split

    def visual_encoder(self, stage: str) -> VisualEncoder | None:
        """Frozen from stage ``latent_action`` on."""
        return None if stage == "encoder" else self.vision_encoder

    def feature_cameras(self, stage: str) -> tuple[str, ...]:
        """The world model sees the primary view alone."""
        return self.config.cameras[:1]

    def fsdp_units(self) -> tuple[type[nn.Module], ...]:
        """Every kind of transformer block, the trunk's included."""
        text = type(self.vlm.model.language_model.layers[0])
        vision = type(self.vlm.model.visual.blocks[0])
        return (TransformerBlock, AdaLNZeroBlock, AlternatingBlock, text, vision)

    def parts(self) -> dict[str, list[nn.Module]]:
        """The parts of the published checkpoint; ``lawm`` is the LAM's forward decoder."""
        state = getattr(self.lam, "state_predictor", None)
        return {
            "vision_encoder": [self.vision_encoder],
            "lam_encoder": [part for name, part in self.lam.named_children() if name in ("encoder", "posterior")],
            "lawm": [self.lam.decoder],
            **({} if state is None else {"state_predictor": [state]}),
            "vlm": [self.vlm, self.latent_head],
            "action_expert": [self.flow],
        }

    def check_instructions(self, tasks: Sequence[str]) -> None:
        """See `WorldActionModel.check_instructions`."""
        self.vlm.tokenize(tasks)

    def phases(self) -> ActPhases:
        """See `wamkit.models.lawam.phases`."""
        from wamkit.models.lawam.phases import LaWAMPhases

        return LaWAMPhases(self)

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

    # Losses

    def loss(self, window: Window, stage: str, generator: torch.Generator | None = None) -> Losses:
        """The losses of one stage (LaWAM Eq. 4 and 5)."""
        self.check_stage(stage)
        if stage == "encoder":
            return self._encoder_loss(window, generator)
        if stage == "latent_action":
            return self._latent_action_loss(window, generator)
        return self._policy_loss(window, generator)

    def _encoder_loss(self, window: Window, generator: torch.Generator | None) -> Losses:
        camera = self.config.cameras[0]
        losses = self.vision_encoder.pretrain_losses(window.frames[camera][:, 0], generator)
        valid = window.frame_valid[camera][:, 0]
        return Losses(terms={name: LossTerm(value=value, valid=valid) for name, value in losses.items()})

    def _views(self, window: Window) -> tuple[Tensor, Bool[Tensor, "B"]]:
        """Features [B, V, 2, N, D] of the primary view's present and horizon, and which samples have both."""
        camera = self.config.cameras[0]
        valid = window.frame_valid[camera][:, 0] & window.frame_valid[camera][:, -1]
        if camera in window.features:
            features = window.features[camera].float()
            return torch.stack([features[:, :, 0], features[:, :, -1]], dim=2), valid
        frames = window.frames[camera]
        both = self.encode(torch.cat([frames[:, 0], frames[:, -1]]))
        return torch.stack(both.chunk(2), dim=1).unsqueeze(1), valid

    def _latent_action_loss(self, window: Window, generator: torch.Generator | None) -> Losses:
        views, valid = self._views(window)
        # Two views: the encoder infers from one augmentation, the decoder predicts in another, so the latent
        # action cannot carry pixel layout (appendix C.5). One view: both the same.
        seen, predicted = views[:, 0], views[:, -1]
        pairs = FramePairs(
            present=seen[:, 0],
            future=seen[:, 1],
            valid=valid,
            decoded_present=predicted[:, 0],
            decoded_future=predicted[:, 1],
        )
        losses = self.lam.losses(pairs, generator)
        terms = dict(losses.terms)
        if isinstance(self.lam, LatentActionModel) and self.lam.state_predictor is not None:
            terms["state"] = self._state_loss(self.lam.state_predictor, losses.latent_action, window, valid)
        still = sample_mean((predicted[:, 0] - predicted[:, 1]).float().square())
        metrics = {"copy_present": LossTerm(value=still, valid=valid).mean()}
        return Losses(terms=terms, metrics=metrics)

    def _state_loss(
        self, predictor: StateChangePredictor, latent: Float[Tensor, "B Q Z"], window: Window, valid: Bool[Tensor, "B"]
    ) -> LossTerm:
        """Embodiment 0 is human video: no state. Elsewhere the change of each state dimension that exists counts."""
        change = window.state[:, -1] - window.state[:, 0]
        mask = window.state_valid[:, 0] & window.state_valid[:, -1] & (window.embodiment != 0)[:, None] & valid[:, None]
        state = padded(torch.where(window.state_valid[:, 0], window.state[:, 0], 0.0), predictor.max_state_dim)
        guess = predictor(latent, state, window.embodiment)[:, : change.shape[-1]].float()
        value, has_state = masked_mean((guess - torch.where(mask, change, 0.0)).square(), mask)
        return LossTerm(value=value, valid=has_state, weight=self.config.state_weight)

    def _policy_loss(self, window: Window, generator: torch.Generator | None) -> Losses:
        views, valid = self._views(window)
        present, future = views[:, 0, 0], views[:, 0, 1]
        observation = window.observation()
        shifted = {
            camera: random_shift(frames, self.config.trunk_image_shift, generator)
            for camera, frames in observation.images.items()
        }
        there = {camera: window.frame_valid[camera][:, 0] for camera in self.config.cameras}
        intention = self.intend(replace(observation, images=shifted), present, there)
        terms: dict[str, LossTerm] = {}
        if self.config.subgoal != "none" and self.config.distillation_weight > 0:
            with torch.no_grad():
                teacher = self.lam.infer(present, future).mean.float()
            value = distillation(intention.latent_action.float(), teacher)
            terms["distillation"] = LossTerm(value=value, valid=valid, weight=self.config.distillation_weight)
        if intention.subgoal is not None and self.config.subgoal_weight > 0:
            value = sample_mean((intention.subgoal.float() - future.float()).square())
            terms["subgoal"] = LossTerm(value=value, valid=valid, weight=self.config.subgoal_weight)
        terms["action"] = self._flow_loss(window, intention, generator)
        return Losses(terms=terms)

    def _flow_loss(self, window: Window, intention: Intention, generator: torch.Generator | None) -> LossTerm:
        context = self._context(intention)
        draws, device = self.config.noise_draws, window.actions.device
        clean = padded(torch.where(window.action_valid, window.actions, 0.0), self.config.action.action_dim)
        clean = clean.unsqueeze(1).expand(-1, draws, -1, -1)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        uniform = torch.rand(clean.shape[:2], generator=generator, device=device)
        level = flow_matching.beta_noise_level(uniform)
        velocity = self.flow.velocity(
            flow_matching.interpolate(clean, noise, level),
            self.flow.modulations(level),
            context,
            self.flow.time_code(window.action_times),
            window.action_valid.any(dim=-1),
            window.embodiment,
        )
        error = flow_matching.squared_error(velocity.float(), flow_matching.velocity_to_data(clean, noise))
        mask = padded(window.action_valid, self.config.action.action_dim) & (window.embodiment != 0)[:, None, None]
        value, valid = masked_mean(error, mask.unsqueeze(1).expand_as(error))
        return LossTerm(value=value, valid=valid)

    # Policy

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

    def _context(self, intention: Intention) -> Context:
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
        if noise is None:
            shape = (observation.batch_size, *self.action_noise_shape)
            noise = torch.randn(shape, generator=generator, device=times.device)
        field = through(self.flow.field(self._context(intention), times, valid, observation.embodiment))
        actions = integrate(field, noise, self.config.action.denoise_steps)
        return ActionChunk(actions=actions.float(), times=times, valid=valid, imagined=self._expected(intention))

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
            future = self._expected(self.intend(observation))
            if future is None:
                raise StageError(f"this LaWAM was composed with subgoal={self.config.subgoal!r}: it imagines nothing")
            return future
        present = self.encode(observation.images[self.config.cameras[0]])
        frames: list[Tensor] = []
        for step in range(latent_actions.shape[1]):
            frames.append(self.predict(frames[-1] if frames else present, latent_actions[:, step]))
        return self._future(present, frames, latent_actions.flatten(1, 2))

    def _expected(self, intention: Intention) -> Future | None:
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

    def fake_window(self, batch_size: int = 2, *, stage: str | None = None, seed: int = 0) -> Window:
        """Random frames, states and actions of a robot at half its padded chunk's rate."""
        config, side = self.config, self.vision_encoder.resolution
        return fake_robot_window(
            batch_size=batch_size,
            cameras=config.cameras,
            size=(side, side),
            frame_times=(0.0,) if stage == "encoder" else (0.0, config.horizon_s),
            horizon_s=config.horizon_s,
            max_actions=config.max_actions,
            valid_steps=config.valid_steps,
            state_dim=min(8, getattr(config.latent_action, "max_state_dim", 0) or 8),
            action_dim=min(7, config.action.action_dim),
            seed=seed,
        )
