"""What Light-WAM and Fast-WAM share: the canvas, the VAE, the words, the video backbone and its two first stages.

With published weights VAE and backbone are there from the start. Without them, stage ``vae`` trains the VAE on the
run's own frames, stage ``video`` the backbone by flow matching on its latents, neither with an action; then both
stand exactly where Wan stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.data.canvas import Canvas
from wamkit.dynamics.video_dit import LoRASettings, VideoDiT
from wamkit.dynamics.video_flow import (
    Velocity,
    draw_levels,
    future_loss,
    latent_frame_valid,
    levels_of_frames,
    noisy_video,
    sample_future,
)
from wamkit.encoders.latent_clips import LatentClips
from wamkit.encoders.umt5 import UMT5Text
from wamkit.encoders.wan_vae import WanVAE
from wamkit.models.base import StageError, WorldActionModel
from wamkit.models.chunk import chunk_times, padded
from wamkit.models.fake_window import fake_robot_window
from wamkit.models.video.config import VideoModelConfig
from wamkit.types import Future, Losses, LossTerm, Observation, Window


class VideoWorldModel(WorldActionModel):
    """Base of the models whose world model is a video diffusion transformer in a VAE's latents."""

    config: Any

    def __init__(self, config: VideoModelConfig, lora: LoRASettings | None = None) -> None:
        super().__init__()
        self.config = config
        self.canvas = Canvas(config.canvas, config.cameras, *config.resolution)
        self.vae = WanVAE(config.vae)
        self.latent_frames = self.vae.latent_frames(config.video_frames)
        self.latent_size = self.vae.latent_size(self.canvas.height, self.canvas.width)
        self.text = UMT5Text(config.text)
        self.backbone = VideoDiT(config.video, lora)
        self.proprioception = nn.Linear(config.max_state_dim, config.text.width)

    def load_pretrained_trunks(self) -> None:
        """Load Wan's published VAE and transformer, where the config names them."""
        if self.config.vae.weights is not None:
            self.vae.load_pretrained()
        if self.config.video.weights is not None:
            self.backbone.load_pretrained()

    # Stages

    @property
    def stages(self) -> tuple[str, ...]:
        """``vae`` and ``video`` only where no published weights stand in for them."""
        vae = ("vae",) if self.config.vae.weights is None else ()
        video = ("video",) if self.config.video.weights is None else ()
        return (*vae, *video, "policy")

    def prepare_stage(self, stage: str) -> None:
        """The VAE, then the whole backbone, then the policy's parts."""
        self.check_stage(stage)
        if stage == "vae":
            self.train_only(self.vae)
        elif stage == "video":
            self.train_only()
            for parameter in self.backbone_parameters():
                parameter.requires_grad_(True)
        else:
            self.prepare_policy()

    def prepare_policy(self) -> None:
        """Set what trains in stage ``policy``."""
        raise NotImplementedError

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Of the video backbone itself, without corrections."""
        from wamkit.nn.lora import is_lora

        return [p for name, p in self.backbone.named_parameters() if not is_lora(name)]

    def reads_instructions(self, stage: str) -> bool:
        """The video backbone does, and all that is built on it."""
        return stage != "vae"

    def check_instructions(self, tasks: Sequence[str]) -> None:
        """See `WorldActionModel.check_instructions`."""
        self.text.check(tasks)

    def clip_encoder(self, stage: str) -> LatentClips | None:
        """Frozen from stage ``video`` on: what a latent store may hold."""
        return None if stage == "vae" else LatentClips(self.vae, self.canvas)

    # Present and future in latents

    def clip_of(self, frames: Mapping[str, Tensor]) -> Tensor:
        """The canvas of each frame, uint8 [B, T, 3, H, W]."""
        return self.canvas.compose({camera: frames[camera] for camera in self.config.cameras})

    @torch.no_grad()
    def latents_of(self, window: Window) -> tuple[Float[Tensor, "B C F h w"], Bool[Tensor, "B F"]]:
        """Latents of a window's clip, from the store where the window carries them, and which frames are real.

        Raises:
            StageError: the window has another number of frames than the model's clip.
        """
        config, camera = self.config, self.config.cameras[0]
        valid = window.frame_valid[camera]
        if valid.shape[1] != config.video_frames:
            raise StageError(
                f"the windows have {valid.shape[1]} frames, {self.name} takes {config.video_frames}: set the stage's"
                " window.frame_offsets_s to the model's config.frame_offsets_s"
            )
        if camera in window.features:
            stored = window.features[camera][:, 0].float()
            latents = stored.permute(0, 3, 1, 2).unflatten(-1, self.latent_size)
        else:
            latents = self.vae.encode(self.clip_of(window.frames))
        return latents, latent_frame_valid(valid)

    @torch.no_grad()
    def present_of(self, observation: Observation) -> Float[Tensor, "B C 1 h w"]:
        """The latent of what is seen now."""
        return self.vae.encode(self.clip_of({c: p.unsqueeze(1) for c, p in observation.images.items()}))

    def words_of(
        self,
        task: Sequence[str],
        state: Float[Tensor, "B S"] | None = None,
        state_valid: Bool[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B L E"], Bool[Tensor, "B L"] | None]:
        """The instruction's features and, where a state is given, proprioception as one more token.

        Raises:
            ValueError: the state is wider than the model takes.
        """
        return self.with_proprioception(self.text(task, self.proprioception.weight.device), state, state_valid)

    def with_proprioception(
        self,
        features: Float[Tensor, "B L E"],
        state: Float[Tensor, "B S"] | None = None,
        state_valid: Bool[Tensor, "B S"] | None = None,
    ) -> tuple[Float[Tensor, "B L E"], Bool[Tensor, "B L"] | None]:
        """`words_of`, where the instruction's features are at hand."""
        if state is None:
            return features, None
        weight = self.proprioception.weight
        known = torch.ones_like(state, dtype=torch.bool) if state_valid is None else state_valid
        values = padded(torch.where(known, state, 0.0), weight.shape[1])
        token = self.proprioception(values.to(weight.dtype)).unsqueeze(1).to(features.dtype)
        all_words = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        return torch.cat([features, token], dim=1), torch.cat([all_words, known.any(dim=1, keepdim=True)], dim=1)

    # Losses

    def loss(self, window: Window, stage: str, generator: torch.Generator | None = None) -> Losses:
        """The losses of one stage."""
        self.check_stage(stage)
        if stage == "vae":
            return self._vae_loss(window, generator)
        if stage == "video":
            return self._video_stage_loss(window, generator)
        return self.policy_loss(window, generator)

    def policy_loss(self, window: Window, generator: torch.Generator | None) -> Losses:
        """The losses of stage ``policy``."""
        raise NotImplementedError

    def _vae_loss(self, window: Window, generator: torch.Generator | None) -> Losses:
        losses = self.vae.pretrain_losses(self.clip_of(window.frames), generator)
        valid = window.frame_valid[self.config.cameras[0]][:, 0]
        return Losses(terms={name: LossTerm(value=value, valid=valid) for name, value in losses.items()})

    def _video_stage_loss(self, window: Window, generator: torch.Generator | None) -> Losses:
        """Flow matching at full resolution, words alone beside the frames: Wan's own objective, present kept clean."""
        latents, valid = self.latents_of(window)
        words, words_valid = self.words_of(window.task)
        term = self.video_term(latents, valid, lambda x, level: self.backbone(x, level, words, words_valid), generator)
        still = (latents[:, :, 1:] - latents[:, :, :1]).square().flatten(1).mean(dim=1)
        metrics = {"copy_present": LossTerm(value=still, valid=valid.all(dim=1)).mean()}
        return Losses(terms={"video": term}, metrics=metrics)

    def video_term(
        self,
        latents: Float[Tensor, "B C F h w"],
        valid: Bool[Tensor, "B F"],
        velocity: Velocity,
        generator: torch.Generator | None,
    ) -> LossTerm:
        """Flow matching of the future frames under one noise level for each sample."""
        shift, device = self.config.shift, latents.device
        noise = torch.randn(latents.shape, generator=generator, device=device)
        level = draw_levels(len(latents), device, generator, shift=shift)
        levels = levels_of_frames(level, latents.shape[2])
        predicted = velocity(noisy_video(latents, noise, levels), levels)
        value, has_any = future_loss(predicted, latents, noise, level, valid, shift=shift)
        return LossTerm(value=value, valid=has_any, weight=self.config.video_weight)

    def chunk_times(self, rate_hz: Float[Tensor, "B"]) -> tuple[Float[Tensor, "B K"], Bool[Tensor, "B K"]]:
        """Time stamps i/h of a chunk, and which of its steps lie inside the horizon."""
        config = self.config
        return chunk_times(
            rate_hz, horizon_s=config.horizon_s, max_actions=config.max_actions, valid_steps=config.valid_steps
        )

    # Imagination

    def video_velocity(self, words: Float[Tensor, "B L E"], words_valid: Bool[Tensor, "B L"] | None) -> Velocity:
        """Of the video under an instruction: what imagining follows from noise to frames."""
        return lambda x, level: self.backbone(x, level, words, words_valid)

    def video_noise(
        self, present: Float[Tensor, "B C 1 h w"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B C F h w"]:
        """What imagining starts from; without a generator of seed 0, so that two calls imagine the same."""
        source = generator or torch.Generator().manual_seed(0)
        shape = (*present.shape[:2], self.latent_frames, *present.shape[3:])
        return torch.randn(shape, generator=source, device=source.device).to(present.device)

    def imagined_after(
        self,
        present: Float[Tensor, "B C 1 h w"],
        words: Float[Tensor, "B L E"],
        words_valid: Bool[Tensor, "B L"] | None,
        noise: Float[Tensor, "B C F h w"] | None = None,
    ) -> Float[Tensor, "B C F h w"]:
        """The present and the frames that follow it under an instruction; ``noise``: None for `video_noise`."""
        return sample_future(
            self.video_velocity(words, words_valid),
            present,
            self.video_noise(present) if noise is None else noise,
            steps=self.config.imagine_steps,
            shift=self.config.shift,
        )

    @torch.no_grad()
    def imagined_latents(
        self, observation: Observation, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B C F h w"]:
        """The present and the imagined future, at the resolution in which the future is imagined."""
        words, words_valid = self.words_of(observation.task, observation.state)
        present = self.coarse(self.present_of(observation))
        return self.imagined_after(present, words, words_valid, self.video_noise(present, generator))

    @torch.no_grad()
    def imagine(
        self,
        observation: Observation,
        actions: Float[Tensor, "B K A"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Future:
        """Future video over the horizon, in pictures in [0, 1] on the canvas at the imagined latents' resolution.

        Raises:
            StageError: ``actions`` are given: the video follows the words, not the actions.
        """
        if actions is not None:
            raise StageError(f"{self.name} imagines what the instruction leads to; it takes no actions")
        return self._pictures_ahead(self.imagined_latents(observation, generator), observation)

    def _pictures_ahead(self, latents: Float[Tensor, "B C F h w"], observation: Observation) -> Future:
        """Imagined latents, the present first, as pictures beside the present's."""
        pictures = self.vae.decode(latents)
        seen = self.clip_of({c: p.unsqueeze(1) for c, p in observation.images.items()})[:, 0].float() / 255.0
        times = torch.tensor(self.config.frame_offsets_s[1:], device=pictures.device, dtype=torch.float32)
        return Future(
            space="pixels",
            values=pictures[:, 1:].float(),
            times=times.expand(observation.batch_size, -1),
            present=resize_pictures(seen, pictures.shape[-2:]),
        )

    def latents_ahead(self, latents: Float[Tensor, "B C F h w"]) -> Future:
        """Latents that were imagined while acting, the present first, as a future: each at its last picture's time.

        Pictures are not made of them here, where nobody may want any: see `decoded`.
        """
        tokens = latents.flatten(3).permute(0, 2, 3, 1).float()
        frames = torch.arange(1, tokens.shape[1], device=tokens.device, dtype=torch.float32)
        times = (frames * (self.config.horizon_s / (self.latent_frames - 1))).expand(len(tokens), -1)
        return Future(space="latents", values=tokens[:, 1:], times=times, present=tokens[:, 0])

    @torch.no_grad()
    def decoded(self, future: Future, observation: Observation) -> Future:
        """The pictures of `latents_ahead`, as `imagine` gives them."""
        if future.space != "latents":
            return future
        tokens = torch.cat([future.present.unsqueeze(1), future.values], dim=1)
        return self._pictures_ahead(tokens.unflatten(2, self.latent_size).permute(0, 4, 1, 2, 3), observation)

    def pictures_of(self, frames: Mapping[str, Tensor], size: Sequence[int]) -> Float[Tensor, "B T 3 h w"]:
        """The canvas of true frames in [0, 1], at the size of what `imagine` decodes to."""
        clip = self.clip_of(frames).float() / 255.0
        return resize_pictures(clip.flatten(0, 1), size).unflatten(0, clip.shape[:2])

    @torch.no_grad()
    def reconstruction_of(self, window: Window) -> Float[Tensor, "B T 3 h w"]:
        """A true clip through the VAE, at the resolution of the imagined one: the best that `imagine` could be."""
        return self.vae.decode(self.coarse(self.latents_of(window)[0]))

    def coarse(self, latents: Float[Tensor, "B C F h w"]) -> Tensor:
        """Latents at the resolution in which the future is imagined."""
        return latents

    def fake_window(self, batch_size: int = 2, *, stage: str | None = None, seed: int = 0) -> Window:
        """Random frames, states and actions of a robot at half its padded chunk's rate."""
        config = self.config
        return fake_robot_window(
            batch_size=batch_size,
            cameras=config.cameras,
            size=config.resolution,
            frame_times=config.frame_offsets_s,
            horizon_s=config.horizon_s,
            max_actions=config.max_actions,
            valid_steps=config.valid_steps,
            state_dim=min(8, config.max_state_dim),
            action_dim=min(7, self.action_width),
            seed=seed,
        )

    @property
    def action_width(self) -> int:
        """A, of the action decoder."""
        raise NotImplementedError


def resize_pictures(pictures: Float[Tensor, "B 3 H W"], size: Sequence[int]) -> Float[Tensor, "B 3 h w"]:
    """Pictures in [0, 1] at another size, each pixel the mean of those that it covers."""
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    return F.interpolate(pictures, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)
