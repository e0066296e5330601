"""What a chunk costs in arithmetic, and the least time that a machine needs for it (the roofline).

T >= sum over stages of max(bytes / bandwidth, FLOP / peak), a stage being the prefix or all denoise steps together.
Bytes are weights and keys and values, read again in every step; FLOP are those of matrix products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from wamkit.inference.runtime_passes import arguments, get_constant, tensor_nodes, value
from wamkit.inference.runtime_program import is_view
from wamkit.inference.runtime_record import LINEAR, Recording

_ATEN = torch.ops.aten
_PRODUCTS: dict[Any, tuple[int, int]] = {
    _ATEN.mm.default: (0, 1),
    _ATEN.bmm.default: (0, 1),
    _ATEN.addmm.default: (1, 2),
    _ATEN.baddbmm.default: (1, 2),
}
_CONVOLUTION = _ATEN.convolution.default


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    flop: float
    bytes: float
    """Read of constants and of what the stage is given, once for each time that it is used."""
    operations: int
    """That compute; views are free."""


def cost_of(recording: Recording) -> Cost:
    """Count a recording that was optimised and built."""
    module, flop, read, operations = recording.module, 0.0, 0.0, 0
    for node in tensor_nodes(recording.graph):
        if is_view(node):
            continue
        operations += 1
        flop += _flop(node)
        for source in node.all_input_nodes:
            given = _origin(source)
            if given.op in ("get_attr", "placeholder"):
                tensor = get_constant(module, given) if given.op == "get_attr" else value(source)
                if isinstance(tensor, Tensor):
                    read += value(source).numel() * tensor.element_size() if given is not source else _bytes(tensor)
    return Cost(flop, read, operations)


def _origin(node: fx.Node) -> fx.Node:
    """What a chain of views looks at."""
    while node.op == "call_function" and is_view(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _told(node: fx.Node, argument: int) -> Tensor:
    """The tensor that an operation is given at a place."""
    return value(arguments(node)[argument])


def _flop(node: fx.Node) -> float:
    if node.target is LINEAR or "linear" in getattr(node.target, "__name__", ""):
        return 2.0 * value(node).numel() * _told(node, 0).shape[-1]
    if node.target in _PRODUCTS:
        return 2.0 * value(node).numel() * _told(node, _PRODUCTS[node.target][0]).shape[-1]
    if "attention" in getattr(node.target, "__name__", ""):
        queries, keys, values = (_told(node, part) for part in range(3))
        return 2.0 * queries.numel() * keys.shape[-2] + 2.0 * value(node).numel() * values.shape[-2]
    if node.target is _CONVOLUTION:
        weight = _told(node, 1)
        return 2.0 * value(node).numel() * weight.numel() / weight.shape[0]
    return 0.0


@dataclass(frozen=True)
class Limits:
    """What a machine reached when asked for nothing else."""

    bytes_per_s: float
    flop_per_s: float
    dtype: str


def machine_limits(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> Limits:
    """Measure: the fastest copy of a large tensor, and the fastest product of two square matrices."""
    large = device.type == "cuda"
    source = torch.empty(2**28 if large else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if large else 1024
    left = torch.randn(side, side, device=device).to(dtype)
    copied = 2.0 * source.numel() / _fastest(lambda: target.copy_(source), device, seconds)
    return Limits(
        copied, 2.0 * side**3 / _fastest(lambda: left @ left, device, seconds), str(dtype).removeprefix("torch.")
    )


def _fastest(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    best, calls, end = float("inf"), 0, time.perf_counter() + seconds
    with torch.inference_mode():
        call()
        while calls < 3 or time.perf_counter() < end:
            calls += 1
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - started)
    return best


def bound_s(stages: list[Cost], limits: Limits) -> float:
    """The least seconds that these stages can take one after the other."""
    return sum(max(stage.bytes / limits.bytes_per_s, stage.flop / limits.flop_per_s) for stage in stages)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not any(entry.alias_info is not None for entry in func._schema.returns)
        return func(*args, **(kwargs or {}))


def dispatched_operations(call: Callable[[], Any]) -> int:
    """How many operations that compute torch dispatches in a call: what a plain, unrecorded model runs."""
    with _Counter() as counter:
        call()
    return counter.operations
