"""What a checkpoint of a run holds: gathering it, writing it, finding the place to go on, and putting it back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wamkit.configuration import to_dict
from wamkit.json_files import write_json
from wamkit.training.checkpoint import (
    LIVE_PARAMETERS,
    OPTIMIZER_GROUPS,
    OPTIMIZER_STATE,
    PRETRAINED_MODEL,
    RNG_STATE,
    SCHEDULER_STATE,
    TRAINING_STATE,
    TRAINING_STEP,
    WEIGHTS,
    last_checkpoint,
    load_weights,
    read_settings,
    save_weights,
    write_checkpoint,
)
from wamkit.training.config import TrainConfig, check_resumable
from wamkit.training.distributed import full_state, set_full_tensor, shared_names
from wamkit.training.errors import ResumeError
from wamkit.training.model_card import model_card
from wamkit.training.optimizer import MovingAverage, load_optimizer_tensors, optimizer_tensors, trained_parameters
from wamkit.training.seeding import rng_state, set_rng_state

if TYPE_CHECKING:
    from wamkit.models.base import WorldActionModel
    from wamkit.training.stages import StageData


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands. ``stage_index`` counts the stages that the run was asked to do."""

    stage_index: int = 0
    stage: str = ""
    stage_step: int = 0
    global_step: int = 0
    stage_finished: bool = False
    data_fingerprint: str = ""
    loader: dict[str, Any] | None = None
    checkpoint: Path | None = None
    """Where it was read from; None at the very start."""

    def check_data(self, fingerprint: str) -> None:
        """Refuse to go on with other recordings than those the run began with.

        Raises:
            ResumeError: the fingerprints differ.
        """
        if self.data_fingerprint != fingerprint:
            raise ResumeError(
                "Cannot resume: the recordings are not those that the run began with (their fingerprints differ)."
                " Restore them, or start a new run in another output directory."
            )


def find_position(output_dir: Path, config: TrainConfig) -> Position:
    """The place to go on from in ``output_dir``; the very start where no checkpoint was written yet.

    Raises:
        ResumeError: the run there had another config, or its last checkpoint cannot be read.
    """
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is None:
        return Position()
    check_resumable(read_settings(checkpoint / PRETRAINED_MODEL / "train_config.json"), config.to_dict())
    stored = read_settings(checkpoint / TRAINING_STATE / TRAINING_STEP)
    known = {field.name for field in fields(Position)}
    position = Position(**{key: value for key, value in stored.items() if key in known}, checkpoint=checkpoint)
    if position.stage_finished:
        return replace(position, stage_index=position.stage_index + 1, stage_step=0, stage_finished=False)
    return position


def save_state(
    output_dir: Path,
    position: Position,
    *,
    config: TrainConfig,
    model: WorldActionModel,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    data: StageData,
    learning_rate: float,
    writes: bool,
) -> None:
    """Write a checkpoint; every rank takes part in the gathering, the one that ``writes`` writes.

    With a moving average, ``model.safetensors`` holds the average, which is what one acts with, and the weights
    that training goes on from lie in the training state.
    """
    weights = full_state(model)
    live = {name: weights[name] for name in trained_parameters(model)} if average is not None else {}
    if average is not None:
        weights = weights | average.tensors()
    states = optimizer_tensors(optimizer)
    if not writes:
        return

    def fill(folder: Path) -> None:
        policy, state = folder / PRETRAINED_MODEL, folder / TRAINING_STATE
        policy.mkdir()
        state.mkdir()
        save_weights(weights, policy / WEIGHTS, shared_names(model))
        contract = to_dict(data.contract) if data.contract is not None else None
        described = {"type": model.name, "stage": position.stage, **to_dict(model.config)}
        write_json(policy / "config.json", described | ({"contract": contract} if contract is not None else {}))
        write_json(policy / "train_config.json", config.to_dict())
        if data.normalizer is not None:
            data.normalizer.save(policy)
        (policy / "README.md").write_text(model_card(config, model, position))
        save_weights(states, state / OPTIMIZER_STATE)
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        write_json(state / OPTIMIZER_GROUPS, groups)
        write_json(state / SCHEDULER_STATE, {"stage_step": position.stage_step, "learning_rate": learning_rate})
        save_weights(rng_state(), state / RNG_STATE)
        if live:
            save_weights(live, state / LIVE_PARAMETERS)
        place = {key: value for key, value in asdict(position).items() if key != "checkpoint"}
        place |= {
            "step": position.global_step,
            "loader": data.loader.state_dict(),
            "data_fingerprint": data.fingerprint,
        }
        write_json(state / TRAINING_STEP, place)

    write_checkpoint(output_dir, position.global_step, fill)


def load_pretrained(model: WorldActionModel, policy: Path) -> None:
    """Load ``model.safetensors`` of a checkpoint into a model that is whole and of the same config.

    Raises:
        ResumeError: there is no such checkpoint, or its weights are another model's.
    """
    if not (policy / WEIGHTS).is_file():
        raise ResumeError(f"{policy} is no checkpoint (it has no {WEIGHTS}); name its pretrained_model folder.")
    kind = read_settings(policy / "config.json").get("type") if (policy / "config.json").exists() else model.name
    if kind != model.name:
        raise ResumeError(f"{policy} holds a {kind!r}, this run trains a {model.name!r}; choose another checkpoint.")
    stored, own = load_weights(policy / WEIGHTS), model.state_dict()
    odd = sorted(stored.keys() ^ own.keys()) or [name for name in own if stored[name].shape != own[name].shape]
    if odd:
        raise ResumeError(
            f"{policy} does not fit this model's config: {len(odd)} weights differ, {odd[0]!r} for one."
            " Use the checkpoint's own model config."
        )
    model.load_state_dict(stored)


def load_stage_state(
    position: Position,
    *,
    model: WorldActionModel,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    loader: Any,
) -> None:
    """Put optimiser, live weights, sampler and generators back as they were; the model has its weights already."""
    assert position.checkpoint is not None
    state = position.checkpoint / TRAINING_STATE
    if average is not None and (state / LIVE_PARAMETERS).exists():
        # The model came with the average as its weights, which is what `average` has copied.
        live = load_weights(state / LIVE_PARAMETERS)
        for name, parameter in trained_parameters(model).items():
            set_full_tensor(parameter.data, live[name])
    load_optimizer_tensors(optimizer, load_weights(state / OPTIMIZER_STATE))
    loader.load_state_dict(position.loader)
    set_rng_state(load_weights(state / RNG_STATE))
