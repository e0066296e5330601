"""Which of our tensors is which of the published Light-WAM's (papers.md 2.8).

A published file is a dict of state dicts: ``mot`` (older: ``dit``) with the video backbone, its corrections and its
adapters, ``state_fusion_action_expert`` and ``proprio_encoder``. Here their names stand behind those keys. VAE and text
encoder are not in it. Nothing is computed, so both ways are bit-equal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from wamkit.dynamics.wan_names import original_name
from wamkit.models.published import ConversionError, Link

BACKBONE, EXPERT, STATE = "mot", "state_fusion_action_expert", "proprio_encoder"
OLD_BACKBONE = "dit"
_VIDEO = "mixtures.video."
_STAYS = ("vae.", "text.")
_EXPERT_PARTS = (
    (r"^pools\.(\d+)\.(\w+)\.queries$", r"layer_poolers.\1.\2.query_tokens"),
    (r"^pools\.(\d+)\.(\w+)\.merge_logits$", r"layer_poolers.\1.\2.query_merge_logits"),
    (r"^pools\.(\d+)\.(\w+)\.attention\.to_out\.", r"layer_poolers.\1.\2.attn.out_proj."),
    (r"^pools\.(\d+)\.(\w+)\.", r"layer_poolers.\1.\2."),
    (r"^compressors\.(\d+)\.enter\.", r"layer_compressors.\1.fc1."),
    (r"^compressors\.(\d+)\.leave\.", r"layer_compressors.\1.fc2."),
    (r"^compressors\.", r"layer_compressors."),
    (r"^trunk\.(\d+)\.enter\.", r"trunk.\1.fc1."),
    (r"^trunk\.(\d+)\.leave\.", r"trunk.\1.fc2."),
    (r"^fuse\.", r"fused_proj."),
    (r"^step_code\.", r"step_pos_proj."),
)


def links(names: Iterable[str]) -> Iterator[Link]:
    """One link for each of our tensors that a published file holds; queries and keys with values share one."""
    for name in names:
        if name.startswith(_STAYS):
            continue
        part, _, rest = name.partition(".")
        if part == "backbone":
            yield Link((name,), (f"{BACKBONE}.{_VIDEO}{original_name(rest.removeprefix('model.'))}",))
        elif part == "adapters":
            published = rest.replace(".down.", ".down_proj.").replace(".up.", ".up_proj.")
            yield Link((name,), (f"{BACKBONE}.{_VIDEO}wam_adapters.{published}",))
        elif part == "proprioception":
            yield Link((name,), (f"{STATE}.{rest}",))
        elif ".attention.to_kv." in rest:
            continue
        elif ".attention.to_q." in rest:
            pool, kind = rest.split(".attention.to_q.")
            both = (name, name.replace(".to_q.", ".to_kv."))
            yield Link(both, (f"{EXPERT}.{_expert_name(pool + '.')}attn.in_proj_{kind}",))
        else:
            yield Link((name,), (f"{EXPERT}.{_expert_name(rest)}",))


def _expert_name(name: str) -> str:
    for pattern, replacement in _EXPERT_PARTS:
        found, count = re.subn(pattern, replacement, name)
        if count:
            return found
    return name


def flattened(published: Mapping[str, Any]) -> dict[str, Tensor]:
    """A published file's tensors under one level of names.

    Raises:
        ConversionError: it lacks one of the parts.
    """
    parts = dict(published)
    if BACKBONE not in parts and OLD_BACKBONE in parts:
        parts[BACKBONE] = parts[OLD_BACKBONE]
    missing = [part for part in (BACKBONE, EXPERT, STATE) if not isinstance(parts.get(part), Mapping)]
    if missing:
        raise ConversionError(
            f"this is no published Light-WAM: it lacks {', '.join(missing)} (it has {', '.join(sorted(published))})"
        )
    flat = {}
    for part in (BACKBONE, EXPERT, STATE):
        for name, value in parts[part].items():
            bare = f"{_VIDEO}{name.removeprefix(_VIDEO)}" if part == BACKBONE else name
            flat[f"{part}.{bare}"] = value
    return flat


def nested(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The other way: a file's parts."""
    parts: dict[str, dict[str, Tensor]] = {BACKBONE: {}, EXPERT: {}, STATE: {}}
    for name, value in flat.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return parts
