"""Which of our tensors is which of the published LaWAM's (names of LeRobot's port, papers.md 1.8).

Every tensor of ours is a concatenation of published ones or a part of one: nothing is computed, so both ways are
bit-equal. Published names stand here without their root ``policy_backend.``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from wamkit.dynamics.latent_action import LatentActionConfig
from wamkit.models.lawam.config import LaWAMConfig
from wamkit.models.lawam.model import LaWAM
from wamkit.models.published import ConversionError, Link

UNUSED = ("flow.cfg_embeddings", "flow.time_encoder.freqs")
"""Guidance's learned stand-in for the subgoal (guidance is off: drop 0, scale 1), and a table that is computed."""


def _same(ours: str, published: str, *names: str) -> Iterator[Link]:
    for name in names or ("weight", "bias"):
        yield Link((f"{ours}.{name}",), (f"{published}.{name}",))


def _per_embodiment(ours: str, published: str) -> Iterator[Link]:
    yield Link((f"{ours}.weight",), (f"{published}.W",))
    yield Link((f"{ours}.bias",), (f"{published}.b",))


def _multihead(ours: str, published: str, *, fused: bool = True) -> Iterator[Link]:
    """Multi-head attention of torch: one matrix for query, key and value, or three where the context is wider."""
    if fused:
        yield Link((f"{ours}.to_q.weight", f"{ours}.to_kv.weight"), (f"{published}.in_proj_weight",))
    else:
        yield Link((f"{ours}.to_q.weight",), (f"{published}.q_proj_weight",))
        yield Link((f"{ours}.to_kv.weight",), (f"{published}.k_proj_weight", f"{published}.v_proj_weight"))
    yield Link((f"{ours}.to_q.bias", f"{ours}.to_kv.bias"), (f"{published}.in_proj_bias",))
    yield from _same(f"{ours}.to_out", f"{published}.out_proj")


def _latent_action_links(lam: LatentActionConfig) -> Iterator[Link]:
    ours, published = "lam.encoder", "lam.encoder"
    yield from _same(f"{ours}.enter", f"{published}.project_in")
    yield from _same(f"{ours}.leave", f"{published}.out_proj")
    start, reader = f"{ours}.start", f"{published}.QFormer.q_cross_attn"
    yield Link((f"{start}.query",), (f"{published}.QFormer.queries",), leading_axis=True)
    yield from _multihead(f"{start}.attention", f"{reader}.attn")
    yield from _same(f"{start}.context_norm", f"{reader}.norm1")
    yield from _same(f"{start}.query_norm", f"{reader}.norm2")
    yield from _same(f"{start}.feed_forward.up", f"{reader}.ff.0")
    yield from _same(f"{start}.feed_forward.down", f"{reader}.ff.2")
    for layer in range(lam.encoder_layers):
        block, layers = f"{ours}.blocks.{layer}", f"{published}.QFormer.layers.{layer}"
        yield from _multihead(f"{block}.attention", f"{layers}.self_attn")
        yield from _same(f"{block}.attention_norm", f"{layers}.norm1")
        yield from _same(f"{block}.feed_forward_norm", f"{layers}.norm2")
        yield from _same(f"{block}.feed_forward.up", f"{layers}.linear1")
        yield from _same(f"{block}.feed_forward.down", f"{layers}.linear2")

    yield from _same("lam.posterior.norm", "lam.vq.pre_norm")
    yield from _same("lam.posterior.mean", "lam.vq.mu")
    yield from _same("lam.posterior.log_variance", "lam.vq.logvar")

    decoder = "lam.decoder"
    yield from _same(f"{decoder}.enter", f"{decoder}.project_input")
    yield from _same(f"{decoder}.condition", f"{decoder}.action_in_proj")
    yield from _same(f"{decoder}.leave", f"{decoder}.project_output")
    yield from _same(f"{decoder}.norm", f"{decoder}.last_ln")
    for layer in range(lam.decoder_layers):
        block, layers = f"{decoder}.blocks.{layer}", f"{decoder}.dec_layers.{layer}"
        yield from _multihead(f"{block}.attention", f"{layers}.attn")
        yield from _same(f"{block}.modulation", f"{layers}.adaLN_modulation.1")
        yield from _same(f"{block}.feed_forward.up", f"{layers}.ffn.0")
        yield from _same(f"{block}.feed_forward.down", f"{layers}.ffn.3")

    predictor = "lam.state_predictor"
    yield from _same(f"{predictor}.latent", "lam.state_decoder.z_encoder")
    yield from _per_embodiment(f"{predictor}.state_in", "lam.state_decoder.state_encoder.layer1")
    yield from _per_embodiment(f"{predictor}.state_hidden", "lam.state_decoder.state_encoder.layer2")
    yield from _per_embodiment(f"{predictor}.joint", "lam.state_decoder.state_decoder.layer1")
    yield from _per_embodiment(f"{predictor}.leave", "lam.state_decoder.state_decoder.layer2")


def _latent_head_links(config: LaWAMConfig, lam: LatentActionConfig) -> Iterator[Link]:
    ours, published = "latent_head", "vlm_to_lam"
    yield Link((f"{ours}.queries",), (f"{published}.query",), leading_axis=True)
    fused = config.vlm.width == lam.latent_width
    yield from _multihead(f"{ours}.attention", f"{published}.cross_attns.0", fused=fused)
    yield from _same(f"{ours}.query_norm", f"{published}.norm_qs.0")
    yield from _same(f"{ours}.context_norm", f"{published}.norm_kvs.0")
    yield from _same(f"{ours}.feed_forward_norm", f"{published}.ffns.0.0")
    yield from _same(f"{ours}.feed_forward.up", f"{published}.ffns.0.1")
    yield from _same(f"{ours}.feed_forward.down", f"{published}.ffns.0.4")
    yield from _same(f"{ours}.final_norm", f"{published}.final_norm")


def _flow_links(config: LaWAMConfig) -> Iterator[Link]:
    yield from _same("flow.enter_language.0", "flow.enc_vlm.net.0")
    yield from _same("flow.enter_language.1", "flow.enc_vlm.net.1")
    yield from _per_embodiment("flow.action_in", "flow.action_encoder.W1")
    yield from _per_embodiment("flow.action_hidden", "flow.action_encoder.W2")
    yield from _per_embodiment("flow.action_out_hidden", "flow.action_decoder.layer1")
    yield from _per_embodiment("flow.action_out", "flow.action_decoder.layer2")
    embedder = "flow.DiT.timestep_encoder.timestep_embedder"
    # The published code of the noise level puts the cosines first, ours the sines.
    yield Link(("flow.noise_level.0.weight",), (f"{embedder}.linear_1.weight",), swapped=1)
    yield from _same("flow.noise_level.0", f"{embedder}.linear_1", "bias")
    yield from _same("flow.noise_level.2", f"{embedder}.linear_2")
    for layer in range(config.action.layers):
        block, layers = f"flow.blocks.{layer}", f"flow.DiT.transformer_blocks.{layer}"
        yield from _same(f"{block}.attention_norm.modulation", f"{layers}.norm1.linear")
        for name in ("weight", "bias"):
            yield Link((f"{block}.attention.to_q.{name}",), (f"{layers}.attn1.to_q.{name}",))
            split = tuple(f"{layers}.attn1.{part}.{name}" for part in ("to_k", "to_v"))
            yield Link((f"{block}.attention.to_kv.{name}",), split)
        yield from _same(f"{block}.attention.to_out", f"{layers}.attn1.to_out.0")
        yield from _same(f"{block}.feed_forward.up", f"{layers}.ff.net.0.proj")
        yield from _same(f"{block}.feed_forward.down", f"{layers}.ff.net.2")
    # The last norm is published as shift and scale, every other as scale and shift.
    for name in ("weight", "bias"):
        ours, published = f"flow.final_norm.modulation.{name}", f"flow.DiT.proj_out_1.{name}"
        yield Link((ours,), (published,), swapped=0)
    yield from _same("flow.leave", "flow.DiT.proj_out_2")


def links(config: LaWAMConfig) -> list[Link]:
    """Every link between our names and the published ones (without ``policy_backend.``).

    Raises:
        ConversionError: the config describes a LaWAM whose parts were never published.
    """
    lam = config.latent_action
    if (
        not isinstance(lam, LatentActionConfig)
        or lam.state_readout == "shared"
        or lam.max_state_dim == 0
        or config.subgoal == "latent_action_only"
    ):
        raise ConversionError("this LaWAM has parts that the published one has not (latent_action or subgoal differ)")
    found = [
        Link(("vlm.latent_query",), ("act_query",)),
        Link(("vlm.action_query",), ("flow_action_query",)),
        *_latent_head_links(config, lam),
        *_latent_action_links(lam),
        *_flow_links(config),
    ]
    linked = {name for link in found for name in link.ours}
    # What is left is transformers' own modules, under transformers' names on both sides.
    for name in _shapes(config):
        if name in linked:
            continue
        if not name.startswith(("vlm.model.", "vision_encoder.model.")):
            raise ConversionError(
                f"{name} has no published counterpart: only the composition with DINOv3 was published"
            )
        found.append(Link((name,), (f"lam.{name}" if name.startswith("vision_encoder.") else name,)))
    return found


def _shapes(config: LaWAMConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: value.shape for name, value in LaWAM(config).state_dict().items()}


def to_wamkit(published: Mapping[str, Tensor], config: LaWAMConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our tensors, and the published ones that we carry without using them (names without ``policy_backend.``).

    Raises:
        ConversionError: names that we do not know, names that are missing, or a size that is not the config's.
    """
    all_links, shapes = links(config), _shapes(config)
    known = {name for link in all_links for name in link.published}
    carried = {name: value for name, value in published.items() if name in UNUSED}
    unknown = sorted(published.keys() - known - carried.keys())
    missing = sorted(known - published.keys())
    if unknown:
        raise ConversionError(f"the source has {len(unknown)} names that LaWAM does not know: {_some(unknown)}")
    if missing:
        raise ConversionError(f"the source lacks {len(missing)} of LaWAM's names: {_some(missing)}")
    ours: dict[str, Tensor] = {}
    for link in all_links:
        try:
            ours |= link.to_ours(published, shapes)
        except RuntimeError as error:
            raise ConversionError(f"{link.published[0]} has another size than the config says ({error})") from error
    for name, value in ours.items():
        if value.shape != shapes[name]:
            raise ConversionError(
                f"{name} is {tuple(value.shape)} in the source and {tuple(shapes[name])} by the config:"
                " the checkpoint was made with other dimensions"
            )
    return ours, carried


def to_published(ours: Mapping[str, Tensor], config: LaWAMConfig) -> dict[str, Tensor]:
    """The published tensors of our weights (names without ``policy_backend.``)."""
    all_links = links(config)
    known = {name for link in all_links for name in link.ours}
    odd = sorted(known ^ ours.keys())
    if odd:
        raise ConversionError(f"{len(odd)} weights are not those of the checkpoint's config: {_some(odd)}")
    published: dict[str, Tensor] = {}
    for link in all_links:
        published |= link.to_published(ours)
    return published


def _some(names: list[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
