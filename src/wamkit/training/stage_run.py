"""One stage of a run: its steps, what it watches, what it writes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wamkit.training.checkpoint import CHECKPOINTS, LAST, PRETRAINED_MODEL, last_checkpoint, prune
from wamkit.training.config import StageConfig, TrainConfig
from wamkit.training.distributed import StageObjective, agree_on_error, full_tensor, gathered, local_tensor, wrap
from wamkit.training.errors import BrokenDataError, NonFiniteLossError, TrainingError
from wamkit.training.log import Meter, RunningMeans, TrainingLog, resident_megabytes
from wamkit.training.optimizer import MovingAverage, build_optimizer, set_learning_rate, trained_parameters
from wamkit.training.seeding import StepRandomness, derive_seed, seed_everything
from wamkit.training.stages import StageData
from wamkit.training.state import Position, load_pretrained, load_stage_state, save_state
from wamkit.training.validation import validate

if TYPE_CHECKING:
    from accelerate import Accelerator

    from wamkit.models.base import WorldActionModel
    from wamkit.types import Window

logger = logging.getLogger(__name__)

Progress = Callable[..., None]
"""``progress(done, total, note="")``, as the command line's progress bar takes it."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What the stages of a run share."""

    config: TrainConfig
    output_dir: Path
    accelerator: Accelerator
    build_model: Callable[[TrainConfig], WorldActionModel]
    build_data: Callable[..., StageData]
    total_steps: int
    log: TrainingLog | None
    """On the main process."""
    progress: Progress | None


class StageRun:
    """One stage from its first step, or from a checkpoint within it, to its end.

    Args:
        context: What the stages of the run share.
        model: Whole, as it enters the stage.
        stage: What to do.
        index: Its place among the run's stages.
        position: Where within the stage to go on; None: at its beginning.
    """

    def __init__(
        self, context: RunContext, model: WorldActionModel, stage: StageConfig, index: int, position: Position | None
    ) -> None:
        self.context, self.config, self.accelerator = context, context.config, context.accelerator
        self.stage, self.index = stage, index
        self.first_step = position.stage_step if position else 0
        self.steps_before = sum(earlier.steps for earlier in self.config.stages_to_run()[:index])
        rank, device = self.accelerator.process_index, self.accelerator.device
        seed_everything(derive_seed(self.config.seed, stage.name, "prepare"), device)
        model.prepare_stage(stage.name)
        self.data = context.build_data(
            self.config,
            stage,
            model.to(device),
            rank=rank,
            world_size=self.accelerator.num_processes,
            progress=context.progress,
        )
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
        self.randomness = StepRandomness(self.config.seed + stage.seed_offset, stage.name, rank, device)
        self.means, self.meter = RunningMeans(), Meter()
        self.rate = 0.0
        self._tell_notes()

    def run(self) -> WorldActionModel:
        """Train to the stage's end; returns the model that the next stage builds on, whole."""
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
                    self._validate_if_due(done)
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
                " Restore that episode and run again with --resume, or leave it out and start a new run from that"
                " checkpoint with --policy.path."
            ) from error
        window = window.to(self.accelerator.device)
        self.meter.waited(time.perf_counter() - started, self.stage.batch_size)
        return window

    def _without_sync(self) -> AbstractContextManager:
        if hasattr(self.objective, "set_requires_gradient_sync"):  # FSDP2 shards gradients at every backward pass
            return nullcontext()
        return self.accelerator.no_sync(self.objective)

    def _clip(self) -> Tensor:
        parameters = list(self.parameters.values())
        limit = self.stage.clip_norm if self.stage.clip_norm is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        return full_tensor(norm)

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
        kept = last_checkpoint(self.context.output_dir)
        return f"The last checkpoint is intact: {kept}." if kept else "There is no checkpoint yet."

    # Log, validation, checkpoints

    def _tell_notes(self) -> None:
        """What of the recordings is not used: on the console at every start, in the log once."""
        for note in self.data.notes if self.accelerator.is_main_process else ():
            logger.warning("Stage %r: %s", self.stage.name, note)
            if self.context.log is not None and self.first_step == 0:
                place = {"step": self._global_step(0), "stage": self.stage.name, "stage_step": 0}
                self.context.log.write({**place, "note": note})

    def _global_step(self, done: int) -> int:
        return self.steps_before + done

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
        if self.context.log is not None:
            self.context.log.write(record)
        if self.context.progress is not None:
            note = (
                f"{self.stage.name} {done}/{self.stage.steps}  loss {numbers['loss']:.4f}"
                f"  {record['samples_per_s']:.0f} samples/s  data wait {record['data_wait_ratio']:.0%}"
            )
            self.context.progress(self._global_step(done), self.context.total_steps, note)

    def _validate_if_due(self, done: int) -> None:
        every, windows = self.config.validate_every, self.data.validation
        if windows is None or not (done == self.stage.steps or (every > 0 and done % every == 0)):
            return
        if self.average is not None:
            self.average.swap()
        seed = derive_seed(self.config.seed, "validation")
        numbers = validate(self.objective, windows(), self.accelerator.device, seed)
        if self.average is not None:
            self.average.swap()
        record = {"step": self._global_step(done), "stage": self.stage.name, "stage_step": done}
        if self.context.log is not None:
            record |= {f"validation/{name}": value for name, value in numbers.items()}
            self.context.log.write(record)
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
                self.context.output_dir,
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
                prune(self.context.output_dir, self.config.keep_last)
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
            model = self.context.build_model(self.config)
            load_pretrained(model, self.context.output_dir / CHECKPOINTS / LAST / PRETRAINED_MODEL)
            return model
        if self.average is not None:
            self.average.swap()
        return self.model
