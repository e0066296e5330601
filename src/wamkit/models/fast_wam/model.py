"""Fast-WAM: a video expert and an action expert that share their attention, and three ways to act with them.

L = L_action + L_video, both flow matching towards the noise, each stream under a noise level of its own
(papers.md 4). Whether the future must be imagined at test time is a mask, not another model.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from wamkit.actions.action_dit import ActionDiT
from wamkit.actions.flow_field import VelocityField, inpainting
from wamkit.dynamics.mixture_of_transformers import after_prefix, joint, prefill
from wamkit.dynamics.video_dit import first_frame_causal
from wamkit.dynamics.video_flow import draw_levels, future_loss, levels_of_frames, noisy_video
from wamkit.dynamics.wan_block import Rotary, Stream, called_modules, words_of
from wamkit.losses import flow_matching
from wamkit.losses.reduction import masked_mean
from wamkit.models.base import Capabilities, StageError
from wamkit.models.chunk import action_targets
from wamkit.models.fast_wam.config import FastWAMConfig, Mode, preset
from wamkit.models.phases import ActPhases
from wamkit.models.video.world_model import VideoWorldModel
from wamkit.nn.attention import KeysValues
from wamkit.types import ActionChunk, Losses, LossTerm, Observation, Window


class ActionContext(NamedTuple):
    """What the action expert reads in every denoise step; computed once per chunk."""

    prefix: list[KeysValues]
    """Each block's keys and values of the video."""
    mask: Bool[Tensor, "B 1 K M"]
    """Over the video's tokens and then the actions."""
    words: list[KeysValues]
    """Each block's keys and values of the words."""


class FastWAM(VideoWorldModel):
    """Fast-WAM whole: VAE, words, video expert, action expert."""

    name = "fast_wam"
    config_class = FastWAMConfig
    inference_settings = ("mode", "action.denoise_steps", "imagine_steps")
    capabilities = Capabilities(
        coupling="joint",
        modality="latent",
        paradigm="auxiliary_video",
        act_needs_future=False,
        imagines=("pixels",),
        action_conditioned=False,
        trains_action_free=True,
        inpaints_actions=True,
    )

    def __init__(self, config: FastWAMConfig) -> None:
        super().__init__(config)
        video = config.video
        self.action = ActionDiT(
            config.action,
            heads=video.heads,
            head_width=video.head_width,
            layers=video.layers,
            text_width=video.text_width,
        )

    @classmethod
    def preset(cls, name: str) -> FastWAMConfig:
        """See `wamkit.models.fast_wam.config.preset`."""
        return preset(name)

    def load_pretrained_trunks(self) -> None:
        """Load Wan's published weights, and start the action expert's blocks from them."""
        super().load_pretrained_trunks()
        if self.config.video.weights is not None:
            self.action.start_from(self.backbone)

    def prepare_policy(self) -> None:
        """Both experts and proprioception train."""
        self.train_only(self.action, self.proprioception)
        if self.config.video_supervision == "flow_matching":
            self.backbone.requires_grad_(True)
            return
        # Without a video loss nothing reaches the last layer, nor what the last block does after its keys and values.
        for name, parameter in self.backbone.model.named_parameters():
            parameter.requires_grad_(not self._unread(name))

    def _unread(self, name: str) -> bool:
        """Whether a weight of the video expert serves only its own output."""
        last = f"blocks.{self.config.video.layers - 1}."
        if not name.startswith(last):
            return name.startswith(("proj_out", "scale_shift_table"))
        rest = name.removeprefix(last)
        return not rest.startswith(("attn1.to_k", "attn1.to_v", "attn1.norm_k", "scale_shift_table"))

    def fsdp_units(self) -> list[nn.Module]:
        """What is called of both experts' blocks."""
        return [module for block in (*self.backbone.blocks, *self.action.blocks) for module in called_modules(block)]

    def parts(self) -> dict[str, list[nn.Module]]:
        """The published parts."""
        return {
            "vae": [self.vae],
            "text_encoder": [self.text],
            "video_expert": [self.backbone],
            "action_expert": [self.action],
            "proprioception": [self.proprioception],
        }

    def phases(self) -> ActPhases:
        """See `wamkit.models.fast_wam.phases`."""
        from wamkit.models.fast_wam.phases import FastWAMPhases

        return FastWAMPhases(self)

    @property
    def action_width(self) -> int:
        """A, of the action expert."""
        return self.config.action.action_dim

    @property
    def action_noise_shape(self) -> tuple[int, int]:
        """Padded chunk length and padded action width."""
        return self.config.max_actions, self.action_width

    # Masks

    def attention_mask(
        self, grid: tuple[int, int, int], chunk_valid: Bool[Tensor, "B K"], mode: Mode
    ) -> Bool[Tensor, "B 1 N N"]:
        """Who sees whom: video tokens first (in mode ``idm`` the noisy video, then the conditioning one), then actions.

        Video never sees actions; padded actions are seen by none.
        """
        frames, tokens = grid[0], grid[1] * grid[2]
        device, (batch, chunk) = chunk_valid.device, chunk_valid.shape
        video = frames * tokens
        copies = 2 if mode == "idm" else 1
        total = copies * video + chunk
        mask = torch.zeros(batch, 1, total, total, dtype=torch.bool, device=device)
        own = first_frame_causal(frames, tokens, device)
        for copy in range(copies):
            mask[:, :, copy * video : (copy + 1) * video, copy * video : (copy + 1) * video] = own
        seen_from = video if mode == "idm" else 0
        seen_to = tokens if mode == "uncond" else copies * video
        mask[:, :, copies * video :, seen_from:seen_to] = True
        mask[:, :, copies * video :, copies * video :] = chunk_valid[:, None, None, :]
        return mask

    # Losses

    def policy_loss(self, window: Window, generator: torch.Generator | None) -> Losses:
        """Both streams' flow matching in one joint pass, under the mask of the configured mode."""
        config, shift = self.config, self.config.shift
        latents, valid = self.latents_of(window)
        words, words_valid = self.words_of(window.task, window.state[:, 0], window.state_valid[:, 0])
        clean, counts = action_targets(window, self.action_width)
        batch, device = len(latents), latents.device

        noise = torch.randn(latents.shape, generator=generator, device=device)
        level = draw_levels(batch, device, generator, shift=shift)
        levels = levels_of_frames(level, latents.shape[2])
        action_noise = torch.randn(clean.shape, generator=generator, device=device)
        action_level = draw_levels(batch, device, generator, shift=shift)

        grid = self.backbone.grid(latents)
        stream, code = self.backbone.prepare(noisy_video(latents, noise, levels), levels, words, words_valid)
        if config.mode == "idm":
            stream = _beside(stream, self._conditioning(latents, words, words_valid, generator))
        noisy = flow_matching.interpolate(clean, action_noise, action_level)
        action_stream = self.action.prepare(noisy, action_level, self.action.words_in(words), words_valid)
        mask = self.attention_mask(grid, window.action_valid.any(dim=-1), config.mode)
        tokens, action_tokens = joint([self.backbone.blocks, self.action.blocks], [stream, action_stream], mask)

        terms: dict[str, LossTerm] = {}
        if config.video_supervision == "flow_matching":
            predicted = self.backbone.velocity(tokens[:, : grid[0] * grid[1] * grid[2]], code, grid)
            value, has_any = future_loss(predicted, latents, noise, level, valid, shift=shift)
            terms["video"] = LossTerm(value=value, valid=has_any, weight=config.video_weight)
        velocity = self.action.velocity(action_tokens)
        error = flow_matching.squared_error(velocity, flow_matching.velocity_to_noise(clean, action_noise))
        value, has_any = masked_mean(error, counts)
        value = value * flow_matching.bell_weight(action_level, shift=shift)
        terms["action"] = LossTerm(value=value, valid=has_any, weight=config.action_weight)
        return Losses(terms=terms)

    def _conditioning(
        self, latents: Tensor, words: Tensor, words_valid: Tensor | None, generator: torch.Generator | None
    ) -> Stream:
        """The video that actions are trained on in mode ``idm``: true, or noisy in a share of the samples."""
        batch, device = len(latents), latents.device
        noise = torch.randn(latents.shape, generator=generator, device=device)
        level = draw_levels(batch, device, generator, shift=self.config.shift)
        chosen = torch.rand(batch, generator=generator, device=device) < self.config.conditioning_noise
        levels = levels_of_frames(torch.where(chosen, level, 0.0), latents.shape[2])
        return self.backbone.prepare(noisy_video(latents, noise, levels), levels, words, words_valid)[0]

    # Policy

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        *,
        noise: Float[Tensor, "B K A"] | None = None,
        generator: torch.Generator | None = None,
        mode: Mode | None = None,
    ) -> ActionChunk:
        """Euler steps on the actions; ``mode`` replaces the configured one.

        The noise of the video, where one is made, is of seed 0. What it shows is handed out, in latents.
        """
        times, valid = self.chunk_times(observation.rate_hz)
        noise = self.chunk_noise(observation, noise, generator)
        words, words_valid = self.words_of(observation.task, observation.state)
        present, chosen = self.present_of(observation), mode or self.config.mode
        if chosen == "joint":
            actions, seen = self.denoise_jointly(present, noise, words, words_valid, valid)
        else:
            seen = present if chosen == "uncond" else self.imagined_after(present, words, words_valid)
            actions = self.denoise_after(seen, noise, words, words_valid, valid)
        imagined = None if chosen == "uncond" else self.latents_ahead(seen)
        return ActionChunk(actions=actions.float(), times=times, valid=valid, imagined=imagined)

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
        """The action expert's field, guided towards the known plan; nothing before it differs from `act`.

        Raises:
            StageError: in mode ``joint``, where video and actions have no field apart.
        """
        if self.config.mode == "joint":
            raise StageError("Fast-WAM in mode 'joint' cannot in-paint actions: set mode to 'uncond' or 'idm'")
        times, valid = self.chunk_times(observation.rate_hz)
        noise = self.chunk_noise(observation, noise, generator)
        words, words_valid = self.words_of(observation.task, observation.state)
        present = self.present_of(observation)
        seen = present if self.config.mode == "uncond" else self.imagined_after(present, words, words_valid)
        field = self.action_field(seen, words, words_valid, valid)
        levels = self.action_levels(noise.device).tolist()
        actions = self._euler(inpainting(field, known, weights, levels), noise)
        imagined = None if self.config.mode == "uncond" else self.latents_ahead(seen)
        return ActionChunk(actions=actions.float(), times=times, valid=valid, imagined=imagined)

    def denoise_after(
        self,
        seen: Float[Tensor, "B C F h w"],
        noise: Float[Tensor, "B K A"],
        words: Float[Tensor, "B L E"],
        words_valid: Bool[Tensor, "B L"] | None,
        chunk_valid: Bool[Tensor, "B K"],
    ) -> Float[Tensor, "B K A"]:
        """Actions beside clean video, the present alone or more."""
        return self._euler(self.action_field(seen, words, words_valid, chunk_valid), noise)

    def action_field(
        self,
        seen: Float[Tensor, "B C F h w"],
        words: Float[Tensor, "B L E"],
        words_valid: Bool[Tensor, "B L"] | None,
        chunk_valid: Bool[Tensor, "B K"],
    ) -> VelocityField:
        """Velocity towards the data of noisy actions; the video's keys and values are computed here, once."""
        context = self.action_context(seen, words, words_valid, chunk_valid)
        codes = self.action.time_code(self.action_levels(seen.device)[:-1])

        def towards_data(x: Tensor, step: int) -> Tensor:
            return -self.action_velocity(x, codes[step].expand(len(x), -1, -1, -1), context, words_valid)

        return towards_data

    def action_context(
        self,
        seen: Float[Tensor, "B C F h w"],
        words: Float[Tensor, "B L E"],
        words_valid: Bool[Tensor, "B L"] | None,
        chunk_valid: Bool[Tensor, "B K"],
    ) -> ActionContext:
        """The video expert's pass over clean frames, and the words as the action expert reads them."""
        grid, clean = self.backbone.grid(seen), torch.zeros(len(seen), seen.shape[2], device=seen.device)
        stream, _ = self.backbone.prepare(seen, clean, words, words_valid)
        tokens, chunk = grid[1] * grid[2], chunk_valid.shape[1]
        causal = first_frame_causal(grid[0], tokens, seen.device) if grid[0] > 1 else None
        _, prefix = prefill(self.backbone.blocks, stream, causal)
        everything = torch.ones(len(seen), grid[0] * tokens, dtype=torch.bool, device=seen.device)
        mask = torch.cat([everything, chunk_valid], dim=1)[:, None, None, :].expand(-1, -1, chunk, -1)
        own_words = self.action.words_in(words)
        projected = [words_of(block, own_words) for block in self.action.blocks]
        return ActionContext(prefix, mask, projected)

    def action_velocity(
        self,
        x: Float[Tensor, "B K A"],
        time: Float[Tensor, "B 1 6 D"],
        context: ActionContext,
        words_valid: Bool[Tensor, "B L"] | None,
    ) -> Float[Tensor, "B K A"]:
        """Velocity towards the noise, from the action expert's `time_code` of the noise level."""
        stream = self.action.enter_at(x, time, None, words_valid)
        return self.action.velocity(
            after_prefix(self.action.blocks, stream, context.prefix, context.mask, context.words)
        )

    def _euler(self, field: VelocityField, noise: Float[Tensor, "B K A"]) -> Float[Tensor, "B K A"]:
        """From noise to actions along a field, in steps that lie closer together near the noise."""
        x = noise
        for step, (now, following) in enumerate(pairwise(self.action_levels(noise.device))):
            x = x + (now - following) * field(x, step)
        return x

    def denoise_jointly(
        self,
        present: Float[Tensor, "B C 1 h w"],
        noise: Float[Tensor, "B K A"],
        words: Float[Tensor, "B L E"],
        words_valid: Bool[Tensor, "B L"] | None,
        chunk_valid: Bool[Tensor, "B K"],
    ) -> tuple[Float[Tensor, "B K A"], Float[Tensor, "B C F h w"]]:
        """Actions and video side by side, under the same levels."""
        video = self.noisy_after(present, self.video_noise(present))
        mask = self.attention_mask(self.backbone.grid(video), chunk_valid, "joint")
        own_words, x = self.action.words_in(words), noise
        for now, following in pairwise(self.action_levels(noise.device)):
            x, video = self.joint_step(x, video, now, following, words, own_words, words_valid, mask)
        return x, video

    def joint_step(
        self,
        x: Float[Tensor, "B K A"],
        video: Float[Tensor, "B C F h w"],
        now: Float[Tensor, ""],
        following: Float[Tensor, ""],
        words: Float[Tensor, "B L E"],
        own_words: Float[Tensor, "B L D"],
        words_valid: Bool[Tensor, "B L"] | None,
        mask: Bool[Tensor, "B 1 N N"],
    ) -> tuple[Float[Tensor, "B K A"], Float[Tensor, "B C F h w"]]:
        """One Euler step of both, from one noise level to the following; the present stays as it is."""
        level, grid = now.expand(len(x)), self.backbone.grid(video)
        stream, code = self.backbone.prepare(video, levels_of_frames(level, video.shape[2]), words, words_valid)
        action_stream = self.action.prepare(x, level, own_words, words_valid)
        tokens, out = joint([self.backbone.blocks, self.action.blocks], [stream, action_stream], mask)
        moved = video + (following - now) * self.backbone.velocity(tokens, code, grid)
        return x + (following - now) * self.action.velocity(out), self.noisy_after(video[:, :, :1], moved)

    @staticmethod
    def noisy_after(present: Float[Tensor, "B C 1 h w"], video: Float[Tensor, "B C F h w"]) -> Tensor:
        """A video whose first frame is the present."""
        return torch.cat([present, video[:, :, 1:]], dim=2)

    def action_levels(self, device: torch.device) -> Float[Tensor, "steps_and_one"]:
        """Noise levels of the Euler steps, from noise to data."""
        steps = self.config.action.denoise_steps
        return flow_matching.shifted_euler_levels(steps, shift=self.config.shift, device=device)


def _beside(first: Stream, second: Stream) -> Stream:
    """Two streams of one expert as one; they share words, and each token keeps its own position and time."""
    rotary = Rotary(
        torch.cat([first.rotary.cosines, second.rotary.cosines]), torch.cat([first.rotary.sines, second.rotary.sines])
    )
    return Stream(
        torch.cat([first.tokens, second.tokens], dim=1),
        torch.cat([first.time, second.time], dim=1),
        rotary,
        first.words,
        first.words_mask,
    )
