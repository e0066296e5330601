"""The one training loop: every stage of every model, in order, resumable to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wamkit.training.checkpoint import (
    CHECKPOINTS,
    LAST,
    PRETRAINED_MODEL,
    last_checkpoint,
    read_settings,
    remove_unfinished,
)
from wamkit.training.config import TrainConfig
from wamkit.training.distributed import check_divisible, start_accelerator
from wamkit.training.errors import TrainingError
from wamkit.training.log import TrainingLog, make_tracker
from wamkit.training.precision import resolve_precision
from wamkit.training.seeding import derive_seed, seed_everything
from wamkit.training.stage_run import Progress, RunContext, StageRun
from wamkit.training.stages import StageData, build_model, build_stage_data
from wamkit.training.state import Position, find_position, load_pretrained

if TYPE_CHECKING:
    import torch

    from wamkit.models.base import WorldActionModel


def train(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    build_model: Callable[[TrainConfig], WorldActionModel] = build_model,
    build_data: Callable[..., StageData] = build_stage_data,
) -> Path:
    """Run a config's stages and return the last checkpoint's ``pretrained_model`` folder.

    With ``config.resume`` the run in ``config.output_dir`` goes on from its last checkpoint, and ends with the
    weights that it would have had without the interruption, to the bit on a CPU.

    Args:
        config: The run.
        progress: Told how many steps are done of how many, over all stages.
        build_model: Makes the model with its initial weights.
        build_data: Makes a stage's data; see `build_stage_data`.

    Raises:
        TrainingError: the run cannot start or must stop; the last checkpoint is intact.
    """
    config = replace(config, precision=_precision(config))
    output_dir, stages = Path(config.output_dir), config.stages_to_run()
    accelerator = start_accelerator(config.precision, config.device)
    check_divisible({stage.name: stage.batch_size for stage in stages}, accelerator.num_processes)
    position = _starting_position(config, output_dir)
    model = _starting_model(config, position, build_model, accelerator.device)
    log = None
    if accelerator.is_main_process:
        remove_unfinished(output_dir)
        log = TrainingLog(output_dir, position.global_step, make_tracker(config, output_dir, position.global_step))
    context = RunContext(
        config=config,
        output_dir=output_dir,
        accelerator=accelerator,
        build_model=build_model,
        build_data=build_data,
        total_steps=sum(stage.steps for stage in stages),
        log=log,
        progress=progress if accelerator.is_main_process else None,
    )
    try:
        for index, stage in enumerate(stages):
            if index < position.stage_index:
                continue
            within = index == position.stage_index and position.stage_step > 0
            model = StageRun(context, model, stage, index, position if within else None).run()
    finally:
        if log is not None:
            log.close()
    return output_dir / CHECKPOINTS / LAST / PRETRAINED_MODEL


def _precision(config: TrainConfig) -> str:
    """What "auto" means; a run goes on in the precision that it began in, also on another machine."""
    begun = last_checkpoint(Path(config.output_dir)) if config.resume and config.precision == "auto" else None
    if begun is not None:
        return read_settings(begun / PRETRAINED_MODEL / "train_config.json")["precision"]
    return resolve_precision(config.precision, config.device)


def _starting_position(config: TrainConfig, output_dir: Path) -> Position:
    if config.resume:
        return find_position(output_dir, config)
    if (existing := last_checkpoint(output_dir)) is not None:
        raise TrainingError(
            f"{output_dir} already holds a run ({int(existing.name)} steps): go on with it (--resume),"
            " or choose another --output_dir."
        )
    return Position()


def _starting_model(
    config: TrainConfig,
    position: Position,
    build_model: Callable[[TrainConfig], WorldActionModel],
    device: torch.device,
) -> WorldActionModel:
    """The model as it stands at the run's position: initial, given, or of the last checkpoint."""
    seed_everything(derive_seed(config.seed, "initial weights"), device)
    model = build_model(config)
    for stage in config.stages_to_run():
        model.check_stage(stage.name)
    if position.checkpoint is not None:
        load_pretrained(model, position.checkpoint / PRETRAINED_MODEL)
    elif config.policy.path is not None:
        load_pretrained(model, Path(config.policy.path))
    else:
        model.load_pretrained_trunks()
    return model
