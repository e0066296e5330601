"""What is done to a recording before it runs: what weights alone decide is computed now, the rest is fused.

Passes, in order: constants are folded (position tables, the modulations of all denoise steps, casts of weights); equal
operations are done once, so what every denoise step would compute alike leaves the loop; small operations become one
(`runtime_fusions`); linear layers that read the same tokens are joined (query-key-value, gate-up, the keys and values
of all cross-attention blocks). Each leaves the function as it was, up to rounding.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from wamkit.inference.runtime_record import LINEAR

_ATEN = torch.ops.aten
_IDENTITIES = {_ATEN.detach.default, _ATEN.alias.default, _ATEN.lift_fresh_copy.default, _ATEN.lift_fresh.default}

VIEWS = {_ATEN.view.default, _ATEN._unsafe_view.default}


class Constants:
    """Tensors that weights alone decide, shared by the programs of all shapes."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Tensor] = {}
        self._numbers: dict[Hashable, int] = {}
        self._kept: dict[int, Tensor] = {}
        """Leaves whose identity is part of a key: they must not be freed while the key lives."""

    def intern(self, key: Hashable) -> int:
        """A number for a key: keys are made of the numbers of other keys, since nested ones grow without bound."""
        return self._numbers.setdefault(key, len(self._numbers))

    def leaf(self, tensor: Tensor) -> Hashable:
        """The key of a weight or of a literal tensor; small literals are told apart by value."""
        if tensor.numel() <= 64 and not isinstance(tensor, torch.nn.Parameter):
            return (
                "literal",
                str(tensor.dtype),
                str(tensor.device),
                tuple(tensor.shape),
                tuple(tensor.flatten().tolist()),
            )
        self._kept[id(tensor)] = tensor
        return "weight", tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), str(tensor.dtype)

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor of a key, where it was computed before."""
        return self._known.get(key)

    def add(self, key: Hashable, tensor: Tensor) -> Tensor:
        """Keep a tensor under a key."""
        return self._known.setdefault(key, tensor.detach())

    def bytes(self) -> int:
        """Memory of all of them; views of one storage count once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self._known.values()}
        return sum(storages.values())


def tensor_nodes(graph: fx.Graph) -> Iterator[fx.Node]:
    """The operations of a graph, inputs, constants and outputs left out."""
    return (node for node in graph.nodes if node.op == "call_function")


def value(node: fx.Node) -> Any:
    """Shape and dtype of a node's result: a fake tensor, or a tuple of them."""
    return node.meta["val"]


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """An operation's positional arguments."""
    return node.args


def drop_identities(graph: fx.Graph) -> None:
    """Leave out what returns its input as it is."""
    for node in list(tensor_nodes(graph)):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            continue
        same = node.target in _IDENTITIES
        if node.target in (_ATEN._to_copy.default, _ATEN.clone.default):
            here, before = value(node), value(source)
            same = (here.dtype, here.device) == (before.dtype, before.device)
        if node.target in (_ATEN.expand.default, *VIEWS):
            same = tuple(value(node).shape) == tuple(value(source).shape)
        if same:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _key(item: Any, keys: Mapping[fx.Node, Hashable]) -> Hashable:
    if isinstance(item, fx.Node):
        return keys[item]
    if isinstance(item, (list, tuple)):
        return tuple(_key(entry, keys) for entry in item)
    if isinstance(item, dict):
        return tuple((name, _key(entry, keys)) for name, entry in sorted(item.items()))
    # 1, 1.0 and True are equal and hash alike, but are not the same argument.
    return type(item).__name__, item if isinstance(item, Hashable) else str(item)


def _is_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def get_constant(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The tensor of a constant's node; None for any other node."""
    if node.op != "get_attr":
        return None
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found


def add_constant(module: fx.GraphModule, tensor: Tensor, before: fx.Node) -> fx.Node:
    """A new constant of a recording, in front of a node."""
    name = f"_constant{len(module._buffers)}"
    module.register_buffer(name, tensor, persistent=False)
    with before.graph.inserting_before(before):
        node = before.graph.create_node("get_attr", name)
    node.meta["val"] = tensor
    return node


def fold_constants(module: fx.GraphModule, constants: Constants) -> None:
    """Compute now what depends on no input; only what a later operation reads is kept."""
    graph = module.graph
    keys: dict[fx.Node, Hashable] = {}
    for node in graph.nodes:
        tensor = get_constant(module, node)
        if tensor is not None:
            keys[node] = constants.intern(constants.leaf(tensor))
        elif node.op == "call_function" and not _is_random(node) and all(n in keys for n in node.all_input_nodes):
            keys[node] = constants.intern(("call", node.target, _key(node.args, keys), _key(node.kwargs, keys)))
    wanted = [
        n for n in keys if any(user not in keys for user in n.users) and isinstance(value_or_leaf(module, n), Tensor)
    ]
    computed: dict[fx.Node, Any] = {}

    def compute(node: fx.Node) -> Any:
        if node not in computed:
            leaf = get_constant(module, node)
            if leaf is not None:
                computed[node] = leaf.detach()
            else:
                args, kwargs = map_arg(node.args, compute), map_arg(node.kwargs, compute)
                # A copy that only made memory contiguous may have been dropped, so views are reshapes from here on.
                function: Any = torch.reshape if node.target in VIEWS else node.target
                computed[node] = function(*args, **kwargs)
        return computed[node]

    with torch.no_grad():
        for node in wanted:
            if node.op == "get_attr" and not isinstance(get_constant(module, node), torch.nn.Parameter):
                node.meta["val"] = get_constant(module, node)
            known = constants.get(keys[node])
            if known is None:
                result = compute(node)
                known = constants.add(keys[node], result)
            replacement = add_constant(module, known, node)
            node.replace_all_uses_with(replacement)
    graph.eliminate_dead_code()


def value_or_leaf(module: fx.GraphModule, node: fx.Node) -> Any:
    """A node's meta value, or the constant itself."""
    return get_constant(module, node) if node.op == "get_attr" else node.meta.get("val")


def merge_equal(graph: fx.Graph) -> None:
    """Do once what is computed twice from the same values."""
    numbers: dict[fx.Node, Hashable] = {}
    first: dict[Hashable, fx.Node] = {}
    for number, node in enumerate(list(graph.nodes)):
        numbers[node] = number
        if node.op == "get_attr":
            key: Hashable = ("constant", id(value(node)) if isinstance(node.meta.get("val"), Tensor) else node.target)
        elif node.op == "call_function" and not _is_random(node):
            # Inputs that were equal are one node by now, so a key need not look further back.
            key = ("call", node.target, _key(node.args, numbers), _key(node.kwargs, numbers))
        else:
            continue
        kept = first.setdefault(key, node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            graph.erase_node(node)


def _of(module: fx.GraphModule, node: Any) -> Tensor:
    tensor = get_constant(module, node)
    assert tensor is not None
    return tensor


def merge_low_rank(module: fx.GraphModule, constants: Constants) -> None:
    """W x + b + s B A x as (W + s B A) x + b: corrections of low rank become part of the weights."""
    graph = module.graph
    for plus in list(tensor_nodes(graph)):
        if plus.target is not _ATEN.add.Tensor or plus.kwargs:
            continue
        for base, correction in (plus.args[:2], plus.args[1::-1]):
            found = _low_rank(module, base, correction)
            if found is None or not isinstance(base, fx.Node) or value(base).dtype != value(plus).dtype:
                continue
            narrow, wide, scale = found
            weight = _of(module, base.args[1])
            key = ("low rank", constants.leaf(weight), constants.leaf(narrow), constants.leaf(wide), scale)
            whole = constants.get(key)
            if whole is None:
                # In float32 whatever the runtime's precision: the correction is small beside the weight.
                merged = weight.detach().float() + scale * (wide.detach().float() @ narrow.detach().float())
                whole = constants.add(key, merged.to(weight.dtype))
            with graph.inserting_before(plus):
                merged_node = graph.call_function(
                    LINEAR, (base.args[0], add_constant(module, whole, plus), base.args[2])
                )
            merged_node.meta["val"] = value(plus)
            plus.replace_all_uses_with(merged_node)
            break
    graph.eliminate_dead_code()


def _low_rank(module: fx.GraphModule, base: Any, correction: Any) -> tuple[Tensor, Tensor, float] | None:
    """A, B and s of a correction of a linear layer with constant weights that reads the same tokens."""
    if not _is_constant_linear(module, base):
        return None
    correction, scale = _uncast(correction), 1.0
    if isinstance(correction, fx.Node) and correction.target is _ATEN.mul.Tensor:
        correction, factor = correction.args
        if not isinstance(factor, (int, float)):
            return None
        scale = float(factor)
    wide: Any = _uncast(correction)
    narrow: Any = _uncast(wide.args[0]) if _is_constant_linear(module, wide) and wide.args[2] is None else None
    if not _is_constant_linear(module, narrow) or narrow.args[2] is not None:
        return None
    if _uncast(narrow.args[0]) is not _uncast(base.args[0]):
        return None
    return _of(module, narrow.args[1]), _of(module, wide.args[1]), scale


def _is_constant_linear(module: fx.GraphModule, node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.target is not LINEAR:
        return False
    return all(part is None or get_constant(module, part) is not None for part in arguments(node)[1:])


def _uncast(node: Any) -> Any:
    """What a chain of casts between floating-point precisions was made of."""
    while isinstance(node, fx.Node) and node.target is _ATEN._to_copy.default:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if not (value(node).is_floating_point() and value(source).is_floating_point()):
            break
        node = source
    return node


def join_linears(module: fx.GraphModule, constants: Constants) -> None:
    """Linear layers with constant weights that read the same tokens, as one product that is split afterwards."""
    graph = module.graph
    groups: dict[Any, list[fx.Node]] = defaultdict(list)
    for node in tensor_nodes(graph):
        if node.target is LINEAR and all(
            get_constant(module, part) is not None for part in arguments(node)[1:] if part
        ):
            groups[node.args[0], node.args[2] is None].append(node)
    for (_, no_bias), nodes in groups.items():
        if len(nodes) < 2:
            continue
        first = nodes[0]
        weights = [_of(module, node.args[1]) for node in nodes]
        key = ("joined", *(constants.leaf(weight) for weight in weights))
        weight = constants.get(key)
        weight = constants.add(key, torch.cat(weights)) if weight is None else weight
        joined = [add_constant(module, weight, first), None]
        if not no_bias:
            bias = torch.cat([_of(module, node.args[2]) for node in nodes])
            joined[1] = add_constant(module, constants.add(("joined bias", *key), bias), first)
        sizes = [value(node).shape[-1] for node in nodes]
        with graph.inserting_before(first):
            product = graph.call_function(LINEAR, (first.args[0], *joined))
            split = graph.call_function(_ATEN.split_with_sizes.default, (product, sizes, -1))
            pieces = [graph.call_function(operator.getitem, (split, index)) for index in range(len(nodes))]
        with torch.no_grad():
            whole = value(first)
            product.meta["val"] = whole.new_empty((*whole.shape[:-1], sum(sizes)))
        split.meta["val"] = tuple(value(node) for node in nodes)
        for node, piece in zip(nodes, pieces, strict=True):
            piece.meta["val"] = value(node)
            node.replace_all_uses_with(piece)
            graph.erase_node(node)
