"""What a model computes before its prefix, recorded too: keys and values of what was seen and done, say.

How often such a function is called in a chunk, and on how many samples of the batch, is the model's to decide; what it
computes at one shape is a recording like any other, held beside those of the chunk. On a GPU it runs as calls: a CUDA
graph reads fixed memory, and one for each shape would hold as many copies of the history.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from wamkit.inference.runtime_program import Program
from wamkit.models.phases import Caller, State

if TYPE_CHECKING:
    from wamkit.inference.runtime import Runtime


@dataclass(frozen=True)
class Call:
    """One function at one shape."""

    name: str
    shape: tuple[tuple[int, ...], ...]
    """Of what it is given, flat."""
    program: Program
    outputs: pytree.TreeSpec
    seconds: float
    """To record and optimise it."""


class RecordedCalls(Caller):
    """Functions of tensors through recordings, in the runtime's precision.

    Args:
        runtime: Whose device, precision, weights and bounds hold here too.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._calls: OrderedDict[Any, Call] = OrderedDict()

    def __call__(self, name: str, function: Callable[[State], Any], given: State) -> Any:
        """See `Caller`; batches are filled up as those of chunks are, and parted where they are larger."""
        runtime, most = self.runtime, max(self.runtime.settings.batch_sizes)
        flat, spec = pytree.tree_flatten(given)
        made = []
        for start in range(0, len(flat[0]), most):
            rows = [tensor[start : start + most] for tensor in flat]
            count = len(rows[0])
            filled = [repeat_last(tensor, runtime.size_of(count) - count) for tensor in rows]
            call = self._call(name, function, filled, spec)
            with torch.inference_mode(), torch.autocast(runtime.device.type, enabled=False):
                results = [tensor[:count] for tensor in call.program.run(*filled)]
            made.append((results, call.outputs))
        joined = [torch.cat(parts) for parts in zip(*(results for results, _ in made), strict=True)]
        return pytree.tree_unflatten(joined, made[0][1])

    @property
    def dtype(self) -> torch.dtype | None:
        """The runtime's."""
        return self.runtime.dtype

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast, where the runtime does not compute in the weights' precision."""
        return torch.autocast(self.runtime.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def held(self) -> list[Call]:
        """Those that are held at the moment."""
        return list(self._calls.values())

    def _call(self, name: str, function: Callable[[State], Any], flat: Sequence[Tensor], spec: pytree.TreeSpec) -> Call:
        key = (name, spec, *((tuple(tensor.shape), tensor.dtype) for tensor in flat))
        call = self._calls.get(key)
        if call is None:
            while len(self._calls) >= max(1, self.runtime.settings.max_calls):
                self._calls.popitem(last=False)
                self.runtime.evicted += 1
            call = self._calls[key] = self._made(name, function, flat, spec)
        self._calls.move_to_end(key)
        return call

    def _made(self, name: str, function: Callable[[State], Any], flat: Sequence[Tensor], spec: pytree.TreeSpec) -> Call:
        began, runtime = time.perf_counter(), self.runtime
        program, outputs = runtime.program_of(function, (pytree.tree_unflatten(list(flat), spec),))
        shape = tuple(tuple(tensor.shape) for tensor in flat)
        return Call(name, shape, program, outputs, time.perf_counter() - began)


def repeat_last(tensor: Tensor, times: int) -> Tensor:
    """With the last sample so many times more."""
    return torch.cat([tensor, tensor[-1:].expand(times, *tensor.shape[1:])]) if times else tensor
