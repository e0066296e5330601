"""LaWAM whole: its parts, its stages, and what each stage trains.

How it imagines and acts (Eq. 3) stands in `wamkit.models.lawam.acting`, what it learns from (Eq. 4 and 5) in
`wamkit.models.lawam.losses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from wamkit.actions.flow_expert import FlowExpert
from wamkit.dynamics.latent_action import LatentActionModel
from wamkit.dynamics.linear_transition import LatentActionTokenizer, LinearTransitionConfig
from wamkit.encoders.base import VisualEncoder
from wamkit.encoders.dinov3 import DINOv3, DINOv3Config
from wamkit.encoders.patch_encoder import PatchEncoder
from wamkit.encoders.qwen3_vl import Qwen3VLTrunk
from wamkit.models.base import Capabilities, ParameterGroup
from wamkit.models.fake_window import fake_robot_window
from wamkit.models.lawam.acting import LaWAMActing
from wamkit.models.lawam.config import LaWAMConfig, preset
from wamkit.models.lawam.latent_head import latent_action_head
from wamkit.models.lawam.losses import encoder_loss, latent_action_loss, policy_loss
from wamkit.models.lawam.phases import LaWAMPhases
from wamkit.nn.adaln import AdaLNZeroBlock
from wamkit.nn.transformer_block import TransformerBlock
from wamkit.types import Losses, Window


class LaWAM(LaWAMActing):
    """LaWAM whole: visual encoder, latent-action model with LaWM, vision-language trunk, action expert."""

    name = "lawam"
    config_class = LaWAMConfig
    inference_settings = ("action.denoise_steps",)
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
        self.vision_encoder = (
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

    def fsdp_units(self) -> list[nn.Module]:
        """Every transformer block of the encoder, the LAM and the trunk; of the expert's, what is called."""
        blocks = [m for m in self.modules() if isinstance(m, (TransformerBlock, AdaLNZeroBlock))]
        encoder = self.vision_encoder.model.model.layer if isinstance(self.vision_encoder, DINOv3) else ()
        trunk = (*self.vlm.model.visual.blocks, *self.vlm.model.language_model.layers)
        return [*blocks, *encoder, *trunk, *self.flow.called_modules()]

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

    def phases(self) -> LaWAMPhases:
        """See `wamkit.models.lawam.phases`."""
        return LaWAMPhases(self)

    # Losses

    def loss(self, window: Window, stage: str, generator: torch.Generator | None = None) -> Losses:
        """The losses of one stage; see `wamkit.models.lawam.losses`."""
        self.check_stage(stage)
        objective = {"encoder": encoder_loss, "latent_action": latent_action_loss, "policy": policy_loss}[stage]
        return objective(self, window, generator)

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
