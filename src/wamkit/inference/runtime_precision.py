"""Precisions of the runtime, and FP8 with scales fixed by calibration.

FP8 (E4M3) as in Micikevicius et al. 2022 (arXiv 2209.05433): one scale for each weight matrix and one for its input,
the largest magnitude seen mapped to the format's largest number. Scales do not change at run time, so nothing is
measured in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from wamkit.inference.runtime_passes import VIEWS, Constants, add_constant, get_constant, tensor_nodes, value
from wamkit.inference.runtime_record import LINEAR, Recording, RuntimeUnsupported
from wamkit.training.precision import resolve_precision

Precision = Literal["auto", "fp32", "bf16", "fp8"]

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
HOPPER = (9, 0)
"""Compute capability from which the scaled product of E4M3 is offered here."""
SMALLEST = 256
"""Sides of a weight matrix below which FP8 gains nothing."""


def chosen_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp8"]:
    """What ``auto`` means on a device, and a refusal of what it cannot do.

    Raises:
        RuntimeUnsupported: FP8 before Hopper, or on a CPU.
    """
    if precision == "fp8" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER):
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a {device.type}"
        raise RuntimeUnsupported(
            f"precision fp8 needs an NVIDIA GPU since Hopper, and this is {what}: use bf16 or auto"
        )
    return resolve_precision(precision, device.type)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Quantised:
    """A tensor in E4M3 with its scale: ``values * scale`` is about the tensor."""

    values: Tensor
    scale: Tensor


def quantise(tensor: Tensor, largest: Tensor | None = None) -> Quantised:
    """E4M3 with one scale; ``largest`` is the magnitude that becomes the format's largest number."""
    largest = tensor.abs().amax() if largest is None else largest
    scale = (largest.float() / LARGEST).clamp(min=1e-12)
    return Quantised((tensor.float() / scale).clamp(-LARGEST, LARGEST).to(FP8), scale)


def scaled_linear(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """X W^T + b in E4M3 with static scales, bfloat16 out; ``weight`` is [out, in]."""
    flat = (x.reshape(-1, x.shape[-1]) / x_scale).clamp(-LARGEST, LARGEST).to(FP8)
    product = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        flat, weight.t(), scale_a=x_scale, scale_b=weight_scale, bias=bias, out_dtype=torch.bfloat16
    )
    return product.view(*x.shape[:-1], weight.shape[0])


def emulated_scaled_linear(
    x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """The same numbers by ordinary products, for devices without the scaled one: to study accuracy, not to be fast."""
    flat = (x.float() / x_scale).clamp(-LARGEST, LARGEST).to(FP8).float() * x_scale
    out = flat @ (weight.float() * weight_scale).t()
    return (out if bias is None else out + bias.float()).to(torch.bfloat16)


def eligible(module: fx.GraphModule, node: fx.Node) -> bool:
    """Linear layers with constant weights that are worth it and that the kernel takes (both sides multiples of 16)."""
    if node.target is not LINEAR or not isinstance(node.args[1], fx.Node):
        return False
    weight = get_constant(module, node.args[1])
    if weight is None or weight.ndim != 2 or min(weight.shape) < SMALLEST or any(side % 16 for side in weight.shape):
        return False
    return node.args[2] is None or get_constant(module, node.args[2]) is not None  # pyright: ignore[reportArgumentType]


class Interpreted(fx.Interpreter):
    """Runs a recording that was optimised: its joined products are split without copies, so views are reshapes."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As the program would."""
        return super().call_function(torch.reshape if target in VIEWS else target, args, kwargs)


class _Watch(Interpreted):
    """Runs a recording and notes the largest input of each linear layer."""

    def __init__(self, module: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.wanted, self.largest = wanted, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.wanted:
            seen = self.fetch_args_kwargs_from_env(n)[0][0].abs().amax().float()
            known = self.largest.get(n.name)
            self.largest[n.name] = seen if known is None else torch.maximum(seen, known)
        return super().run_node(n)


def calibrate_fp8(
    recording: Recording,
    samples: Sequence[Sequence[Tensor]],
    constants: Constants,
    linear: Callable[..., Tensor] = scaled_linear,
) -> int:
    """Put E4M3 products where they are worth it, with scales from the samples; returns how many.

    Args:
        recording: In bfloat16, optimised; changed in place.
        samples: Flat inputs that the recording will meet.
        constants: Where quantised weights are kept.
        linear: The product; `emulated_scaled_linear` where there is no other.
    """
    module, graph = recording.module, recording.graph
    nodes = [node for node in tensor_nodes(graph) if eligible(module, node)]
    watch = _Watch(module, {node.name for node in nodes})
    with torch.no_grad():
        for sample in samples:
            watch.run(*sample)
    for node in nodes:
        x, weight_node, bias = node.args
        weight = get_constant(module, weight_node)  # pyright: ignore[reportArgumentType]
        assert weight is not None
        quantised = quantise(weight)
        key = ("fp8", constants.leaf(weight))
        x_scale = (watch.largest[node.name] / LARGEST).clamp(min=1e-12)
        parts = [
            add_constant(module, constants.add(key, quantised.values), node),
            add_constant(module, x_scale, node),
            add_constant(module, constants.add(("fp8 scale", key), quantised.scale), node),
        ]
        node.target = linear
        node.args = (x, *parts, bias)
        node.meta["val"] = value(node).to(torch.bfloat16)
    graph.eliminate_dead_code()
    return len(nodes)


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of two chunks as vectors."""
    return float(torch.nn.functional.cosine_similarity(first.flatten().float(), second.flatten().float(), dim=0))
