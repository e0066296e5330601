"""Which encoders a checkpoint sees and reads through, and where their weights came from: part of its provenance.

Where published weights are absent, a small encoder of the run's own stands in their place, and a number measured
behind it is no number of the published model. So every record and every report says which it was. All is read from
the checkpoint's files; no model is built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class _Part:
    """How one part of a model's config is found again in its checkpoint."""

    kind: str
    """What it is, where its config does not say."""
    prefixes: tuple[str, ...]
    """Of its weights' names."""
    own_stages: tuple[str, ...] = ()
    """The stages that train it where there are no published weights."""
    tuned_in: tuple[str, ...] = ()
    """The stages that go on training published weights."""


PARTS: dict[str, _Part] = {
    "encoder": _Part("encoder", ("vision_encoder.",), ("encoder",)),
    "vlm": _Part("qwen3_vl", ("vlm.",), ("policy",), ("policy",)),
    "vae": _Part("wan_vae", ("vae.",), ("vae",)),
    "tokenizer": _Part("tokenizer", ("tokenizer.",), ("tokenizer", "vae")),
    "representation": _Part("encoder", ("representation.",), ("encoder",)),
    "text": _Part("umt5", ("text.",)),
}
"""Fields of the models' configs that are encoders."""


def encoder_record(folder: Path, shown: Callable[[str], str] = str) -> dict[str, dict[str, Any]]:
    """The encoders of a checkpoint.

    Args:
        folder: Its ``pretrained_model`` folder.
        shown: How a path is written down.

    Returns:
        By the name of the model config's field: ``kind``; ``objective`` of one that was trained in the run; ``origin``
        in words; ``sha256`` over its weights as they lie in the checkpoint, None where they do not. Empty for a
        folder without a config, and for a model without such parts.
    """
    config, run = _object(folder / "config.json"), _object(folder / "train_config.json")
    found = {}
    for name, part in PARTS.items():
        values = config.get(name)
        if not isinstance(values, Mapping):
            continue
        record: dict[str, Any] = {"kind": values.get("kind") or part.kind}
        if objective := _objective(values.get("objective")):
            record["objective"] = objective
        record["origin"] = _origin(values, part, config, run, shown)
        record["sha256"] = weights_digest(folder / "model.safetensors", part.prefixes)
        found[name] = record
    return found


def sentence(name: str, record: Mapping[str, Any]) -> str:
    """Such as ``encoder: patch encoder (masked autoencoder), trained in stage 'encoder' of this run``."""
    objective = f" ({record['objective'].replace('_', ' ')})" if "objective" in record else ""
    return f"{name}: {record['kind'].replace('_', ' ')}{objective}, {record['origin']}"


def weights_digest(path: Path, prefixes: Sequence[str]) -> str | None:
    """SHA-256 over names, types, shapes and bytes of the tensors with these beginnings; None where there are none."""
    if not path.is_file():
        return None
    digest, any_of_them = hashlib.sha256(), False
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            return None  # no safetensors file: that is told by whoever loads it
        header = json.loads(file.read(size))
        for name in sorted(key for key in header if key.startswith(tuple(prefixes))):
            first, last = header[name]["data_offsets"]
            digest.update(f"{name}{header[name]['dtype']}{header[name]['shape']}".encode())
            file.seek(8 + size + first)
            left = last - first
            while left:
                piece = file.read(min(left, 1 << 22))
                digest.update(piece)
                left -= len(piece)
            any_of_them = True
    return digest.hexdigest() if any_of_them else None


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is absent, broken, or holds another thing: that is told by whoever loads."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _objective(value: Any) -> str | None:
    if isinstance(value, Mapping):  # a tokenizer's: what its latents are aligned with
        alignment = value.get("alignment")
        return f"reconstruction, alignment {alignment}" if isinstance(alignment, str) else None
    return value if isinstance(value, str) else None


def _origin(
    values: Mapping[str, Any],
    part: _Part,
    config: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Callable[[str], str],
) -> str:
    begun = run.get("policy")
    begun = begun.get("path") if isinstance(begun, Mapping) else None
    through = f", by way of the checkpoint {shown(begun)} that the run began with" if begun else ""
    trained = _stages_done(config, run)
    if published := values.get("weights"):
        tuned = [stage for stage in part.tuned_in if stage in trained]
        named = shown(published) if Path(published).is_absolute() else published
        return f"published weights {named}{through}" + (f", then trained in stage {tuned[0]!r}" if tuned else "")
    own = [stage for stage in part.own_stages if stage in trained]
    if own:
        return f"no published weights: trained in stage {own[0]!r} of this run, {trained[own[0]]} steps{through}"
    if begun:
        return f"no published weights: from the checkpoint {shown(begun)} that the run began with"
    if not trained:
        return "no published weights: as found in the checkpoint, with which no training run is recorded"
    return "no published weights: initialised at random, not trained"


def _stages_done(config: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, int]:
    """Stages of the run up to the checkpoint's, and their steps; empty where none is recorded."""
    stages, chosen = run.get("stages"), run.get("selected_stages") or ()
    if not isinstance(stages, list):
        return {}
    done: dict[str, int] = {}
    for stage in stages:
        if not chosen or stage["name"] in chosen:
            done[stage["name"]] = stage["steps"]
        if stage["name"] == config.get("stage"):
            break
    return done
