"""LaWAM's objective, a function for each stage of training (LaWAM Eq. 4 and 5); what reaches what is decided here."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wamkit.data.augment import Augmentation, random_shift
from wamkit.dynamics.base import FramePairs
from wamkit.dynamics.latent_action import LatentActionModel, StateChangePredictor
from wamkit.encoders.patch_encoder import PatchEncoder
from wamkit.losses import flow_matching
from wamkit.losses.latent_action import distillation
from wamkit.losses.reduction import masked_mean, sample_mean
from wamkit.models.chunk import action_targets, padded
from wamkit.models.lawam.acting import Intention, LaWAMActing
from wamkit.types import Losses, LossTerm, Window


def encoder_loss(model: LaWAMActing, window: Window, generator: torch.Generator | None = None) -> Losses:
    """What the self-trained encoder learns from the primary view's present."""
    assert isinstance(model.vision_encoder, PatchEncoder)  # the stage is no other's
    camera = model.config.cameras[0]
    losses = model.vision_encoder.pretrain_losses(window.frames[camera][:, 0], generator)
    valid = window.frame_valid[camera][:, 0]
    return Losses(terms={name: LossTerm(value=value, valid=valid) for name, value in losses.items()})


def latent_action_loss(model: LaWAMActing, window: Window, generator: torch.Generator | None = None) -> Losses:
    """The latent-action model's own losses and, where it reads out the state's change, that change (Eq. 4)."""
    augmentation = Augmentation() if model.config.dual_view and model.lam.training else None
    views, valid = _views(model, window, augmentation, generator)
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
    losses = model.lam.losses(pairs, generator)
    terms = dict(losses.terms)
    if isinstance(model.lam, LatentActionModel) and model.lam.state_predictor is not None:
        value, has_state = _state_change(model.lam.state_predictor, losses.latent_action, window, valid)
        terms["state"] = LossTerm(value=value, valid=has_state, weight=model.config.state_weight)
    still = sample_mean((predicted[:, 0] - predicted[:, 1]).float().square())
    metrics = {"copy_present": LossTerm(value=still, valid=valid).mean()}
    return Losses(terms=terms, metrics=metrics)


def policy_loss(model: LaWAMActing, window: Window, generator: torch.Generator | None = None) -> Losses:
    """Distillation of the latent action, the subgoal's error and the action expert's flow matching (Eq. 5)."""
    config = model.config
    views, valid = _views(model, window)
    present, future = views[:, 0, 0], views[:, 0, 1]
    observation = window.observation()
    shifted = {
        camera: random_shift(frames, config.trunk_image_shift, generator)
        for camera, frames in observation.images.items()
    }
    there = {camera: window.frame_valid[camera][:, 0] for camera in config.cameras}
    intention = model.intend(replace(observation, images=shifted), present, there)
    terms: dict[str, LossTerm] = {}
    if intention.latent_action is not None and config.distillation_weight > 0:
        with torch.no_grad():
            teacher = model.lam.infer(present, future).mean.float()
        value = distillation(intention.latent_action.float(), teacher)
        terms["distillation"] = LossTerm(value=value, valid=valid, weight=config.distillation_weight)
    if intention.subgoal is not None and config.subgoal_weight > 0:
        value = sample_mean((intention.subgoal.float() - future.float()).square())
        terms["subgoal"] = LossTerm(value=value, valid=valid, weight=config.subgoal_weight)
    terms["action"] = _action_term(model, window, intention, generator)
    return Losses(terms=terms)


def _views(
    model: LaWAMActing,
    window: Window,
    augmentation: Augmentation | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "B V 2 N D"], Bool[Tensor, "B"]]:
    """Features of the primary view's present and horizon, and which samples have both.

    Stored features come in the views that the stage asked for. Frames are encoded here: as they are, or in two draws
    of the augmentation for each clip, new ones at every step.
    """
    camera = model.config.cameras[0]
    valid = window.frame_valid[camera][:, 0] & window.frame_valid[camera][:, -1]
    if camera in window.features:
        features = window.features[camera].float()
        return torch.stack([features[:, :, 0], features[:, :, -1]], dim=2), valid
    frames = window.frames[camera]
    clip = torch.stack([frames[:, 0], frames[:, -1]], dim=1)
    drawn = [clip] if augmentation is None else [augmentation.apply(clip, generator) for _ in range(2)]
    clips = torch.stack(drawn, dim=1)
    return model.encode(clips.flatten(0, 2)).unflatten(0, clips.shape[:3]), valid


def _state_change(
    predictor: StateChangePredictor, latent: Float[Tensor, "B Q Z"], window: Window, valid: Bool[Tensor, "B"]
) -> tuple[Float[Tensor, "B"], Bool[Tensor, "B"]]:
    """Embodiment 0 is human video: no state. Elsewhere the change of each state dimension that exists counts."""
    change = window.state[:, -1] - window.state[:, 0]
    mask = window.state_valid[:, 0] & window.state_valid[:, -1] & (window.embodiment != 0)[:, None] & valid[:, None]
    state = padded(torch.where(window.state_valid[:, 0], window.state[:, 0], 0.0), predictor.max_state_dim)
    guess = predictor(latent, state, window.embodiment)[:, : change.shape[-1]].float()
    return masked_mean((guess - torch.where(mask, change, 0.0)).square(), mask)


def _action_term(
    model: LaWAMActing, window: Window, intention: Intention, generator: torch.Generator | None
) -> LossTerm:
    """Flow matching of the chunk under several noise levels for each sample; none of a person's video."""
    context = model.action_context(intention)
    clean, counts = action_targets(window, model.config.action.action_dim)
    device = clean.device
    clean = clean.unsqueeze(1).expand(-1, model.config.noise_draws, -1, -1)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    uniform = torch.rand(clean.shape[:2], generator=generator, device=device)
    level = flow_matching.beta_noise_level(uniform)
    velocity = model.flow.velocity(
        flow_matching.interpolate(clean, noise, level),
        model.flow.modulations(level),
        context,
        model.flow.time_code(window.action_times),
        window.action_valid.any(dim=-1),
        window.embodiment,
    )
    error = flow_matching.squared_error(velocity.float(), flow_matching.velocity_to_data(clean, noise))
    value, valid = masked_mean(error, counts.unsqueeze(1).expand_as(error))
    return LossTerm(value=value, valid=valid)
