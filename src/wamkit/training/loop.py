"""The one training loop: every stage of every model, in order, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wamkit.models.base import WorldActionModel
from wamkit.training.checkpoint import (
    CHECKPOINTS,
    LAST,
    PRETRAINED_MODEL,
    last_checkpoint,
    prune,
    read_json,
    remove_unfinished,
)
from wamkit.training.config import StageConfig, TrainConfig
from wamkit.training.distributed import (
    StageObjective,
    agree_on_error,
    check_divisible,
    gathered,
    local_tensor,
    resolve_precision,
    start_accelerator,
    wrap,
)
from wamkit.training.errors import BrokenDataError, NonFiniteLossError, TrainingError
from wamkit.training.log import Meter, RunningMeans, TrainingLog, make_tracker, resident_megabytes
from wamkit.training.optimizer import MovingAverage, build_optimizer, set_learning_rate, trained_parameters
from wamkit.training.seeding import StepRandomness, derive_seed, seed_everything
from wamkit.training.stages import StageData, build_model, build_stage_data
from wamkit.training.state import Position, find_position, load_pretrained, load_stage_state, save_state
from wamkit.training.validation import validate

if TYPE_CHECKING:
    from accelerate import Accelerator

    from wamkit.types import Window

Progress = Callable[..., None]
"""``progress(done, total, note="")``, as the command line's progress bar takes it."""
BuildModel = Callable[[TrainConfig], WorldActionModel]
BuildData = Callable[..., StageData]


def train(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    build_model: BuildModel = build_model,
    build_data: BuildData = build_stage_data,
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
    return _Run(config, progress, build_model, build_data).all_stages()


class _Run:
    def __init__(
        self, config: TrainConfig, progress: Progress | None, build_model: BuildModel, build_data: BuildData
    ) -> None:
        config = replace(config, precision=self._precision(config))
        self.config = config
        self.output_dir = Path(config.output_dir)
        self.stages = config.stages_to_run()
        self.accelerator: Accelerator = start_accelerator(config.precision, config.device)
        check_divisible({stage.name: stage.batch_size for stage in self.stages}, self.accelerator.num_processes)
        self.progress = progress if progress is not None and self.accelerator.is_main_process else None
        self.build_model, self.build_data = build_model, build_data
        self.total_steps = sum(stage.steps for stage in self.stages)
        self.position = self._starting_position()
        self.log: TrainingLog | None = None

    @staticmethod
    def _precision(config: TrainConfig) -> str:
        """A run goes on in the precision that it began in, also on another machine."""
        begun = last_checkpoint(Path(config.output_dir)) if config.resume and config.precision == "auto" else None
        if begun is not None:
            return read_json(begun / PRETRAINED_MODEL / "train_config.json")["precision"]
        return resolve_precision(config.precision, config.device)

    def _starting_position(self) -> Position:
        if self.config.resume:
            return find_position(self.output_dir, self.config)
        if (existing := last_checkpoint(self.output_dir)) is not None:
            raise TrainingError(
                f"{self.output_dir} already holds a run ({existing.name} steps): go on with it (--resume),"
                " or choose another --output_dir."
            )
        return Position()

    def all_stages(self) -> Path:
        config, position = self.config, self.position
        model = self._fresh_model()
        if self.accelerator.is_main_process:
            remove_unfinished(self.output_dir)
            tracker = make_tracker(config, self.output_dir, position.global_step)
            self.log = TrainingLog(self.output_dir, position.global_step, tracker)
        try:
            for index, stage in enumerate(self.stages):
                if index < position.stage_index:
                    continue
                within = index == position.stage_index and position.stage_step > 0
                model = _StageRun(self, model, stage, index, position if within else None).run()
        finally:
            if self.log is not None:
                self.log.close()
        return self.output_dir / CHECKPOINTS / LAST / PRETRAINED_MODEL

    def _fresh_model(self) -> WorldActionModel:
        """The model as it stands at the run's position: initial, given, or of the last checkpoint."""
        seed_everything(derive_seed(self.config.seed, "initial weights"), self.accelerator.device)
        model = self.build_model(self.config)
        for stage in self.stages:
            model.check_stage(stage.name)
        if self.position.checkpoint is not None:
            load_pretrained(model, self.position.checkpoint / PRETRAINED_MODEL)
        elif self.config.policy.path is not None:
            load_pretrained(model, Path(self.config.policy.path))
        return model

    def start_of_stage(self, index: int) -> int:
        return sum(stage.steps for stage in self.stages[:index])


class _StageRun:
    """One stage from its first step, or from a checkpoint within it, to its end."""

    def __init__(
        self, run: _Run, model: WorldActionModel, stage: StageConfig, index: int, position: Position | None
    ) -> None:
        self.run_ = run
        self.config, self.accelerator = run.config, run.accelerator
        self.stage, self.index = stage, index
        self.first_step = position.stage_step if position else 0
        seed_everything(derive_seed(self.config.seed, stage.name, "prepare"), self.accelerator.device)
        model.prepare_stage(stage.name)
        self.data = run.build_data(
            self.config,
            stage,
            model.to(self.accelerator.device),
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            progress=run.progress,
        )
        model.prepare_stage(stage.name)  # an encoder that filled the feature store may have been put in another mode
        self.model = model
        self.objective = wrap(
            self.accelerator, StageObjective(model, stage.name), model.fsdp_units(), self.config.strategy
        )
        self.parameters = trained_parameters(model)
        self.optimizer = build_optimizer(model, model.parameter_groups(stage.name), stage)
        self.average = MovingAverage(self.parameters, stage.ema_decay) if stage.ema_decay is not None else None
        if position is not None:
            position.check_data(self.data.fingerprint)
            load_stage_state(
                position, model=model, optimizer=self.optimizer, average=self.average, loader=self.data.loader
            )
        self.randomness = StepRandomness(
            self.config.seed + stage.seed_offset, stage.name, self.accelerator.process_index, self.accelerator.device
        )
        self.means, self.meter = RunningMeans(), Meter()
        self.rate = 0.0

    def run(self) -> WorldActionModel:
        config, stage = self.config, self.stage
        try:
            if self.first_step < stage.steps:
                windows = iter(self.data.loader)
                self.meter = Meter()
                for step in range(self.first_step, stage.steps):
                    self._step(step, windows)
                    done = step + 1
                    last = done == stage.steps
                    if done % config.log_every == 0 or last:
                        self._write_log(done)
                    if self._validates(done):
                        self._validate(done)
                    if last or done % config.save_every == 0:
                        self._save(done)
        finally:
            self.data.close()
        return self._outcome()

    def _step(self, step: int, windows: Iterator[Window]) -> None:
        stage = self.stage
        self.rate = set_learning_rate(self.optimizer, stage, step)
        parts: dict[str, Tensor] = {}
        for micro in range(stage.accumulate):
            window = self._next_window(step, micro, windows)
            generator = self.randomness.at(step, micro)
            more_to_come = micro + 1 < stage.accumulate
            with self._without_sync() if more_to_come else nullcontext():
                total, shares = self.objective(window, generator)
                if self.accelerator.num_processes == 1:  # a rank that stops alone would leave the others waiting
                    self._refuse_non_finite_now(step, shares, "loss")
                self.accelerator.backward(total / stage.accumulate if stage.accumulate > 1 else total)
            parts = shares if micro == 0 else {name: parts[name] + share for name, share in shares.items()}
        if stage.accumulate > 1:
            parts = {name: value / stage.accumulate for name, value in parts.items()}
        # Every rank has the whole norm, while the means add the ranks up.
        parts["grad_norm"] = self._clip() / self.accelerator.num_processes
        self._refuse_non_finite_now(step, parts, "grad_norm")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step)
        self.means.add(step, parts)

    def _next_window(self, step: int, micro: int, windows: Iterator[Window]) -> Window:
        started = time.perf_counter()
        try:
            window = next(windows)
        except StopIteration:
            raise BrokenDataError(f"The data of stage {self.stage.name!r} ended at step {step}.") from None
        except Exception as error:
            raise BrokenDataError(
                f"Stage {self.stage.name!r} stopped at step {step}: a batch could not be read"
                f" ({type(error).__name__}: {error}).{self._origin(step, micro)} {self._intact()}"
                " Mend or remove that episode and run again with --resume."
            ) from error
        window = window.to(self.accelerator.device)
        self.meter.waited(time.perf_counter() - started, self.stage.batch_size)
        return window

    def _without_sync(self):
        if hasattr(self.objective, "set_requires_gradient_sync"):  # FSDP2 shards gradients at every backward pass
            return nullcontext()
        return self.accelerator.no_sync(self.objective)

    def _clip(self) -> Tensor:
        parameters = list(self.parameters.values())
        limit = self.stage.clip_norm if self.stage.clip_norm is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        return (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).detach()

    # Numbers that are not finite

    def _refuse_non_finite_now(self, step: int, parts: dict[str, Tensor], watched: str) -> None:
        """On a CPU looking costs nothing; on a GPU it would stall each step, so `_check_finite` looks later."""
        if self.accelerator.device.type == "cpu" and not math.isfinite(parts[watched].item()):
            self.means.add(step, parts)
            self._check_finite()

    def _check_finite(self) -> None:
        found = self.means.first_not_finite(
            ("loss", "grad_norm") if self.accelerator.num_processes == 1 else ("grad_norm",)
        )
        if found is None:
            return
        step, names = found
        names = set(gathered(self.accelerator, names))
        terms = sorted(names - {"loss", "grad_norm"})
        culprit = f"loss term {', '.join(terms)}" if terms else ("loss" if "loss" in names else "gradient norm")
        raise NonFiniteLossError(
            f"Stage {self.stage.name!r} stopped at step {step}: the {culprit} is not finite.{self._origin(step, None)}"
            f" {self._intact()} Look at that batch, lower the learning rate or clip_norm, and start again."
        )

    def _origin(self, step: int, micro: int | None) -> str:
        if self.data.describe is None:
            return ""
        size, micros = self.stage.batch_size, self.stage.accumulate
        first = (step * micros + (micro or 0)) * size
        try:
            return f" The batch came from {self.data.describe(first, size if micro is not None else size * micros)}."
        except Exception:
            return ""

    def _intact(self) -> str:
        kept = last_checkpoint(self.run_.output_dir)
        return f"The last checkpoint is intact: {kept}." if kept else "There is no checkpoint yet."

    # Log, validation, checkpoints

    def _global_step(self, done: int) -> int:
        return self.run_.start_of_stage(self.index) + done

    def _write_log(self, done: int) -> None:
        self._check_finite()
        numbers = self.means.read()
        record = {
            "step": self._global_step(done),
            "stage": self.stage.name,
            "stage_step": done,
            **numbers,
            "lr": self.rate,
            **self.meter.read(),
            "rss_mb": resident_megabytes(),
        }
        if self.run_.log is not None:
            self.run_.log.write(record)
        if self.run_.progress is not None:
            note = (
                f"{self.stage.name} {done}/{self.stage.steps}  loss {numbers['loss']:.4f}"
                f"  {record['samples_per_s']:.0f} samples/s  data wait {record['data_wait_ratio']:.0%}"
            )
            self.run_.progress(self._global_step(done), self.run_.total_steps, note)

    def _validates(self, done: int) -> bool:
        if self.data.validation is None:
            return False
        every = self.config.validate_every
        return done == self.stage.steps or (every > 0 and done % every == 0)

    def _validate(self, done: int) -> None:
        if self.average is not None:
            self.average.swap()
        numbers = validate(
            self.objective,
            self.data.validation(),
            self.accelerator.device,
            seed=derive_seed(self.config.seed, "validation"),
        )
        if self.average is not None:
            self.average.swap()
        record = {"step": self._global_step(done), "stage": self.stage.name, "stage_step": done}
        if self.run_.log is not None:
            self.run_.log.write(record | {f"validation/{name}": value for name, value in numbers.items()}, "validation")
        self.meter.skip()

    def _save(self, done: int) -> None:
        self._check_finite()
        position = Position(
            stage_index=self.index,
            stage=self.stage.name,
            stage_step=done,
            global_step=self._global_step(done),
            stage_finished=done == self.stage.steps,
        )
        error: BaseException | None = None
        try:
            save_state(
                self.run_.output_dir,
                position,
                config=self.config,
                model=self.model,
                optimizer=self.optimizer,
                average=self.average,
                data=self.data,
                learning_rate=self.rate,
                writes=self.accelerator.is_main_process,
            )
            if self.accelerator.is_main_process:
                prune(self.run_.output_dir, self.config.keep_last)
        except TrainingError as stopped:
            error = stopped
        agree_on_error(self.accelerator, error)
        self.meter.skip()

    def _outcome(self) -> WorldActionModel:
        """The model that the next stage builds on: with the average in place of the weights, whole on every rank."""
        if self.accelerator.num_processes > 1:
            del self.objective  # DDP's hooks on the parameters go with it
            self.accelerator.free_memory()
        sharded = any(local_tensor(p) is not p for p in self.model.parameters())
        if sharded:
            model = self.run_.build_model(self.config)
            load_pretrained(model, self.run_.output_dir / CHECKPOINTS / LAST / PRETRAINED_MODEL)
            return model
        if self.average is not None:
            self.average.swap()
        return self.model
