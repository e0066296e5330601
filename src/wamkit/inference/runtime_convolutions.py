"""Convolutions over time that meet a single frame: what only sees padding is left out.

A causal video encoder pads the past with zeros. Of a kernel of three frames only the last then meets the one frame that
there is, so a convolution in space with that part of the kernel gives the same with a third of the arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from wamkit.inference.runtime_passes import Constants, add_constant, get_constant, tensor_nodes, value

_ATEN = torch.ops.aten


def narrow_convolutions(module: fx.GraphModule, constants: Constants) -> None:
    """Replace convolutions in space and time by such in space where input and result are one frame."""
    graph = module.graph
    for node in list(tensor_nodes(graph)):
        if node.target is not _ATEN.convolution.default or value(node).ndim != 5 or value(node).shape[2] != 1:
            continue
        given, weight_node, bias, stride, padding, dilation, transposed, _, groups = _arguments(node)
        weight = get_constant(module, weight_node)
        source, before = _unpadded(given)
        if weight is None or transposed or source is None or value(source).shape[2] != 1:
            continue
        rows, columns, past = before
        # One result means that the kernel covers all there is: the zeros of the past, then the frame.
        if padding[0] or (weight.shape[2] - 1) * dilation[0] != past:
            continue
        key = ("last frame of", constants.leaf(weight))
        last = constants.get(key)
        if last is None:
            last = constants.add(key, weight.detach()[:, :, -1].contiguous())
        with graph.inserting_before(node):
            frame = graph.call_function(_ATEN.squeeze.dim, (source, 2))
            frame.meta["val"] = value(source).squeeze(2)
            inside = (frame, add_constant(module, last, node), bias, list(stride[1:]))
            around = [padding[1] + rows, padding[2] + columns]
            made = graph.call_function(
                _ATEN.convolution.default, (*inside, around, list(dilation[1:]), False, [0, 0], groups)
            )
            made.meta["val"] = value(node).squeeze(2)
            whole = graph.call_function(_ATEN.unsqueeze.default, (made, 2))
            whole.meta["val"] = value(node)
        node.replace_all_uses_with(whole)
    graph.eliminate_dead_code()


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _unpadded(node: Any) -> tuple[fx.Node | None, tuple[int, int, int]]:
    """What zeros were put around, and how many: rows, columns (both sides alike) and frames before."""
    if not isinstance(node, fx.Node):
        return None, (0, 0, 0)
    if node.target is not _ATEN.constant_pad_nd.default:
        return node, (0, 0, 0)
    source, sizes, *filled = _arguments(node)
    sizes = [*sizes, *[0] * (6 - len(sizes))]
    left, right, top, bottom, past, future = sizes[:6]
    if any(sizes[6:]) or (filled and filled[0]) or left != right or top != bottom or future or min(sizes) < 0:
        return None, (0, 0, 0)
    return source, (top, left, past)
