"""A chunk as a nest of tensors, which is what a recording returns, and back.

What the model imagined while it acted comes along: it was computed on the way, so handing it out costs no pass. The
name of its space is a key of the nest, and so a part of the recording's structure, not of its values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from wamkit.inference.runtime_record import RuntimeUnsupported
from wamkit.types import ActionChunk, Future

_TENSORS = ("values", "times", "present", "latent_action")
"""Of a `Future`."""


def tensors_of(chunk: ActionChunk) -> tuple[Any, ...]:
    """Actions, times, valid, and the tensors of what was imagined under the name of its space.

    Raises:
        RuntimeUnsupported: What was imagined comes with a decoder, a function that no recording holds.
    """
    imagined: dict[str, dict[str, Tensor]] = {}
    future = chunk.imagined
    if future is not None:
        if future.decode is not None:
            raise RuntimeUnsupported(
                "a phase hands out a future with a decoder, which cannot be recorded: leave Future.decode empty in"
                " ActPhases.chunk"
            )
        fields = {name: getattr(future, name) for name in _TENSORS}
        imagined[future.space] = {name: tensor for name, tensor in fields.items() if tensor is not None}
    return chunk.actions, chunk.times, chunk.valid, imagined


def chunk_of(tensors: tuple[Any, ...], rows: int) -> ActionChunk:
    """The chunk of the first ``rows`` samples; the others filled up the batch."""
    actions, times, valid, imagined = pytree.tree_map_only(Tensor, lambda tensor: tensor[:rows], tensors)
    future = next((Future(space=space, **fields) for space, fields in imagined.items()), None)
    return ActionChunk(actions=actions, times=times, valid=valid, imagined=future)


def joined(chunks: Sequence[ActionChunk]) -> ActionChunk:
    """Chunks of a batch's parts as one."""
    nests = [pytree.tree_flatten(tensors_of(chunk)) for chunk in chunks]
    leaves = [torch.cat(parts) for parts in zip(*(flat for flat, _ in nests), strict=True)]
    return chunk_of(pytree.tree_unflatten(leaves, nests[0][1]), len(leaves[0]))
