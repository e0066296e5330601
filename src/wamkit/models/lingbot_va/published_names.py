"""Which of our tensors is which of LingBot-VA's transformer, as released and as LeRobot ports it (papers.md 5).

Their file holds the transformer alone, neither VAE nor text encoder. The first layer is a convolution here and a linear
layer there, with the same numbers in the same order. Their second noise-level code carries a text embedding that
nothing reads; it is dropped on the way in, and written as a copy of the first's, which is how theirs began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

_VIDEO = "transformer.video.model."
_ACTION = {
    "transformer.actions.heads.enter.real": "action_embedder",
    "transformer.actions.heads.leave.real": "action_proj_out",
    "transformer.actions.time": "condition_embedder_action",
}
_UNREAD = "condition_embedder_action.text_embedder."
_PATCHES = "patch_embedding"


def published_names(ours: Iterable[str]) -> dict[str, str]:
    """Published name of each of our tensors that a published file holds."""
    names = {}
    for name in ours:
        if name.startswith(_VIDEO):
            rest = name.removeprefix(_VIDEO)
            module, _, kind = rest.rpartition(".")
            names[name] = f"patch_embedding_mlp.{kind}" if module == _PATCHES else rest
            continue
        for own, theirs in _ACTION.items():
            if name.startswith(f"{own}."):
                names[name] = f"{theirs}.{name.removeprefix(f'{own}.')}"
    return names


def to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names and in their shapes."""
    names = published_names(tensors)
    made = {theirs: tensors[ours] for ours, theirs in names.items()}
    made["patch_embedding_mlp.weight"] = made["patch_embedding_mlp.weight"].flatten(1)
    read = _UNREAD.replace("_action", "")
    return made | {name.replace(read, _UNREAD): value for name, value in made.items() if name.startswith(read)}


def from_published(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names.

    Args:
        tensors: by their names, with or without LeRobot's root ``transformer``.
        own: our own tensors, whose names and shapes decide.

    Raises:
        ValueError: names or sizes do not fit.
    """
    theirs = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    theirs = {name: value for name, value in theirs.items() if not name.startswith(_UNREAD)}
    names = published_names(own)
    odd = sorted(set(names.values()) ^ theirs.keys())
    odd += [n for ours, n in names.items() if n in theirs and own[ours].numel() != theirs[n].numel()]
    if odd:
        raise ValueError(
            f"{len(odd)} names or sizes do not fit, {odd[0]!r} for one: the file is another model's, or the config is"
            " not its own"
        )
    return {ours: theirs[published].reshape(own[ours].shape) for ours, published in names.items()}
