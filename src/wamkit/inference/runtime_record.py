"""Records a function of tensors as a flat graph of operations, at fixed shapes.

Nothing of Python is left in the recording: modules, branches and loops are gone, and what a value of a tensor would
have to decide cannot be recorded at all. Linear layers, layer norms and attention are recorded as one operation each,
in the precision asked for, so that later passes find them whatever library they come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from wamkit.errors import WamkitError
from wamkit.nn import attention


class RuntimeUnsupported(WamkitError):
    """A model, device or precision that the runtime cannot serve, with what to do instead."""


_LIBRARY = torch.library.Library("wamkit", "DEF")
_LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_LIBRARY.define("layer_norm(Tensor x, int[] shape, Tensor? weight, Tensor? bias, float eps) -> Tensor")
_LIBRARY.define("rms_norm(Tensor x, int[] shape, Tensor? weight, float? eps) -> Tensor")
_LIBRARY.define(
    "attend(Tensor queries, Tensor keys, Tensor values, Tensor? mask, bool causal, float? scale, bool grouped)"
    " -> Tensor"
)


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> Tensor:
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


_LIBRARY.impl("linear", lambda x, weight, bias: F.linear(x, weight, bias), "CompositeExplicitAutograd")
_LIBRARY.impl(
    "layer_norm",
    lambda x, shape, weight, bias, eps: torch.layer_norm(x, shape, weight, bias, eps),
    "CompositeExplicitAutograd",
)
_LIBRARY.impl(
    "rms_norm", lambda x, shape, weight, eps: torch.rms_norm(x, shape, weight, eps), "CompositeExplicitAutograd"
)
_LIBRARY.impl("attend", _attend, "CompositeExplicitAutograd")

LINEAR = torch.ops.wamkit.linear.default
LAYER_NORM = torch.ops.wamkit.layer_norm.default
RMS_NORM = torch.ops.wamkit.rms_norm.default
ATTEND = torch.ops.wamkit.attend.default


class _KeepWhole(TorchFunctionMode):
    """Turns torch's calls of linear layers, layer norms and attention into the operations above."""

    def __init__(self, dtype: torch.dtype | None, device: str) -> None:
        super().__init__()
        self.dtype, self.device = dtype, device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kept = {
            F.linear: self._linear,
            F.layer_norm: self._layer_norm,
            F.rms_norm: self._rms_norm,
            F.scaled_dot_product_attention: self._attention,
            attention.attend: self._attend,
        }.get(func)
        return func(*args, **(kwargs or {})) if kept is None else kept(*args, **(kwargs or {}))

    def _cast(self, *tensors: Tensor | None) -> list[Any]:
        """As autocast has it, but for every device alike; where a model turns autocast off, nothing is cast."""
        if self.dtype is None or not torch.is_autocast_enabled(self.device):
            return list(tensors)
        return [None if t is None else t.to(self.dtype) if t.is_floating_point() else t for t in tensors]

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return LINEAR(*self._cast(input, weight, bias))

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: list[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        # In the precision of its input; kernels add up in float32 whatever that is.
        if weight is not None and weight.dtype != input.dtype and self.dtype is not None:
            weight, bias = weight.to(input.dtype), None if bias is None else bias.to(input.dtype)
        return LAYER_NORM(input, list(normalized_shape), weight, bias, eps)

    def _rms_norm(
        self, input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
    ) -> Tensor:
        return RMS_NORM(input, list(normalized_shape), weight, eps)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p:
            raise RuntimeUnsupported("attention drops out while recording: put the model into evaluation mode first")
        query, key, value = self._cast(query, key, value)
        return ATTEND(query, key, value, attn_mask, is_causal, scale, enable_gqa)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._attention(queries, keys, values, mask)


@dataclass
class Recording:
    """A function as a graph whose inputs and outputs are flat lists of tensors."""

    module: fx.GraphModule
    outputs: pytree.TreeSpec
    """How the flat outputs make up what the function returned."""

    @property
    def graph(self) -> fx.Graph:
        """The operations, in order."""
        return self.module.graph

    def output_nodes(self) -> list[Any]:
        """The nodes of the outputs."""
        outputs: Any = next(node for node in self.graph.nodes if node.op == "output").args[0]
        return list(outputs)


def record(function: Callable[..., Any], inputs: tuple[Any, ...], *, dtype: torch.dtype | None) -> Recording:
    """The operations that ``function(*inputs)`` runs.

    Args:
        function: Of nests of tensors, to a nest of tensors.
        inputs: Nests of tensors of the shapes to record for; their values do not matter.
        dtype: Precision of matrix products (as under autocast); None for that of the weights.

    Raises:
        RuntimeUnsupported: A value of a tensor decides what the function computes, or it returns something else than
            tensors.
    """
    flat, spec = pytree.tree_flatten(inputs)
    returned: list[pytree.TreeSpec] = []
    device = next((tensor.device.type for tensor in flat if isinstance(tensor, Tensor)), "cpu")

    def flattened(*tensors: Tensor) -> list[Tensor]:
        autocast = torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False)
        with torch.no_grad(), autocast, _KeepWhole(dtype, device):
            result = function(*pytree.tree_unflatten(list(tensors), spec))
        leaves, out = pytree.tree_flatten(result)
        if odd := [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]:
            raise RuntimeUnsupported(f"a phase returns {odd[0]}: phases hand on tensors, and nests of tensors")
        returned[:] = [out]
        return leaves

    try:
        # Functionalised: a slice that is written into becomes a value of its own, so passes may move operations.
        # One mode for the shapes of all values: a mode of its own for each would take half of the time.
        with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
            module = make_fx(torch.func.functionalize(flattened, remove="mutations"))(*flat)
    except RuntimeError as error:
        if "get value out of a tracing tensor" not in str(error):
            raise
        raise RuntimeUnsupported(
            "the model cannot be recorded: a tensor's value decides what it computes (.item(), bool() or a shape)"
            f" - move that into ActPhases.inputs ({str(error).splitlines()[0][:160]})"
        ) from error
    return Recording(module, returned[0])
