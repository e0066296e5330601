"""AdamW or Muon over a model's groups, the learning-rate schedule, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wamkit.training.distributed import full_tensor, local_tensor, set_full_tensor
from wamkit.training.errors import TrainingError
from wamkit.training.muon import Muon, linear_matrices

if TYPE_CHECKING:
    from wamkit.training.config import StageConfig


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with ``requires_grad``, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def optimizer_groups(
    model: nn.Module,
    groups: Iterable[Mapping[str, Any]],
    *,
    stage: str,
    learning_rate: float,
    weight_decay: float,
    muon: bool = False,
) -> list[dict[str, Any]]:
    """One optimiser group per (declared group, decayed or not, Muon's or not).

    Biases, norms and every other parameter of fewer than two dimensions are never decayed; a group may
    exclude its matrices as well. Frozen parameters are left out.

    Args:
        model: What is trained; its ``requires_grad`` flags say which parameters are.
        groups: What ``model.parameter_groups(stage)`` returned: ``params``, ``name``, ``lr_scale``,
            ``weight_decay``.
        stage: Its name, for messages.
        learning_rate: Base rate, which a group's ``lr_scale`` multiplies.
        weight_decay: Of decayed parameters.
        muon: The matrices of linear layers form groups of their own, marked ``muon``.

    Raises:
        TrainingError: nothing is trained, or the groups miss or repeat a trained parameter.
    """
    trained = trained_parameters(model)
    if not trained:
        raise TrainingError(f"Stage {stage!r} trains no parameter; prepare_stage() must set requires_grad on some.")
    names = {parameter: name for name, parameter in trained.items()}
    matrices = linear_matrices(model) if muon else set()
    seen: set[str] = set()
    found = []
    for group in groups:
        for decayed, orthogonal in ((True, True), (True, False), (False, False)):
            members = []
            for parameter in group["params"]:
                name = names.get(parameter)
                if name is None or (parameter.ndim >= 2) is not decayed or (parameter in matrices) is not orthogonal:
                    continue
                if name in seen:
                    raise TrainingError(f"Parameter {name!r} is in two parameter groups of stage {stage!r}.")
                seen.add(name)
                members.append(name)
            if not members:
                continue
            scale = float(group.get("lr_scale", 1.0))
            found.append(
                {
                    "params": [trained[name] for name in members],
                    "names": members,
                    "name": f"{group.get('name', 'parameters')}{_suffix(decayed, orthogonal)}",
                    "muon": orthogonal,
                    "lr_scale": scale,
                    "lr": learning_rate * scale,
                    "weight_decay": weight_decay if decayed and group.get("weight_decay", True) else 0.0,
                }
            )
    missed = [name for name in trained if name not in seen]
    if missed:
        shown = ", ".join(missed[:5]) + (", ..." if len(missed) > 5 else "")
        raise TrainingError(f"parameter_groups({stage!r}) misses trained parameters: {shown}")
    return found


def build_optimizer(model: nn.Module, groups: Iterable[Mapping[str, Any]], stage: StageConfig) -> torch.optim.AdamW:
    """The stage's optimiser over `optimizer_groups`.

    Args:
        model: What is trained.
        groups: What ``model.parameter_groups(stage)`` returned.
        stage: Optimiser, learning rate, betas, eps and weight decay.

    Raises:
        TrainingError: nothing is trained, or the groups miss or repeat a trained parameter.
    """
    muon = stage.optimizer == "muon"
    found = optimizer_groups(
        model, groups, stage=stage.name, learning_rate=stage.learning_rate, weight_decay=stage.weight_decay, muon=muon
    )
    # The fused kernel is also the fastest on a CPU: one pass over each tensor's memory.
    kind = Muon if muon else torch.optim.AdamW
    return kind(found, lr=stage.learning_rate, betas=stage.betas, eps=stage.eps, weight_decay=0.0, fused=True)


def _suffix(decayed: bool, orthogonal: bool) -> str:
    return ".matrices" if orthogonal else "" if decayed else ".undecayed"


def learning_rate_factor(stage: StageConfig, step: int) -> float:
    """What the base learning rate is multiplied with at ``step`` (from 0): linear warm-up, then cosine or constant.

    The warm-up's last step, number ``warmup_steps - 1``, is the first at the full rate; the cosine reaches
    ``final_lr_fraction`` at the stage's last step.
    """
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    if stage.schedule == "constant":
        return 1.0
    progress = (step - stage.warmup_steps + 1) / max(1, stage.steps - stage.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return stage.final_lr_fraction + (1.0 - stage.final_lr_fraction) * cosine


def set_learning_rate(optimizer: torch.optim.Optimizer, stage: StageConfig, step: int) -> float:
    """Give every group its rate for ``step``; returns the base rate."""
    rate = stage.learning_rate * learning_rate_factor(stage, step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat full tensors, ``state/<parameter name>/<entry>`` (a collective under FSDP)."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for entry, value in optimizer.state.get(parameter, {}).items():
                tensors[f"state/{name}/{entry}"] = full_tensor(value)
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned.

    Raises:
        TrainingError: the tensors belong to other parameters.
    """
    expected = {name for group in optimizer.param_groups for name in group["names"]}
    stored: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        _, name, entry = key.split("/", 2)
        stored.setdefault(name, {})[entry] = value
    if stored and stored.keys() != expected:
        odd = sorted(stored.keys() ^ expected)[0]
        raise TrainingError(f"The stored optimiser state is of another model or stage: it disagrees on {odd!r}.")
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for entry, value in stored.get(name, {}).items():
                if entry == "step":  # a scalar, kept beside the parameter by the fused kernel
                    optimizer.state[parameter][entry] = value.clone().to(local_tensor(parameter).device)
                else:
                    optimizer.state[parameter][entry] = torch.zeros_like(parameter, requires_grad=False)
                    set_full_tensor(optimizer.state[parameter][entry], value)


class MovingAverage:
    """Exponential moving average of the trained parameters: e <- e + (1 - d_t)(w - e), d_t = min(d, (1+t)/(10+t))."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = dict(parameters)
        self._average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` (from 0)."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        averages, weights = _local(self._average.values()), _local(self._parameters.values())
        torch._foreach_lerp_(averages, weights, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average; the second call undoes the first."""
        for average, weight in zip(_local(self._average.values()), _local(self._parameters.values()), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """The average as full tensors by parameter name (a collective under FSDP)."""
        return {name: full_tensor(average) for name, average in self._average.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` returned."""
        for name, average in self._average.items():
            set_full_tensor(average, tensors[name])


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local_tensor(tensor).detach() for tensor in tensors]
