"""What is timed: a policy's calls at each boundary, on a ring of made-up observations of its own shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wamkit.data.contract_terms import BodyContract, CameraContract, Contract, VectorContract
from wamkit.data.embodiments import embodiment_name
from wamkit.data.normalize import ACTION, STATE, Normalizer
from wamkit.encoders.umt5 import UMT5Text
from wamkit.evaluation.latency import Call, Protocol, by_part, calls_of, conditions, measure, summarise, timed, warm_up
from wamkit.inference.observing import IMAGE_PREFIX, STATE_KEY
from wamkit.inference.policy import Policy
from wamkit.models import registry
from wamkit.models.base import WorldActionModel

INSTRUCTION = "open the drawer"


def untrained_policy(name: str, preset: Any, *, device: str = "cpu", precision: str = "auto", seed: int = 0) -> Policy:
    """A model with random weights and unit statistics behind the door of a policy; ``preset`` may be a config.

    Latency of a fixed-shape model does not depend on its weights' values; what it does never means anything. No file
    of published weights is read: words are bytes in LaWAM, and the features of `INSTRUCTION` are random where a
    published text encoder would make them.
    """
    torch.manual_seed(seed)
    config = registry.model_class(name).preset(preset) if isinstance(preset, str) else preset
    vlm: Any = getattr(config, "vlm", None)
    if getattr(vlm, "weights", None) is not None:
        config = replace(config, vlm=replace(vlm, weights=None))
    # Made where it is to be: billions of random numbers take minutes on a CPU.
    with torch.device(device):
        model = registry.build(name, config).eval()
    text = getattr(model, "text", None)
    if isinstance(text, UMT5Text) and text.settings.weights is not None:
        for task in (INSTRUCTION, ""):  # the empty one is guidance's
            features = torch.randn(text.settings.max_tokens, text.settings.width)
            text._known[text.settings.prompt.format(task=task)] = features
    return Policy(model.to(device), *unit_terms(model), stage="untrained", precision=precision)


def unit_terms(model: WorldActionModel) -> tuple[Normalizer, Contract]:
    """Statistics that change nothing, and a contract of one body with the shapes of the model's `fake_window`."""
    window = model.fake_window(1)
    frames, rate = next(iter(window.frames.values())), float(window.rate_hz[0])
    size = (int(frames.shape[-2]), int(frames.shape[-1]))
    widths = {STATE: window.state.shape[-1], ACTION: window.actions.shape[-1]}
    body = embodiment_name(int(window.embodiment[0]))
    units = {feature: {"mean": np.zeros(width), "std": np.ones(width)} for feature, width in widths.items()}

    def vector(letter: str, width: int) -> VectorContract:
        zeros, ones = (0.0,) * width, (1.0,) * width
        names = tuple(f"{letter}{index}" for index in range(width))
        return VectorContract(names=names, mean=zeros, std=ones, low=tuple(-x for x in ones), high=ones)

    contract = Contract(
        cameras=tuple((camera, size) for camera in model.config.cameras),
        resolution=size,
        resize="stretch",
        horizon_s=float(model.config.horizon_s),
        bodies=(
            BodyContract(
                embodiment=body,
                statistics=body,
                rate_hz=rate,
                cameras=tuple(CameraContract(name=c, recorded_as=c, size=size) for c in model.config.cameras),
                state=vector("s", widths[STATE]),
                action=vector("a", widths[ACTION]),
            ),
        ),
    )
    return Normalizer({body: units}, rates={body: rate}), contract


def observation_ring(
    policy: Policy, count: int, *, instruction: str = INSTRUCTION, seed: int = 0
) -> list[dict[str, Any]]:
    """``count`` different observations of the policy's shapes: pictures of noise, states from the unit normal."""
    rng = np.random.default_rng(seed)
    height, width = policy.contract.resolution
    body = _body(policy)
    ring: list[dict[str, Any]] = []
    for _ in range(count):
        entry: dict[str, Any] = {
            IMAGE_PREFIX + camera: rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
            for camera in policy.cameras
        }
        if body.state is not None:
            entry[STATE_KEY] = rng.normal(size=len(body.state.names)).astype(np.float32)
        ring.append(entry | {"task": instruction})
    return ring


def _body(policy: Policy) -> BodyContract:
    """The body with the highest rate, of the first embodiment."""
    return policy.body(policy.contract.bodies[0].embodiment)


def policy_call(policy: Policy, ring: Sequence[Mapping[str, Any]]) -> Call:
    """Host to host: uint8 pictures, state and words in, physical actions out, noise drawn from a seed.

    Of a policy with a memory the first chunk of an episode: the ring's pictures are no episode.
    """
    embodiment = policy.contract.bodies[0].embodiment

    def call(index: int) -> Any:
        if policy.remembers:
            policy.reset()
        return policy.act(ring[index], embodiment=embodiment, seeds=[index])

    return call


def model_call(policy: Policy, ring: Sequence[Mapping[str, Any]]) -> Call:
    """Device to device: the model alone, or its runtime where the policy has one; episodes as in `policy_call`."""
    embodiment = policy.contract.bodies[0].embodiment
    batches = [policy.observation([entry], embodiment=embodiment) for entry in ring]
    shape = policy.model.action_noise_shape
    noise = None if shape is None else torch.randn(len(ring), 1, *shape, device=policy.device)

    def call(index: int) -> Any:
        if policy.remembers:
            policy.reset()
        return policy.act_normalised(batches[index], noise=None if noise is None else noise[index])

    return call


def description(policy: Policy) -> dict[str, Any]:
    """What a row must name besides its numbers (speed.md): cameras, tokens and steps as far as the model says them."""
    body, model = _body(policy), policy.model
    phases = model.phases()
    chunk = model.action_noise_shape
    weights = list(model.parameters())
    return {
        "model": model.name,
        "cameras": list(policy.cameras),
        "resolution": list(policy.contract.resolution),
        "chunk": None if chunk is None else chunk[0],
        "rate_hz": body.rate_hz,
        "denoise_steps": None if phases is None else phases.steps,
        "parameters": sum(weight.numel() for weight in weights),
        "batch": 1,
        "guidance": False,
        "threads": torch.get_num_threads(),
        "device": str(policy.device),
    }


def short_latency(policy: Policy, protocol: Protocol) -> dict[str, Any]:
    """Latency by part and as a whole, at the policy boundary, as a report shows it (``latency.json``).

    Args:
        policy: With a runtime, whose parts are timed each alone on fixed inputs, so that they need not add up to the
            whole; the plain model's time stands beside it. Without one there is the whole alone.
        protocol: How long to measure.
    """
    ring = observation_ring(policy, protocol.ring)

    def whole(timed_policy: Policy) -> tuple[dict[str, Any], dict[str, Any]]:
        call = policy_call(timed_policy, ring)
        warm = warm_up(call, protocol)
        return warm, summarise(measure(call, calls_of(protocol, timed(call, 0)), protocol), protocol)

    warm, total = whole(policy)
    record: dict[str, Any] = {
        **conditions(boundary="policy", **description(policy)),
        "calls": total["n"],
        "warm_up_calls": warm["calls"],
        "settled": warm["settled"],
        "total": total,
        "parts": {},
    }
    if policy.runtime is not None:
        embodiment = policy.contract.bodies[0].embodiment
        policy.reset()  # the ring's pictures are no episode
        record["parts"] = by_part(policy.runtime.parts(policy.observation([ring[0]], embodiment=embodiment)), protocol)
        record["precision"] = policy.runtime.precision
        _, plain = whole(Policy(policy.model, policy.normalizer, policy.contract, stage=policy.stage))
        record["plain_p50_ms"] = round(plain["p50_ms"], 3)
    return record
