"""Light-WAM: a frozen video backbone with low-rank corrections, read at three depths by a direct action expert.

Future video, down-sampled in the latent, is only a training loss: acting takes one pass over one clean frame.
L = L_video + L_action (papers.md 2.4).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.actions.state_fusion import Compressor, LayerStates, StateFusionActionExpert
from wamkit.dynamics.video_dit import AfterBlock
from wamkit.dynamics.video_flow import Velocity, downsample
from wamkit.dynamics.wan_block import called_modules
from wamkit.losses.reduction import masked_mean
from wamkit.models.base import Capabilities
from wamkit.models.chunk import action_targets
from wamkit.models.light_wam.config import LightWAMConfig, preset
from wamkit.models.phases import ActPhases
from wamkit.models.video.world_model import VideoWorldModel
from wamkit.nn.lora import is_lora
from wamkit.nn.residual_adapter import ResidualAdapter
from wamkit.types import ActionChunk, Losses, LossTerm, Observation, Window


class LightWAM(VideoWorldModel):
    """Light-WAM whole: VAE, words, video backbone with corrections and adapters, state-fusion action expert."""

    name = "light_wam"
    config_class = LightWAMConfig
    inference_settings = ("imagine_steps",)
    capabilities = Capabilities(
        coupling="joint",
        modality="latent",
        paradigm="auxiliary_video",
        act_needs_future=False,
        imagines=("pixels",),
        action_conditioned=False,
        trains_action_free=True,
    )

    def __init__(self, config: LightWAMConfig) -> None:
        super().__init__(config, config.lora)
        width = config.video.width
        self.adapters = nn.ModuleDict(
            {str(index): ResidualAdapter(width, config.adapter_width) for index in config.adapters}
        )
        rows, columns = (n // p for n, p in zip(self.latent_size, config.video.patch[1:], strict=True))
        self.expert = StateFusionActionExpert(
            config.expert, width=width, layers=len(config.adapters), tokens=rows * columns
        )

    @classmethod
    def preset(cls, name: str) -> LightWAMConfig:
        """See `wamkit.models.light_wam.config.preset`."""
        return preset(name)

    def prepare_policy(self) -> None:
        """Corrections, adapters, action expert, proprioception and the backbone's last layer train, nothing else.

        Without video supervision nothing reaches what lies after the last tap, so that stays frozen too.
        """
        self.train_only(self.adapters, self.expert, self.proprioception)
        video = self.config.video_supervision == "flow_matching"
        last = self.config.video.layers - 1 if video else self.config.adapters[-1]
        for index, block in enumerate(self.backbone.blocks):
            for name, parameter in block.named_parameters():
                if is_lora(name) and index <= last:
                    parameter.requires_grad_(True)
        if video:
            for parameter in self.backbone.head_parameters():
                parameter.requires_grad_(True)

    def fsdp_units(self) -> list[nn.Module]:
        """What is called of the backbone's blocks, and the expert's wide layers."""
        blocks = [module for block in self.backbone.blocks for module in called_modules(block)]
        return [*blocks, *(module for module in self.expert.modules() if isinstance(module, Compressor))]

    def parts(self) -> dict[str, list[nn.Module]]:
        """The published parts; the backbone's count includes its corrections of low rank."""
        return {
            "vae": [self.vae],
            "text_encoder": [self.text],
            "video_backbone": [self.backbone],
            "adapters": [self.adapters],
            "action_expert": [self.expert],
            "proprioception": [self.proprioception],
        }

    def phases(self) -> ActPhases:
        """See `wamkit.models.light_wam.phases`."""
        from wamkit.models.light_wam.phases import LightWAMPhases

        return LightWAMPhases(self)

    @property
    def action_width(self) -> int:
        """A, of the action expert."""
        return self.config.expert.action_dim

    # Backbone

    def _adapt(self, states: list[LayerStates] | None = None) -> AfterBlock:
        """Applies the adapters between blocks, and keeps what the expert reads where a list is given."""

        def after(index: int, tokens: Tensor) -> Tensor:
            if str(index) not in self.adapters:
                return tokens
            adapted = self.adapters[str(index)](tokens)
            if states is not None:
                states.append(LayerStates(tokens, adapted))
            return adapted

        return after

    def read(
        self,
        present: Float[Tensor, "B C 1 h w"],
        words: Float[Tensor, "B L E"],
        words_valid: Bool[Tensor, "B L"] | None,
    ) -> list[LayerStates]:
        """The tapped states of one clean frame; blocks after the last tap are not run."""
        states: list[LayerStates] = []
        level = torch.zeros(len(present), 1, device=present.device)
        stream, _ = self.backbone.prepare(present, level, words, words_valid)
        self.backbone.through(stream, after=self._adapt(states), until=self.config.adapters[-1] + 1)
        return states

    def video_velocity(self, words: Float[Tensor, "B L E"], words_valid: Bool[Tensor, "B L"] | None) -> Velocity:
        """Of the backbone with its corrections and adapters."""
        return lambda x, level: self.backbone(x, level, words, words_valid, after=self._adapt())

    def coarse(self, latents: Float[Tensor, "B C F h w"]) -> Tensor:
        """Down-sampled as the policy stage's future video is."""
        return downsample(latents, self.config.downsample, self.config.downsample_pooling)

    # Losses

    def policy_loss(self, window: Window, generator: torch.Generator | None) -> Losses:
        """Future video in the down-sampled latent, and the actions read from the present."""
        config = self.config
        latents, valid = self.latents_of(window)
        words, words_valid = self.words_of(window.task, window.state[:, 0], window.state_valid[:, 0])
        terms: dict[str, LossTerm] = {}
        if config.video_supervision == "flow_matching":
            coarse = self.coarse(latents)
            terms["video"] = self.video_term(coarse, valid, self.video_velocity(words, words_valid), generator)
        predicted = self.expert(self.read(latents[:, :, :1], words, words_valid), window.actions.shape[1])
        clean, counts = action_targets(window, self.action_width)
        if config.supervised_steps is not None:
            steps = torch.arange(clean.shape[1], device=clean.device) < config.supervised_steps
            counts = counts & steps[None, :, None]
        value, has_any = masked_mean((predicted.float() - clean).square(), counts)
        terms["action"] = LossTerm(value=value, valid=has_any, weight=config.action_weight)
        return Losses(terms=terms)

    # Policy

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        *,
        noise: Float[Tensor, "B K A"] | None = None,
        generator: torch.Generator | None = None,
    ) -> ActionChunk:
        """The chunk in one pass; nothing is drawn, so ``noise`` and ``generator`` have no say."""
        words, words_valid = self.words_of(observation.task, observation.state)
        states = self.read(self.present_of(observation), words, words_valid)
        actions = self.expert(states, self.config.max_actions)
        times, valid = self.chunk_times(observation.rate_hz)
        return ActionChunk(actions=actions.float(), times=times, valid=valid)
