"""What RepWAM and LingBot-VA share: a causal sequence of frames and actions, predicted chunk by chunk.

Everything a paper does not settle between them is a field of the config (`wamkit.models.causal.config`). This module
holds training; what it builds on, `CausalImagining` and `CausalActing`, the ways to use one set of weights and what is
remembered of episodes under way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from wamkit.actions.grouped_actions import OwnExpert, action_tokens
from wamkit.data.canvas import Canvas
from wamkit.dynamics.causal_layout import chunk_of
from wamkit.dynamics.causal_transformer import CausalTransformer, Sequences
from wamkit.dynamics.video_dit import VideoDiT
from wamkit.dynamics.video_flow import latent_frame_valid, noisy_video
from wamkit.dynamics.wan_block import called_modules
from wamkit.encoders.latent_clips import LatentClips
from wamkit.encoders.umt5 import UMT5Text
from wamkit.encoders.wan_vae import WanVAE
from wamkit.losses import flow_matching
from wamkit.losses.reduction import masked_mean
from wamkit.models.action_groups import grouped, steps_of
from wamkit.models.base import StageError
from wamkit.models.causal.config import CausalModelConfig, CausalModelError, video_tokenizer
from wamkit.models.causal.imagining import CausalImagining
from wamkit.models.causal.sampler import Groups
from wamkit.models.chunk import action_targets
from wamkit.models.fake_window import fake_robot_window
from wamkit.models.phases import ActPhases
from wamkit.types import Losses, LossTerm, Window


class CausalWorldModel(CausalImagining):
    """Base of the causal models: tokenizer, words, transformer; one training objective for all sequence stages."""

    inference_settings = ("mode", "video_steps", "action_steps", "video_until", "video_guidance", "action_guidance")
    config: Any

    def __init__(self, config: CausalModelConfig, *, latent_width: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.canvas = Canvas(config.canvas, config.cameras, *config.resolution)
        self.tokenizer = video_tokenizer(config.tokenizer)
        if self.tokenizer.latent_width != config.video.channels:
            raise CausalModelError(
                f"the tokenizer's latents have {self.tokenizer.latent_width} channels and the video expert takes"
                f" {config.video.channels}: set video.channels to the tokenizer's"
            )
        self.latent_size = self.tokenizer.latent_size(self.canvas.height, self.canvas.width)
        self.text = UMT5Text(config.text)
        video = VideoDiT(config.video)
        self.transformer = CausalTransformer(
            video,
            action_tokens(config.action, video, latent_width=latent_width),
            window=config.window,
            order=config.order,
            attention=config.attention,
        )

    # Stages

    @property
    def trains_tokenizer(self) -> bool:
        """Whether the tokenizer is trained in the run, for want of published weights."""
        return getattr(self.config.tokenizer, "weights", None) is None

    def load_pretrained_trunks(self) -> None:
        """Load Wan's published VAE and transformer where the config names them; the action expert starts from it."""
        if isinstance(self.tokenizer, WanVAE) and not self.trains_tokenizer:
            self.tokenizer.load_pretrained()
        if self.config.video.weights is not None:
            self.transformer.video.load_pretrained()
            if isinstance(self.config.action, OwnExpert):
                self.transformer.actions.start_from(self.transformer.video)

    def train_transformer(self, actions: str) -> None:
        """Both experts train, with the head of one kind of actions: ``real`` or ``latent``."""
        self.train_only(self.transformer)
        for kind in self.transformer.actions.heads.widths:
            for parameter in self.transformer.actions.head_parameters(kind):
                parameter.requires_grad_(kind == actions)

    def reads_instructions(self, stage: str) -> bool:
        """The stages that train sequences do."""
        return stage in ("pretrain", "adapt")

    def check_instructions(self, tasks: Sequence[str]) -> None:
        """See `WorldActionModel.check_instructions`."""
        self.text.check(tasks)

    def fsdp_units(self) -> list[nn.Module]:
        """What is called of both experts' blocks; they may be the same."""
        blocks = [*self.transformer.video.blocks, *self.transformer.actions.blocks_beside(self.transformer.video)]
        return [module for block in dict.fromkeys(blocks) for module in called_modules(block)]

    def parts(self) -> dict[str, list[nn.Module]]:
        """The published parts."""
        return {
            "tokenizer": [self.tokenizer],
            "text_encoder": [self.text],
            "video_expert": [self.transformer.video],
            "action_expert": [self.transformer.actions],
        }

    def phases(self) -> ActPhases:
        """See `wamkit.models.causal.phases`."""
        from wamkit.models.causal.phases import CausalActPhases

        return CausalActPhases(self)

    @property
    def action_width(self) -> int:
        """A, padded."""
        return self.config.action.action_dim

    # Windows

    def clip_of(self, frames: Mapping[str, Tensor]) -> Tensor:
        """The canvas of each frame, uint8 [B, T, 3, H, W]."""
        return self.canvas.compose({camera: frames[camera] for camera in self.config.cameras})

    def pictures_of(self, frames: Mapping[str, Tensor], size: Sequence[int]) -> Float[Tensor, "B T 3 h w"]:
        """The canvas of true frames in [0, 1]: those that `imagine` speaks of, the present first."""
        from wamkit.models.video.world_model import resize_pictures

        clip = self.distinct(self.clip_of(frames)).float() / 255.0
        return resize_pictures(clip.flatten(0, 1), size).unflatten(0, clip.shape[:2])

    @torch.no_grad()
    def reconstruction_of(self, window: Window) -> Float[Tensor, "B T 3 h w"]:
        """A true clip through the tokenizer: the best that `imagine` could be."""
        return self.distinct(self.tokenizer.decode(self.latents_of(window)[0]))

    @torch.no_grad()
    def latents_of(self, window: Window) -> tuple[Float[Tensor, "B C G h w"], Bool[Tensor, "B G"]]:
        """Latents of a window's clip, from the store where the window carries them, and which frames are real.

        Raises:
            ClipError: the clip is not 4 n + 1 pictures long.
            StageError: it holds no frame to predict.
        """
        camera = self.config.cameras[0]
        valid = window.frame_valid[camera]
        if self.tokenizer.latent_frames(valid.shape[1]) < 2:
            raise StageError(
                f"the windows have 1 frame and {self.name} predicts what comes after the first: set the stage's"
                " window.frame_offsets_s to the model's config.frame_offsets_s"
            )
        if camera in window.features:
            stored = window.features[camera][:, 0].float()
            latents = stored.permute(0, 3, 1, 2).unflatten(-1, self.latent_size)
        else:
            latents = self.tokenizer.encode(self.clip_of(window.frames))
        return latents, latent_frame_valid(valid)

    def clip_encoder(self, stage: str) -> LatentClips | None:
        """The tokenizer, frozen once its own stage is over: what a latent store may hold."""
        return None if stage in ("encoder", "tokenizer", "vae") else LatentClips(self.tokenizer, self.canvas)

    def real_actions(self, window: Window, frames: int) -> tuple[Groups, Bool[Tensor, "B F n A"]]:
        """A window's actions in groups, and which elements count in the loss (none of a person's video).

        Raises:
            ActionGroupError: see `steps_of`.
            StageError: the window holds fewer actions than its frames span.
        """
        config = self.config
        # A video without actions may have any rate: its groups stay empty.
        acts = window.action_valid.flatten(1).any(dim=1)
        steps = self.steps_of(torch.where(acts, window.rate_hz, 1.0 / config.frame_s))
        clean, counts = action_targets(window, self.action_width)
        if bool(acts.any()) and clean.shape[1] < frames * int(steps.max()):
            raise StageError(
                f"the windows hold {clean.shape[1]} actions for {frames} latent frames of {config.frame_s:g} s, which"
                f" span {frames * int(steps.max())}: set the stage's window.chunk_s to {frames * config.frame_s:g} and"
                f" max_actions to {frames * config.actions_per_frame}"
            )
        if clean.shape[1] == 0:
            clean = clean.new_zeros(len(clean), 1, self.action_width)
            counts = torch.zeros_like(clean, dtype=torch.bool)
        values, held = grouped(clean, steps, frames, config.actions_per_frame)
        counted, _ = grouped(counts.float(), steps, frames, config.actions_per_frame)
        counted = (counted > 0) & held[..., None]
        return Groups(values, counted.any(dim=-1), steps), counted

    def steps_of(self, rate_hz: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
        """Actions of one latent frame at each sample's rate."""
        config = self.config
        return steps_of(rate_hz, frame_s=config.frame_s, slots=config.actions_per_frame, valid_steps=config.valid_steps)

    # Losses

    def sequence_losses(
        self,
        window: Window,
        latents: Float[Tensor, "B C G h w"],
        valid: Bool[Tensor, "B G"],
        actions: Groups,
        counts: Bool[Tensor, "B F n A"],
        generator: torch.Generator | None,
    ) -> Losses:
        """Flow matching of frames and actions, every chunk given the true ones before it (teacher forcing).

        Terms: ``video``; ``action``, of actions that see what came before them alone; ``inverse``, of actions that see
        their chunk's frames as well.

        Args:
            window: Of which the instruction is read.
            latents: Of its clip.
            valid: Which of them were recorded.
            actions: The clean groups.
            counts: Which of their elements are learned from.
            generator: Of all that is drawn.
        """
        config, device = self.config, latents.device
        batch, frames = len(latents), latents.shape[2] - 1
        future = latents[:, :, 1:]

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=device)

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, device=device)

        longest = min(config.max_chunk_frames, frames)
        length = int(torch.randint(1, longest + 1, (), generator=generator, device=device))
        shared = chunk_of(torch.arange(1, frames + 1, device=device), length)[0] - 1
        if config.levels == "frame":
            shared = torch.arange(frames, device=device)
        level, action_level = (
            flow_matching.shifted_noise_level(draw(batch, frames)[:, shared], shift=shift)
            for shift in (config.video_shift, config.action_shift)
        )
        noise, action_noise = normal(future), normal(actions.values)
        history, history_level = self._history(latents, draw, normal)
        told = draw(batch) >= config.text_dropout
        tasks = [task if said else "" for task, said in zip(window.task, told.tolist(), strict=True)]
        forward = draw(batch) < config.forward_share
        # Frames that are predicted under actions have to read them.
        actions_told = (draw(batch) >= config.action_dropout) | forward if config.action_dropout > 0 else None
        video, policy, inverse = self.transformer(
            Sequences(
                clean=history,
                clean_level=history_level,
                noisy=noisy_video(future, noise, level),
                noisy_level=level,
                frame_valid=valid,
                actions=actions.values,
                noisy_actions=flow_matching.interpolate(actions.values, action_noise, action_level),
                action_level=action_level,
                action_valid=actions.valid,
                action_steps=actions.steps,
                words=self.text(tasks, device),
                words_valid=None,
                forward=forward,
                chunk_length=length,
                actions_told=actions_told,
            )
        )
        squared = (video.float() - flow_matching.velocity_to_noise(future, noise).float()).square()
        by_frame = squared.transpose(1, 2).flatten(2).mean(dim=2) * self._weight(level, config.video_shift)
        value, has_any = masked_mean(by_frame, valid[:, 1:])
        terms = {"video": LossTerm(value=value, valid=has_any & valid[:, 0], weight=config.video_weight)}
        target = flow_matching.velocity_to_noise(actions.values, action_noise)
        weight = self._weight(action_level, config.action_shift)[..., None, None]
        for name, made, share in (
            ("action", policy, config.action_weight),
            ("inverse", inverse, config.inverse_weight),
        ):
            value, has_any = masked_mean((made - target).square() * weight, counts)
            terms[name] = LossTerm(value=value, valid=has_any, weight=share)
        still = (future - latents[:, :, :-1]).square().transpose(1, 2).flatten(2).mean(dim=2)
        copying, some = masked_mean(still, valid[:, 1:])
        return Losses(terms=terms, metrics={"copy_previous": LossTerm(value=copying, valid=some).mean()})

    def _history(self, latents: Tensor, draw: Any, normal: Any) -> tuple[Tensor, Tensor]:
        """The clean copy; in a share of the samples noisy, as imagined frames are (LingBot-VA)."""
        config, (batch, frames) = self.config, (len(latents), latents.shape[2])
        if config.noisy_history <= 0.0:
            return latents, torch.zeros(batch, frames, device=latents.device)
        chosen = draw(batch, 1) < config.noisy_history
        drawn = flow_matching.shifted_noise_level(
            config.noisy_history_level * draw(batch, frames), shift=config.video_shift
        )
        level = torch.where(chosen, drawn, 0.0)
        return noisy_video(latents, normal(latents), level), level

    def _weight(self, level: Tensor, shift: float) -> Tensor:
        if self.config.weighting == "uniform":
            return torch.ones_like(level)
        return flow_matching.bell_weight(level, shift=shift)

    def fake_window(self, batch_size: int = 2, *, stage: str | None = None, seed: int = 0) -> Window:
        """A random window of a training sequence, at half the padded rate."""
        return self.fake_sequence(self.config.training_frames, batch_size, seed=seed)

    def fake_sequence(self, frames: int, batch_size: int = 2, *, seed: int = 0) -> Window:
        """A random window of a sequence with ``frames`` latent frames after the first."""
        config = self.config
        return fake_robot_window(
            batch_size=batch_size,
            cameras=config.cameras,
            size=config.resolution,
            frame_times=config.offsets_s(frames),
            horizon_s=frames * config.frame_s,
            max_actions=frames * config.actions_per_frame,
            valid_steps=config.valid_steps,
            state_dim=8,
            action_dim=min(7, self.action_width),
            seed=seed,
        )
