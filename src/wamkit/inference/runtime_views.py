"""Views cost no arithmetic, but each is a call: fewer of them.

`sink_views` lets linear layers see tokens in the shape that they come in, so that one view follows where one stood
before and one after. `stride_views` replaces a chain of views (split, heads apart, transposed) by a single one, stated
as size and stride; it is for programs of calls alone, since a compiler sees more in the chain.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from wamkit.inference.runtime_passes import VIEWS, tensor_nodes, value
from wamkit.inference.runtime_record import LAYER_NORM, LINEAR

_ATEN = torch.ops.aten

CONTIGUOUS = {LINEAR, LAYER_NORM, _ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default}
"""Operations whose result is contiguous whatever the layout of what they are given."""

CHAINED = {
    _ATEN.transpose.int,
    _ATEN.t.default,
    _ATEN.permute.default,
    _ATEN.unsqueeze.default,
    _ATEN.squeeze.dim,
    _ATEN.select.int,
    _ATEN.slice.Tensor,
    _ATEN.unbind.int,
    _ATEN.split.Tensor,
    _ATEN.split_with_sizes.default,
    operator.getitem,
    *VIEWS,
}
"""Views that a chain may be made of."""


def sink_views(graph: fx.Graph) -> None:
    """Move views that keep the channels from before a linear layer to behind it, and make one view of two."""
    for node in list(tensor_nodes(graph)):
        view = node.args[0] if node.target is LINEAR else None
        if not isinstance(view, fx.Node) or view.target not in VIEWS or len(view.users) != 1:
            continue
        source = view.args[0]
        assert isinstance(source, fx.Node)
        if value(source).ndim < 2 or value(source).shape[-1] != value(view).shape[-1]:
            continue
        width = value(node).shape[-1]
        node.update_arg(0, source)
        whole = value(node)
        with graph.inserting_after(node):
            moved = graph.call_function(_ATEN.view.default, (node, list(whole.shape)))
        node.replace_all_uses_with(moved, delete_user_cb=lambda user, moved=moved: user is not moved)
        moved.meta["val"] = whole
        node.meta["val"] = whole.new_empty((*value(source).shape[:-1], width))
        graph.erase_node(view)
    for node in list(tensor_nodes(graph)):
        if node.target not in VIEWS:
            continue
        source = node.args[0]
        while isinstance(source, fx.Node) and source.target in VIEWS:
            source = source.args[0]
        assert isinstance(source, fx.Node)
        if tuple(value(source).shape) == tuple(value(node).shape):
            node.replace_all_uses_with(source)
        else:
            # Shapes in full: a -1 was meant for the view in between.
            node.args = (source, list(value(node).shape))
    graph.eliminate_dead_code()


def stride_views(graph: fx.Graph) -> None:
    """Each chain of two or more views of a contiguous result as one view of it."""
    layouts: dict[fx.Node, tuple[fx.Node, Any, int]] = {}
    for node in list(tensor_nodes(graph)):
        if node.target in CONTIGUOUS:
            layouts[node] = (node, torch.empty(tuple(value(node).shape), device="meta"), 0)
        source = node.args[0] if node.args else None
        if node.target not in CHAINED or source not in layouts:
            continue
        base, before, length = layouts[source]  # pyright: ignore[reportArgumentType]
        try:
            after = _applied(node, before)
        except (RuntimeError, ValueError):
            # No view of it has that shape: the program copies here, and what follows sees the copy.
            layouts[node] = (node, torch.empty(tuple(value(node).shape), device="meta"), 0)
            continue
        layouts[node] = (base, after, length + (node.target is not operator.getitem))
    for node, (base, layout, length) in layouts.items():
        read = any(user.target not in CHAINED or user not in layouts or layouts[user][0] is user for user in node.users)
        if length < 2 or not read or not isinstance(layout, Tensor):
            continue
        place = [list(layout.shape), list(layout.stride()), layout.storage_offset()]
        with graph.inserting_before(node):
            strided = graph.call_function(_ATEN.as_strided.default, (base, *place))
        strided.meta["val"] = value(node)
        node.replace_all_uses_with(strided)
    graph.eliminate_dead_code()


def _applied(node: fx.Node, before: Any) -> Any:
    if node.target in VIEWS:
        return before.view(node.args[1])
    function: Any = node.target
    return function(before, *node.args[1:], **node.kwargs)
