"""Small operations that become one, for any model: what follows a layer norm, gated residuals, norms spelled out."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from wamkit.inference.runtime_convolutions import narrow_convolutions
from wamkit.inference.runtime_passes import (
    VIEWS,
    Constants,
    add_constant,
    arguments,
    drop_identities,
    fold_constants,
    get_constant,
    join_linears,
    merge_equal,
    merge_low_rank,
    tensor_nodes,
    value,
)
from wamkit.inference.runtime_record import LAYER_NORM, RMS_NORM, Recording
from wamkit.inference.runtime_views import sink_views

_ATEN = torch.ops.aten


def optimise(recording: Recording, constants: Constants) -> None:
    """Run all passes on a recording, in place."""
    module = recording.module
    drop_identities(module.graph)
    fold_constants(module, constants)
    merge_equal(module.graph)
    narrow_convolutions(module, constants)
    merge_low_rank(module, constants)
    fuse_modulation(module, constants)
    fuse_rms_norm(module)
    fuse_gates(module, constants)
    sink_views(module.graph)
    join_linears(module, constants)
    module.graph.eliminate_dead_code()
    module.graph.lint()


def _only_user(node: fx.Node, target: Any, *, kwargs: bool = False) -> fx.Node | None:
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and user.target is target and (kwargs or not user.kwargs) else None


def fuse_modulation(module: fx.GraphModule, constants: Constants) -> None:
    """LN(x) * a + b as one layer norm with weight a and bias b: adaLN of a known noise level, or of a single sample."""
    graph = module.graph
    for node in list(tensor_nodes(graph)):
        if node.target is not LAYER_NORM:
            continue
        seen = _through_view(node)
        times = _only_user(seen, _ATEN.mul.Tensor)
        plus = None if times is None else _only_user(times, _ATEN.add.Tensor)
        x, shape, weight, bias, eps = arguments(node)
        width = value(node).shape[-1]
        if times is None or plus is None or (weight, bias) != (None, None) or list(shape) != [width]:
            continue
        factor = next((arg for arg in times.args if arg is not seen), None)
        summand = next((arg for arg in plus.args if arg is not times), None)
        if value(plus).shape != value(seen).shape or value(plus).dtype != value(node).dtype:
            continue
        rows = [_as_row(module, constants, part, value(node), plus) for part in (factor, summand)]
        if None in rows:
            continue
        with graph.inserting_before(plus):
            fused = graph.call_function(LAYER_NORM, (x, shape, *rows, eps))
            fused.meta["val"] = value(node)
            if seen is not node:
                fused = graph.call_function(_ATEN.view.default, (fused, list(value(seen).shape)))
                fused.meta["val"] = value(seen)
        plus.replace_all_uses_with(fused)
        for old in dict.fromkeys((plus, times, seen, node)):
            graph.erase_node(old)


def _through_view(node: fx.Node) -> fx.Node:
    """The view that alone reads a node and keeps its channels (tokens cut into runs); else the node itself."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or user.target not in VIEWS or value(user).shape[-1:] != value(node).shape[-1:]:
        return node
    return user


def fuse_gates(module: fx.GraphModule, constants: Constants) -> None:
    """X + gate * change as one operation; also where the change was cut into runs under one gate, or is scaled."""
    graph = module.graph
    for plus in list(tensor_nodes(graph)):
        if plus.target is not _ATEN.add.Tensor or plus.kwargs or not all(isinstance(a, fx.Node) for a in plus.args):
            continue
        for index in (1, 0):
            x, change = plus.args[1 - index], plus.args[index]
            assert isinstance(x, fx.Node)
            assert isinstance(change, fx.Node)
            if value(x).shape != value(plus).shape or value(x).dtype != value(plus).dtype:
                continue
            with graph.inserting_before(plus):
                fused = _scaled_sum(graph, x, change) or _gated_sum(module, constants, x, change, plus)
            if fused is not None:
                fused.meta["val"] = value(plus)
                plus.replace_all_uses_with(fused)
                graph.erase_node(plus)
                break
    graph.eliminate_dead_code()


def _scaled_sum(graph: fx.Graph, x: fx.Node, change: fx.Node) -> fx.Node | None:
    """X + y / c of a number c."""
    if change.target is not _ATEN.div.Tensor or len(change.users) != 1 or change.kwargs:
        return None
    y, by = change.args
    if not isinstance(y, fx.Node) or not isinstance(by, (int, float)) or value(y).dtype != value(x).dtype:
        return None
    return graph.call_function(_ATEN.add.Tensor, (x, y), {"alpha": 1.0 / by})


def _gated_sum(
    module: fx.GraphModule, constants: Constants, x: fx.Node, change: fx.Node, plus: fx.Node
) -> fx.Node | None:
    """X + a * b, or x + (a in runs * b of one row) put together again."""
    graph, product = module.graph, change
    if change.target in VIEWS and len(change.users) == 1:
        assert isinstance(change.args[0], fx.Node)
        product = change.args[0]
    if product.target is not _ATEN.mul.Tensor or len(product.users) != 1 or product.kwargs:
        return None
    parts = [part for part in product.args if isinstance(part, fx.Node)]
    if len(parts) != 2 or any(value(part).dtype != value(x).dtype for part in parts):
        return None
    if product is change:
        return graph.call_function(_ATEN.addcmul.default, (x, *parts))
    for first, gate in (parts, parts[::-1]):
        inside = first.args[0] if first.target in VIEWS else None
        if not isinstance(inside, fx.Node) or value(inside).shape != value(x).shape:
            continue
        row = _as_row(module, constants, gate, value(x), plus)
        if row is not None:
            return graph.call_function(_ATEN.addcmul.default, (x, inside, row))
    return None


def _as_row(module: fx.GraphModule, constants: Constants, part: Any, tokens: Tensor, before: fx.Node) -> fx.Node | None:
    """One vector that stands for ``part`` in a product with tokens, in their precision; None where its rows differ."""
    width = tokens.shape[-1]
    if not isinstance(part, fx.Node) or not isinstance(tensor := value(part), Tensor):
        return None
    if tensor.ndim == 0 or tensor.shape[-1] != width:
        return None
    constant = get_constant(module, part)
    if constant is not None:
        rows = constant.reshape(-1, width)
        if not bool((rows == rows[0]).all()):
            return None
        row = rows[0].to(tokens.dtype).contiguous()
        return add_constant(module, constants.add(("row", str(row.dtype), _content(row)), row), before)
    if tensor.numel() != width:
        return None
    with module.graph.inserting_before(before):
        row = module.graph.call_function(_ATEN.view.default, (part, [width]))
        row.meta["val"] = tensor.new_empty(width)
        if tensor.dtype != tokens.dtype:
            row = module.graph.call_function(_ATEN._to_copy.default, (row,), {"dtype": tokens.dtype})
            row.meta["val"] = tensor.new_empty(width, dtype=tokens.dtype)
    return row


def _content(tensor: Tensor) -> bytes:
    return tensor.detach().float().cpu().numpy().tobytes()


def fuse_rms_norm(module: fx.GraphModule) -> None:
    """X * rsqrt(mean(x^2) + eps) * weight, spelled out by transformers' layers, as one operation."""
    graph = module.graph
    for root in [node for node in tensor_nodes(graph) if node.target is _ATEN.rsqrt.default]:
        plus = root.args[0]
        mean = plus.args[0] if isinstance(plus, fx.Node) and plus.target is _ATEN.add.Tensor else None
        square = mean.args[0] if isinstance(mean, fx.Node) and mean.target is _ATEN.mean.dim else None
        if not isinstance(square, fx.Node) or square.target is not _ATEN.pow.Tensor_Scalar or square.args[1] != 2:
            continue
        assert isinstance(plus, fx.Node)
        assert isinstance(mean, fx.Node)
        x, eps, scaled = square.args[0], plus.args[1], _only_user(root, _ATEN.mul.Tensor)
        last = list(mean.args[1]) == [-1] and mean.args[2:] == (True,)  # pyright: ignore[reportArgumentType]
        if scaled is None or not last or not isinstance(eps, float) or scaled.args[0] is not x:
            continue
        assert isinstance(x, fx.Node)
        end, weight = scaled, None
        rounded = _only_user(scaled, _ATEN._to_copy.default, kwargs=True)
        weighted = _only_user(rounded or scaled, _ATEN.mul.Tensor)
        if weighted is not None:
            other = next((arg for arg in weighted.args if arg not in (rounded, scaled)), None)
            constant = get_constant(module, other) if isinstance(other, fx.Node) else None
            if (
                constant is not None
                and constant.shape == value(x).shape[-1:]
                and value(weighted).dtype == value(x).dtype
            ):
                end, weight = weighted, other
        with graph.inserting_before(end):
            fused = graph.call_function(RMS_NORM, (x, [value(x).shape[-1]], weight, eps))
        fused.meta["val"] = value(end)
        end.replace_all_uses_with(fused)
    graph.eliminate_dead_code()


def fuse_rotations(module: fx.GraphModule, graph: fx.Graph) -> None:
    """Neighbouring channels turned by an angle (a rotary code written out) as one product of complex numbers.

    For programs of calls; a compiler has no complex numbers and makes one loop of what is written out.
    """
    for stack in list(tensor_nodes(graph)):
        found = _rotation(stack)
        if found is None:
            continue
        pairs, cosines, sines = found
        constants = [get_constant(module, part) for part in (cosines, sines)]
        with graph.inserting_before(stack):
            if constants[0] is not None and constants[1] is not None:
                turn = add_constant(module, torch.complex(constants[0], constants[1]), stack)
            else:
                turn = graph.call_function(torch.complex, (cosines, sines))
                turn.meta["val"] = value(cosines)
            turned = graph.call_function(turn_pairs, (pairs, turn))
        turned.meta["val"] = value(stack)
        stack.replace_all_uses_with(turned)
    graph.eliminate_dead_code()


def turn_pairs(pairs: Tensor, turn: Tensor) -> Tensor:
    """[..., n, 2] as n complex numbers, times as many of modulus 1."""
    return torch.view_as_real(torch.view_as_complex(pairs) * turn)


def _products(node: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """The factors of a sum or difference of two products."""
    if not isinstance(node, fx.Node) or node.kwargs:
        return None
    if node.target is _ATEN.addcmul.default:  # a sum that `fuse_gates` has met
        first, *second = arguments(node)
    elif node.target in (_ATEN.add.Tensor, _ATEN.sub.Tensor):
        first, other = arguments(node)
        if not isinstance(other, fx.Node) or other.target is not _ATEN.mul.Tensor:
            return None
        second = other.args
    else:
        return None
    if not isinstance(first, fx.Node) or first.target is not _ATEN.mul.Tensor:
        return None
    return first.args, tuple(second)


def _rotation(stack: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """Pairs, cosines and sines of stack([e c - o s, e s + o c]), where (e, o) are the pairs' parts; else None."""
    if stack.target is not _ATEN.stack.default or stack.kwargs or value(stack).dtype != torch.float32:
        return None
    parts: Any = stack.args[0]
    if stack.args[1] not in (-1, value(stack).ndim - 1) or len(parts) != 2:
        return None
    minus, plus = (_products(part) for part in parts)
    if minus is None or plus is None or parts[0].target is not _ATEN.sub.Tensor:
        return None
    (even, cosines), (odd, sines) = minus
    if plus != ((even, sines), (odd, cosines)):
        return None
    if any(part.target is not operator.getitem for part in (even, odd)) or (even.args[1], odd.args[1]) != (0, 1):
        return None
    unbind = even.args[0]
    if odd.args[0] is not unbind or unbind.target is not _ATEN.unbind.int:
        return None
    pairs = unbind.args[0]
    return (pairs, cosines, sines) if unbind.args[1] in (-1, value(pairs).ndim - 1) else None
