"""What others have of the same arithmetic, in one process with ours: built at our model's shape, without a download.

``fastwam``: LeRobot's Fast-WAM with our weights mapped across, around our VAE (theirs is loaded by name). ``wan``:
diffusers' Wan transformer, which holds the very weights that our backbone runs. ``smolvla``: LeRobot's SmolVLA at
LaWAM's width, tokens, chunk and steps; another architecture, so a row for scale and no ratio to be proud of.
``vla_jepa`` cannot be built without files of Qwen3-VL and V-JEPA 2 that its constructor loads by name.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from wamkit.errors import WamkitError
from wamkit.evaluation.latency import Call, Protocol, compare, warm_up
from wamkit.evaluation.latency_policy import model_call
from wamkit.inference.policy import Policy
from wamkit.inference.runtime_fusions import optimise
from wamkit.inference.runtime_passes import Constants
from wamkit.inference.runtime_program import build
from wamkit.inference.runtime_record import record


class PeerUnavailable(WamkitError):
    """A peer that cannot be built here, and why."""


@dataclass(frozen=True)
class Peer:
    """Another implementation, and ours beside it, as calls over the same ring of observations."""

    call: Call
    plain: Call
    fast: Call
    """Ours, through the runtime."""
    conditions: dict[str, Any]
    parity: dict[str, float] | None = None
    """Largest difference of the results in fp32 with the same weights and inputs; None where weights differ."""


@dataclass(frozen=True)
class _Boundary:
    """Observations on the device, as one sample each."""

    policy: Policy
    fast: Policy
    ring: Sequence[Mapping[str, Any]]
    batches: list[Any] = field(default_factory=list)

    def batch(self, index: int) -> Any:
        if not self.batches:
            embodiment = self.policy.contract.bodies[0].embodiment
            self.batches.extend(self.policy.observation([entry], embodiment=embodiment) for entry in self.ring)
        return self.batches[index]


class _OurVAE(nn.Module):
    """In place of LeRobot's VAE: takes what theirs is given and returns standardised latents."""

    temporal_downsample_factor = 4

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae, self.z_dim, self.upsampling_factor = vae, vae.config.channels, vae.config.cell

    def encode(self, videos: Sequence[Tensor], **_: Any) -> Tensor:
        pixels = torch.stack(list(videos))
        return self.vae.standardised(self.vae._posterior(pixels.float()).mean).to(pixels.dtype)


def lerobot_fastwam(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """LeRobot's Fast-WAM of this model's dimensions, weights and VAE.

    Raises:
        PeerUnavailable: LeRobot's Fast-WAM is not installed.
    """
    try:
        from lerobot.policies.fastwam.wan import modular, video_dit
    except ImportError as error:
        raise PeerUnavailable(f"lerobot's fastwam cannot be imported ({error})") from error
    from wamkit.models.fast_wam.published_names import by_layer, published_names

    video, action = model.config.video, model.config.action
    shared = dict(
        num_heads=video.heads,
        attn_head_dim=video.head_width,
        num_layers=video.layers,
        text_dim=video.text_width,
        freq_dim=video.time_width,
        eps=1e-6,
    )
    video_expert = video_dit.WanVideoDiT(
        hidden_dim=video.width,
        in_dim=video.channels,
        out_dim=video.channels,
        ffn_dim=video.mlp_width,
        patch_size=video.patch,
        seperated_timestep=True,
        video_attention_mask_mode="first_frame_causal",
        **shared,
    )
    action_expert = modular.ActionDiT(
        hidden_dim=action.width, action_dim=action.action_dim, ffn_dim=action.mlp_width, **shared
    )
    device = str(model.proprioception.weight.device)
    theirs = modular.FastWAM(
        video_expert=video_expert,
        action_expert=action_expert,
        mot=modular.MoT({"video": video_expert, "action": action_expert}, mot_checkpoint_mixed_attn=False),
        vae=_OurVAE(model.vae),
        text_dim=video.text_width,
        proprio_dim=model.config.max_state_dim,
        device=device,
        torch_dtype=dtype,
        video_infer_shift=model.config.shift,
        action_infer_shift=model.config.shift,
    )
    own = model.state_dict()
    mapped = by_layer({name: own[our] for our, name in published_names(own).items()})
    theirs.load_state_dict({name.removeprefix("model."): value for name, value in mapped.items()})
    # The VAE is ours and stays as it is.
    theirs.mot.to(device=device, dtype=dtype)
    theirs.proprio_encoder.to(device=device, dtype=dtype)
    return theirs.eval()


def fastwam_inputs(model: Any, observation: Any) -> dict[str, Any]:
    """One sample's picture in [0, 1], padded state and words, as LeRobot's `infer_action` takes them."""
    from wamkit.models.chunk import padded

    words = model.text(observation.task, model.proprioception.weight.device)
    return dict(
        prompt=None,
        input_image=model.clip_of({c: p.unsqueeze(1) for c, p in observation.images.items()})[:, 0].float() / 255.0,
        action_horizon=model.config.max_actions,
        proprio=padded(observation.state, model.config.max_state_dim),
        context=words,
        context_mask=torch.ones(words.shape[:2], dtype=torch.bool, device=words.device),
        num_inference_steps=model.config.action.denoise_steps,
    )


@torch.no_grad()
def fastwam_parity(model: Any, theirs: Any, observation: Any, seed: int = 0) -> dict[str, float]:
    """Largest difference of the actions, both in float32 from the same noise, every action of the chunk real."""
    expected = theirs.infer_action(**fastwam_inputs(model, observation), seed=seed)["action"]
    noise = torch.randn(1, *model.action_noise_shape, generator=torch.Generator().manual_seed(seed))
    words, words_valid = model.words_of(observation.task, observation.state)
    everything = torch.ones(noise.shape[:2], dtype=torch.bool, device=words.device)
    present = model.present_of(observation)
    actions = model.denoise_after(present, noise.to(words.device), words, words_valid, everything)[0].float().cpu()
    return {"largest_difference": float((actions - expected).abs().max()), "largest_action": float(actions.abs().max())}


def fastwam(at: _Boundary) -> Peer:
    """LeRobot's Fast-WAM with our weights."""
    model = at.policy.model
    if model.name != "fast_wam" or model.config.mode != "uncond":
        raise PeerUnavailable("lerobot's fastwam has the arithmetic of fast_wam in mode uncond alone")
    parity = fastwam_parity(model, lerobot_fastwam(model), at.batch(0))
    dtype = torch.bfloat16 if at.policy._autocast else torch.float32
    theirs = lerobot_fastwam(model, dtype)
    inputs = [fastwam_inputs(model, at.batch(index)) for index in range(len(at.ring))]

    def call(index: int) -> Any:
        with torch.inference_mode():
            return theirs.infer_action(**inputs[index], seed=index)

    conditions = {
        "boundary": "model",
        "weights": "ours, mapped",
        "vae": "ours",
        "precision": str(dtype).removeprefix("torch."),
        "faster_path_of_theirs": None,
    }
    return Peer(call, model_call(at.policy, at.ring), model_call(at.fast, at.ring), conditions, parity)


def wan(at: _Boundary) -> Peer:
    """The transformer that our backbone is, by diffusers' own forward, over one latent frame."""
    model = at.policy.model
    backbone = getattr(model, "backbone", None)
    if model.name != "fast_wam" or backbone is None:
        raise PeerUnavailable("diffusers' Wan transformer is compared with fast_wam's video expert")
    device = at.policy.device
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.config.vae.channels, 1, *model.latent_size)
    frames = [torch.randn(shape, generator=generator).to(device) for _ in at.ring]
    words = model.text(at.batch(0).task, device)
    level = torch.full((1, 1), 0.5, device=device)

    def ours(latents: Tensor, level: Tensor, words: Tensor) -> Tensor:
        return backbone(latents, level, words)

    def theirs(latents: Tensor) -> Tensor:
        return backbone.model(latents, 1000.0 * level[:, 0], words, return_dict=False)[0]

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=at.policy._autocast)

    runtime = at.fast.runtime
    assert runtime is not None
    recording = record(ours, (frames[0], level, words), dtype=runtime.dtype)
    optimise(recording, Constants())
    program = build(recording)
    fast: Callable[..., list[Tensor]] = program.run
    if runtime.graphs:
        from wamkit.inference.runtime_graphs import GraphedChunk

        graphed = GraphedChunk(program.run, None, [frames[0], level, words], None)
        fast = lambda *given: graphed(given, None)  # noqa: E731

    def in_inference(function: Callable[[int], Any]) -> Call:
        def call(index: int) -> Any:
            with torch.inference_mode(), autocast():
                return function(index)

        return call

    with torch.no_grad():
        difference = (ours(frames[0], level, words) - theirs(frames[0])).abs().max()
    conditions = {
        "boundary": "video expert: latents of one frame, noise level and words to velocity",
        "weights": "the same tensors",
        "tokens": math.prod(backbone.grid(frames[0])),
        "precision": "bf16" if at.policy._autocast else "fp32",
    }
    return Peer(
        in_inference(lambda index: theirs(frames[index])),
        in_inference(lambda index: ours(frames[index], level, words)),
        in_inference(lambda index: fast(frames[index], level, words)),
        conditions,
        {"largest_difference": float(difference)},
    )


def smolvla_model(config: Any) -> Any:
    """LeRobot's SmolVLA at the width, picture, chunk and steps of a LaWAM's config, random weights."""
    try:
        from lerobot.policies.smolvla import smolvlm_with_expert
        from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
        from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching
        from transformers import SmolVLMConfig
    except ImportError as error:
        raise PeerUnavailable(f"lerobot's smolvla cannot be imported ({error})") from error
    text, layers = config.vlm, config.action.layers
    shape = SmolVLMConfig(
        text_config=dict(
            model_type="llama",
            vocab_size=text.vocabulary,
            hidden_size=text.width,
            intermediate_size=text.mlp_width,
            num_hidden_layers=layers,
            num_attention_heads=text.heads,
            num_key_value_heads=text.key_value_heads,
            head_dim=text.head_dim,
            pad_token_id=0,
        ),
        vision_config=dict(
            hidden_size=text.vision_width,
            intermediate_size=text.vision_mlp_width,
            num_hidden_layers=text.vision_layers,
            num_attention_heads=text.vision_heads,
            image_size=text.resolution,
            patch_size=text.vision_patch,
        ),
        scale_factor=2,
        image_token_id=text.vocabulary - 1,
        pad_token_id=0,
    )
    ids = SimpleNamespace(fake_image_token_id=text.vocabulary - 2, global_image_token_id=text.vocabulary - 3)
    settings = SmolVLAConfig(
        chunk_size=config.max_actions,
        n_action_steps=config.max_actions,
        max_state_dim=32,
        max_action_dim=config.action.action_dim,
        num_steps=config.action.denoise_steps,
        num_vlm_layers=layers,
        num_expert_layers=layers,
        expert_width_multiplier=config.action.width / text.width,
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:
        shape.save_pretrained(Path(folder))
        settings.vlm_model_name = folder
        # Its processor is asked for two token ids and no more.
        with patch.object(
            smolvlm_with_expert.AutoProcessor, "from_pretrained", lambda *_: SimpleNamespace(tokenizer=ids)
        ):
            return VLAFlowMatching(settings).eval()


def smolvla(at: _Boundary) -> Peer:
    """LeRobot's SmolVLA of LaWAM's shape."""
    model = at.policy.model
    if model.name != "lawam":
        raise PeerUnavailable("lerobot's smolvla is set beside lawam")
    device, config = at.policy.device, model.config
    theirs = smolvla_model(config).to(device)
    noise = torch.randn(1, *model.action_noise_shape, device=device)
    ids, valid = (part.to(device) for part in model.vlm.tokenize(at.batch(0).task))
    seen = torch.ones(1, dtype=torch.bool, device=device)
    state = torch.zeros(1, 32, device=device)

    def call(index: int) -> Any:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=at.policy._autocast):
            images = [at.batch(index).images[camera].float() / 127.5 - 1.0 for camera in config.cameras]
            return theirs.sample_actions(images, [seen] * len(images), ids, valid, state, noise=noise)

    conditions = {
        "boundary": "model",
        "weights": "random, another architecture: expert and language model of LaWAM's width and the expert's depth",
        "parameters": sum(weight.numel() for weight in theirs.parameters()),
        "precision": "bf16" if at.policy._autocast else "fp32",
    }
    return Peer(call, model_call(at.policy, at.ring), model_call(at.fast, at.ring), conditions)


def vla_jepa(_: _Boundary) -> Peer:
    """Cannot be built."""
    raise PeerUnavailable(
        "lerobot's vla_jepa loads Qwen3-VL and V-JEPA 2 with their processors by name in its constructor, and no small"
        " ones are published: it cannot be built without a download"
    )


PEERS: dict[str, tuple[str, Callable[[_Boundary], Peer]]] = {
    "fastwam": ("fast_wam", fastwam),
    "wan": ("fast_wam", wan),
    "smolvla": ("lawam", smolvla),
    "vla_jepa": ("lawam", vla_jepa),
}
"""Each with the model of ours that it is set beside."""


def beside(name: str, policy: Policy, fast: Policy, ring: Sequence[Mapping[str, Any]], protocol: Protocol) -> Any:
    """Eager against eager and their best against ours, by blocks A B B A; A is the peer.

    Raises:
        PeerUnavailable: it cannot be built here.
    """
    peer = PEERS[name][1](_Boundary(policy, fast, ring))
    rows = {}
    warm = {"peer": warm_up(peer.call, protocol)}
    for what, call in (("plain", peer.plain), ("runtime", peer.fast)):
        warm[what] = warm_up(call, protocol)
        cell = compare(peer.call, call, protocol)
        rows[what] = {**cell, "peer": cell.pop("first"), "ours": cell.pop("second")}
    return {"beside": PEERS[name][0], **peer.conditions, "parity": peer.parity, "warm_up": warm, "against": rows}
