"""What Wan's own code, and with it Light-WAM's and Fast-WAM's checkpoints, calls the weights that diffusers renamed."""

from __future__ import annotations

import re

from wamkit.nn.lora import ADAPTER

_WHOLE = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
_IN_BLOCK = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_LORA = re.compile(rf"^(?P<layer>.+)\.lora_(?P<side>[AB])\.{ADAPTER}\.weight$")
_ATTENTION = re.compile(r"^attn(?P<kind>[12])\.(?P<rest>.+)$")


def original_name(name: str) -> str:
    """Wan's name of a weight of `WanTransformer3DModel`; corrections of low rank under Light-WAM's names.

    Args:
        name: as in the module's state dict, with or without corrections injected.

    Raises:
        KeyError: no such weight.
    """
    plain = name.replace(".base_layer", "")
    if plain == "scale_shift_table":
        return "head.modulation"
    block = re.match(r"^blocks\.(\d+)\.(.+)$", plain)
    if block is None:
        module, _, kind = plain.rpartition(".")
        return f"{_WHOLE[module]}.{kind}"
    return f"blocks.{block[1]}.{_block_name(block[2])}"


def _block_name(name: str) -> str:
    if name == "scale_shift_table":
        return "modulation"
    correction = _LORA.match(name)
    if correction is not None:
        side = "down_proj" if correction["side"] == "A" else "up_proj"
        layer = correction["layer"]
        if layer.startswith("ffn"):
            return f"ffn_lora_{'in' if layer == 'ffn.net.0.proj' else 'out'}.{side}.weight"
        attention, _, projection = layer.partition(".")
        return f"{_IN_BLOCK[attention]}.lora_{_IN_BLOCK[projection]}.{side}.weight"
    attention = _ATTENTION.match(name)
    if attention is not None:
        module, _, kind = attention["rest"].rpartition(".")
        return f"{_IN_BLOCK['attn' + attention['kind']]}.{_IN_BLOCK.get(module, module)}.{kind}"
    module, _, kind = name.rpartition(".")
    return f"{_IN_BLOCK[module]}.{kind}"
