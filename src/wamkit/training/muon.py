"""Muon: momentum made orthogonal for the matrices of linear layers, AdamW for everything else.

K. Jordan et al. 2024; scaled to AdamW's root mean square (0.2 sqrt(max side), J. Liu et al. 2025), so one learning rate
serves both. ``torch.optim.Muon`` works matrix by matrix and in bfloat16, which many CPUs have to emulate; here matrices
of one shape are taken together, in float32 on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wamkit.training.distributed import full_tensor, set_full_tensor

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x <- a x + b x^3 + c x^5 on the singular values: steep at 0, within 0.7 to 1.2 after five rounds."""
ROUNDS = 5


def linear_matrices(model: nn.Module) -> set[Tensor]:
    """The weights that Muon takes: those of `nn.Linear`, in heads and embedders too.

    Lookup tables, queries and per-embodiment tables stay with AdamW.
    """
    return {module.weight for module in model.modules() if isinstance(module, nn.Linear)}


def orthogonalized(matrices: Tensor) -> Tensor:
    """U V^T of each of a stack of matrices [n, rows, columns], roughly: five Newton-Schulz rounds.

    In bfloat16 on a GPU, in float32 on a CPU.
    """
    x = matrices.to(torch.bfloat16) if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.AdamW):
    """Groups with ``muon`` true take orthogonal steps, the others AdamW's.

    Args:
        groups: As of AdamW, each with ``muon``; a Muon group's parameters are matrices. Of its settings learning rate
            and weight decay count, not betas and eps.
        defaults: AdamW's arguments.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], **defaults: Any) -> None:
        super().__init__([dict(group) for group in groups], **defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of both kinds; ``closure`` is not supported."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            if self.param_groups:
                super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._orthogonal_step(group)

    def _orthogonal_step(self, group: Mapping[str, Any]) -> None:
        by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter, requires_grad=False)
            momentum = state["momentum"].lerp_(parameter.grad, 1.0 - MOMENTUM)
            # Nesterov's look ahead; a sharded matrix is gathered, since its singular values belong to the whole.
            direction = full_tensor(torch.lerp(parameter.grad, momentum, MOMENTUM))
            by_shape.setdefault(direction.shape, []).append((parameter, direction))
        for shape, members in by_shape.items():
            steps = orthogonalized(torch.stack([direction for _, direction in members]))
            scale = 0.2 * max(shape) ** 0.5
            for (parameter, _), step in zip(members, steps, strict=True):
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                change = torch.zeros_like(parameter, requires_grad=False)
                set_full_tensor(change, step)
                parameter.add_(change, alpha=-group["lr"] * scale)
