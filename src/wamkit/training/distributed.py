"""One process or many: Accelerate for processes, devices and autocast, DDP or FSDP2 for the gradients.

The batch size of a stage is global. Each rank takes its slice of every global batch, and each loss term is
divided by its number of valid samples over all ranks, so that the gradient is the single process's gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from wamkit.training.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from wamkit.types import Window


def start_accelerator(precision: str, device: str) -> Accelerator:
    """Accelerate's state for this process, on ``device`` ("auto", "cpu" or "cuda").

    Under a launcher (``accelerate launch``, ``torchrun``) it joins the group of processes that the launcher
    describes; otherwise it stands alone. Called again in one process, it starts afresh.

    Raises:
        TrainingError: CUDA is asked for and absent.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device is 'cuda', but torch sees no GPU; use device 'auto' or 'cpu'.")
    # Accelerate keeps its state per process; a second run may ask for another precision or device.
    AcceleratorState._reset_state(reset_partial_state=not (dist.is_available() and dist.is_initialized()))
    # A stage may leave a branch out of the graph for some batches (an embodiment's own head, for one).
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        cpu=device == "cpu" or (device == "auto" and not torch.cuda.is_available()),
        kwargs_handlers=[ddp],
    )
    if accelerator.device.type == "cuda" and precision == "bf16":
        torch.set_float32_matmul_precision("high")
    return accelerator


class StageObjective(nn.Module):
    """A model's loss for one stage as a forward pass, which is where DDP and FSDP2 hook in."""

    def __init__(self, model: nn.Module, stage: str) -> None:
        super().__init__()
        self.model: Any = model
        self.stage = stage

    def forward(self, window: Window, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The total to differentiate, and detached 0-d parts by name; over the ranks these add up to global means."""
        losses = self.model.loss(window, self.stage, generator)
        terms = losses.terms
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        counts = torch.stack([term.valid.sum() for term in terms.values()]).float()
        if world_size > 1:
            dist.all_reduce(counts)
        counts = counts.clamp(min=1.0).unbind()
        total = torch.zeros((), device=counts[0].device)
        parts = {}
        for (name, term), count in zip(terms.items(), counts, strict=True):
            share = torch.where(term.valid, term.value.float(), 0.0).sum() / count
            total = total + term.weight * share
            parts[name] = share.detach()
        for name, value in losses.metrics.items():
            parts[name] = value.detach().float() / world_size
        # DDP and FSDP2 average gradients over the ranks; the shares above are to be summed.
        return total * world_size, parts | {"loss": total.detach()}


def wrap(accelerator: Accelerator, objective: StageObjective, units: Sequence[nn.Module], strategy: str) -> nn.Module:
    """Make ``objective`` ready for the processes at hand: on its device, under autocast, in DDP or FSDP2.

    Args:
        accelerator: From `start_accelerator`.
        objective: The loss of one stage; its model is sharded in place under FSDP2.
        units: What the model declares as FSDP2 wrap units, in any order, each called wherever its parameters are used;
            the rest is gathered as one more unit.
        strategy: "ddp" or "fsdp2"; of no effect in a single process.
    """
    if accelerator.num_processes == 1 or strategy == "ddp":
        return accelerator.prepare_model(objective)
    # Accelerate's own FSDP2 needs a GPU and an optimiser built before sharding; torch's API needs neither.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    objective.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    chosen = {id(unit) for unit in units}
    for module in reversed(list(objective.model.modules())):  # what lies inside a unit before the unit
        if id(module) in chosen:
            fully_shard(module, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    # Weights are gathered in float32 and bf16 is autocast's, as in one process. Gathered in bfloat16, norms would be
    # rounded that a single process keeps, and what is computed in float32 would not fit them.
    objective.forward = accelerator.autocast()(objective.forward)
    return objective


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a possibly sharded tensor, detached (a collective when it is sharded)."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's part of a possibly sharded tensor, sharing its memory."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def set_full_tensor(tensor: Tensor, value: Tensor) -> None:
    """Fill a possibly sharded ``tensor`` with the whole ``value``, the same on every rank."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements)
    tensor.copy_(value)


def shared_names(model: nn.Module) -> dict[str, str]:
    """Other names of a parameter that has several, to its first."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with every tensor whole and under its first name (a collective under FSDP2)."""
    others = shared_names(model)
    return {name: full_tensor(tensor) for name, tensor in model.state_dict().items() if name not in others}


def summed(values: Tensor) -> Tensor:
    """``values`` summed over the ranks, in place."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def gathered(accelerator: Accelerator, names: list[str]) -> list[str]:
    """The ranks' lists in a row (a collective)."""
    if accelerator.num_processes == 1:
        return names
    from accelerate.utils import gather_object

    return gather_object(names)


def agree_on_error(accelerator: Accelerator, error: BaseException | None) -> None:
    """Raise ``error`` of the main process on every rank, so that none waits for the others for ever."""
    if accelerator.num_processes == 1:
        if error is not None:
            raise error
        return
    from accelerate.utils import broadcast_object_list

    shared: list[Any] = [error]
    broadcast_object_list(shared)
    if shared[0] is not None:
        raise shared[0] if error is None else error


def check_divisible(stages: Mapping[str, int], world_size: int) -> None:
    """Refuse global batch sizes that the ranks cannot share evenly.

    Raises:
        TrainingError: naming the stage and the sizes that would do.
    """
    for name, batch_size in stages.items():
        if batch_size % world_size:
            nearest = max(world_size, batch_size // world_size * world_size)
            raise TrainingError(
                f"Stage {name!r} has a global batch of {batch_size}, which {world_size} processes cannot share"
                f" evenly; use {nearest}, say."
            )
