"""A recording as a straight line of calls: Python source without modules, branches or lookups.

Operations are called through torch's own fast bindings where they have one (a call through ``torch.ops`` costs about
twice as much), values are dropped after their last use, and constants are bound when the function is made.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from wamkit.inference.runtime_fusions import fuse_rotations
from wamkit.inference.runtime_passes import add_constant, arguments, get_constant, tensor_nodes, value
from wamkit.inference.runtime_record import ATTEND, LAYER_NORM, LINEAR, RMS_NORM, Recording
from wamkit.inference.runtime_views import stride_views

_ATEN = torch.ops.aten


def _to_copy(x: Tensor, *, dtype: torch.dtype | None = None, memory_format: Any = None, **_: Any) -> Tensor:
    return x if dtype is None else x.to(dtype)


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return torch.softmax(x, dim, dtype=torch.float32 if half_to_float else None)


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return torch.layer_norm(x, shape, weight, bias, eps)


FAST: dict[Any, Callable[..., Any]] = {
    LINEAR: F.linear,
    LAYER_NORM: torch.layer_norm,
    RMS_NORM: torch.rms_norm,
    operator.getitem: operator.getitem,
    _ATEN.view.default: torch.reshape,  # a joined product is split, and its pieces are not contiguous
    _ATEN._unsafe_view.default: torch.reshape,
    _ATEN.transpose.int: torch.transpose,
    _ATEN.t.default: torch.t,
    _ATEN.permute.default: torch.permute,
    _ATEN.unsqueeze.default: torch.unsqueeze,
    _ATEN.squeeze.dim: torch.squeeze,
    _ATEN.as_strided.default: torch.as_strided,
    _ATEN.expand.default: Tensor.expand,
    _ATEN.select.int: torch.select,
    _ATEN.split.Tensor: Tensor.split,
    _ATEN.split_with_sizes.default: torch.split_with_sizes,
    _ATEN.cat.default: torch.cat,
    _ATEN.stack.default: torch.stack,
    _ATEN.add.Tensor: torch.add,
    _ATEN.sub.Tensor: torch.sub,
    _ATEN.mul.Tensor: torch.mul,
    _ATEN.addcmul.default: torch.addcmul,
    _ATEN.div.Tensor: torch.div,
    _ATEN.neg.default: torch.neg,
    _ATEN.rsqrt.default: torch.rsqrt,
    _ATEN.sqrt.default: torch.sqrt,
    _ATEN.cos.default: torch.cos,
    _ATEN.sin.default: torch.sin,
    _ATEN.exp.default: torch.exp,
    _ATEN.pow.Tensor_Scalar: torch.pow,
    _ATEN.mean.dim: torch.mean,
    _ATEN.mm.default: torch.mm,
    _ATEN.bmm.default: torch.bmm,
    _ATEN.addmm.default: torch.addmm,
    _ATEN.baddbmm.default: torch.baddbmm,
    _ATEN.gelu.default: F.gelu,
    _ATEN.relu.default: torch.relu,
    _ATEN.silu.default: F.silu,
    _ATEN.sigmoid.default: torch.sigmoid,
    _ATEN.tanh.default: torch.tanh,
    _ATEN._softmax.default: _softmax,
    _ATEN._to_copy.default: _to_copy,
    _ATEN.where.self: torch.where,
    _ATEN.masked_fill.Scalar: torch.masked_fill,
    _ATEN.bitwise_and.Tensor: torch.bitwise_and,
    _ATEN.bitwise_or.Tensor: torch.bitwise_or,
}
"""Operations that torch binds directly, with the same arguments; any other is called through ``torch.ops``."""

_RESHAPES = {_ATEN.view.default: torch.reshape, _ATEN._unsafe_view.default: torch.reshape}


def _gelu_tanh(x: Tensor) -> Tensor:
    """X sigmoid(2 c (x + 0.044715 x^3)), c = sqrt(2 / pi): the same function without the slow tanh."""
    inner = torch.addcmul(_TWO_C, x, x, value=2 * 0.044715 * math.sqrt(2 / math.pi)).mul_(x)
    return inner.sigmoid_().mul_(x)


def _gelu_erf(x: Tensor) -> Tensor:
    half = x * 0.5
    return torch.addcmul(half, half, (x * math.sqrt(0.5)).erf_())


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """GELU in float32 on a CPU, where torch's own takes two to three times as long as these few vectorised loops."""
    return _gelu_tanh(x) if approximate == "tanh" else _gelu_erf(x)


_TWO_C = torch.tensor(2 * math.sqrt(2 / math.pi))
_SMALLEST: dict[float, Tensor] = {}
"""Epsilons as tensors, which cost a call to make."""


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """X / sqrt(mean(x^2) + eps) * weight in float32 on a CPU, where torch's own is spelled out in more operations."""
    length = torch.linalg.vector_norm(x, 2, -1, True)
    smallest = torch.finfo(x.dtype).eps if eps is None else eps
    if smallest not in _SMALLEST:
        _SMALLEST[smallest] = torch.tensor(smallest)
    normed = x * torch.addcmul(_SMALLEST[smallest], length, length, value=1.0 / shape[0]).rsqrt_()
    return normed if weight is None else normed.mul_(weight)


_WRITTEN: dict[Any, Callable[..., Tensor]] = {_ATEN.gelu.default: _gelu, RMS_NORM: _rms_norm}
"""What takes its place in float32 on a CPU."""

_FOR_COMPILER: dict[Any, Callable[..., Tensor]] = {
    LINEAR: F.linear,
    LAYER_NORM: torch.layer_norm,
    RMS_NORM: torch.rms_norm,
    _rms_norm: torch.rms_norm,
    _gelu: F.gelu,
    **_RESHAPES,
}
"""What is given to a compiler instead: it makes loops of its own, and cannot trace constants that belong to nobody."""


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A Boolean mask as what is added to the scores; large but finite, so that a row without any key is no NaN."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min / 2)


def _fused_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scale: float | None, grouped: bool
) -> Tensor:
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _written_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scale: float | None, grouped: bool
) -> Tensor:
    """Two products and a softmax: in bfloat16 on a CPU several times faster than the fused kernel."""
    scores = (queries * (queries.shape[-1] ** -0.5 if scale is None else scale)) @ keys.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1) @ values


@dataclass(frozen=True)
class Program:
    """A recording made callable."""

    run: Callable[..., list[Tensor]]
    """From flat inputs to flat outputs."""
    operations: int
    """Operations that compute; views are free."""
    operations_of_first_input: int
    """Of these, the ones whose result depends on the first input: of a denoise loop, what its steps do."""
    source: str
    weight_bytes: int
    """Of the constants that it reads, each once."""


def build(recording: Recording) -> Program:
    """The program of an optimised recording."""
    lower(recording)
    # A copy: a compiler is given the chains of views as they were.
    graph, module = copy.deepcopy(recording.graph), recording.module
    fuse_rotations(module, graph)
    stride_views(graph)
    names: dict[fx.Node, str] = {}
    scope: dict[str, Any] = {}
    inputs: list[str] = []
    lines: list[str] = []
    result = "[]"
    last = _last_uses(graph)
    bytes_of: dict[int, int] = {}

    def bind(item: Any) -> str:
        scope[name := f"k{len(scope)}"] = item
        return name

    bound: dict[int, str] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = f"a{len(inputs)}"
            inputs.append(names[node])
        elif node.op == "get_attr":
            tensor = get_constant(module, node)
            assert tensor is not None
            tensor = tensor.detach()
            identity = (
                id(tensor)
                if tensor.numel() == 0
                else hash((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype))
            )
            names[node] = bound.setdefault(identity, "") or bind(tensor)
            bound[identity] = names[node]
            bytes_of[tensor.untyped_storage().data_ptr()] = tensor.numel() * tensor.element_size()
        elif node.op == "output":
            result = _text(node.args[0], names, bind)
        else:
            names[node] = f"v{len(names)}"
            function = FAST.get(node.target, node.target)
            called = bound.setdefault(id(function), "") or bind(function)
            bound[id(function)] = called
            arguments = [_text(item, names, bind) for item in node.args]
            arguments += [f"{key}={_text(item, names, bind)}" for key, item in node.kwargs.items()]
            lines.append(f"    {names[node]} = {called}({', '.join(arguments)})")
        if dead := [names[value_] for value_ in last.get(node, ()) if value_ in names and value_.op == "call_function"]:
            lines.append(f"    del {', '.join(dead)}")
    source = f"def program({', '.join(inputs)}):\n" + "\n".join([*lines, f"    return {result}"])
    exec(compile(source, "<recorded program>", "exec"), scope)
    counted = count(graph)
    return Program(scope["program"], counted[0], counted[1], source, sum(bytes_of.values()))


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    seen: set[fx.Node] = set()
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(list(graph.nodes)):
        if node.op == "output":
            seen.update(node.all_input_nodes)
            continue
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                last.setdefault(node, []).append(source)
    return last


def _text(item: Any, names: dict[fx.Node, str], bind: Callable[[Any], str]) -> str:
    if isinstance(item, fx.Node):
        return names[item]
    if isinstance(item, (list, tuple)):
        inside = ", ".join(_text(entry, names, bind) for entry in item)
        return f"[{inside}]" if isinstance(item, list) or len(item) != 1 else f"({inside},)"
    if item is None or isinstance(item, (bool, int, str)):
        return repr(item)
    if isinstance(item, float) and item == item and abs(item) != float("inf"):
        return repr(item)
    return bind(item)


def is_view(node: fx.Node) -> bool:
    """Whether an operation moves and computes nothing."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(entry.alias_info is not None for entry in schema.returns)


def count(graph: fx.Graph) -> tuple[int, int]:
    """How many operations compute, and how many of these depend on the first input."""
    first = next((node for node in graph.nodes if node.op == "placeholder"), None)
    moving = {first}
    total = dependent = 0
    for node in tensor_nodes(graph):
        follows = any(source in moving for source in node.all_input_nodes)
        if follows:
            moving.add(node)
        if not is_view(node):
            total += 1
            dependent += follows
    return total, dependent


def lower(recording: Recording) -> None:
    """What is fast on the device: masks become summands, once for all that share one; attention and GELU are chosen."""
    graph = recording.graph
    summands: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
    for node in list(tensor_nodes(graph)):
        written = _WRITTEN.get(node.target)
        if written is not None and value(node).device.type == "cpu" and value(node).dtype == torch.float32:
            node.target = written
        if node.target is not ATTEND:
            continue
        queries, _, _, mask, causal, _, grouped = arguments(node)
        tensor = value(queries)
        if mask is not None and value(mask).dtype is torch.bool:
            key = (mask, tensor.dtype)
            constant = get_constant(recording.module, mask)
            if constant is not None:
                summands[key] = add_constant(recording.module, additive_mask(constant, tensor.dtype), mask)
            elif key not in summands:
                with graph.inserting_after(mask):
                    made = graph.call_function(additive_mask, (mask, tensor.dtype))
                made.meta["val"] = value(mask).to(tensor.dtype)
                summands[key] = made
            node.update_arg(3, summands[key])
        slow = tensor.device.type == "cpu" and tensor.dtype != torch.float32 and not causal and not grouped
        node.target = _written_attention if slow else _fused_attention


def compiled(recording: Recording, inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """The recording compiled by TorchInductor: small operations become loops of one kernel.

    Args:
        recording: Optimised and built (`build` has lowered its attention).
        inputs: Flat, as it will be called with: TorchInductor fixes their strides.
    """
    from torch._inductor import compile as inductor

    module = fx.GraphModule(recording.module, copy.deepcopy(recording.graph))
    for node in tensor_nodes(module.graph):
        node.target = _FOR_COMPILER.get(node.target, node.target)
    module.recompile()
    # Outside of inference mode, whose tensors cannot be traced; a clone would have other strides than a slice.
    with torch.inference_mode(False), torch.no_grad():
        like: list[Any] = [torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=t.device) for t in inputs]
        function: Any = inductor(module, like)
    return lambda *given: list(function(*given))
