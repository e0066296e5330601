"""The runtime: any model that declares its phases, run as fast as its arithmetic allows, to the same actions.

runtime = Runtime(policy.model)                       # or wamkit.load(path, runtime=True)
chunk = runtime.act(observation, noise=noise)

For each shape the model's phases are recorded once (`runtime_record`): the prefix, which sees pictures and words and
runs once per chunk, and the loop of all denoise steps. Both recordings are optimised (`runtime_fusions`), made into
straight lines of calls (`runtime_program`) and, on a GPU, captured as a CUDA graph each (`runtime_graphs`).

A recording holds the weights as they were: after training on, make a new runtime.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from wamkit.inference.runtime_calls import RecordedCalls, repeat_last
from wamkit.inference.runtime_chunk import chunk_of, joined, tensors_of
from wamkit.inference.runtime_fusions import optimise
from wamkit.inference.runtime_graphs import GraphedChunk
from wamkit.inference.runtime_loop import check_alike, drop_unused_inputs, keep_outputs, record_loop, rows_of
from wamkit.inference.runtime_passes import Constants
from wamkit.inference.runtime_precision import Interpreted, Precision, calibrate_fp8, chosen_precision, cosine
from wamkit.inference.runtime_program import Program, build, compiled
from wamkit.inference.runtime_record import Recording, RuntimeUnsupported, record
from wamkit.models.base import WorldActionModel
from wamkit.models.phases import State
from wamkit.types import ActionChunk, Observation


@dataclass(frozen=True)
class RuntimeSettings:
    """How a model is run. The defaults are the fast ones of the device that the model is on."""

    precision: Precision = "auto"
    """``auto``: bf16 where the device multiplies it natively, else fp32. ``fp8``: static scales, since Hopper."""
    graphs: bool | None = None
    """CUDA graphs; None: on a GPU."""
    compile: bool = False
    """Compile prefix and denoise step with TorchInductor: fewer small operations, a minute or more to build."""
    threads: int | None = None
    """torch's threads of this process; None leaves them as they are."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    """Batches are filled up to the next of these by repeating the last sample; larger ones run in parts."""
    text_tokens: tuple[int, ...] = (16, 24, 32, 48, 64, 96, 128)
    """Instructions are padded to the next of these lengths, with padding that is not attended to."""
    max_programs: int = 16
    """Shapes held at a time; the one not used for longest makes room."""
    max_calls: int = 128
    """The same for what a model that remembers computes before its prefix; these hold no memory of their own."""
    fp8_min_cosine: float = 0.999
    """FP8 is refused where its actions on the calibration observations are farther from bf16's."""


@dataclass(frozen=True)
class BuildReport:
    """What one shape cost to prepare, and what it runs."""

    shape: dict[str, tuple[int, ...]]
    seconds: dict[str, float]
    """Recording, optimising, compiling or capturing, and the first run."""
    prefix_operations: int
    operations_per_step: float
    """Operations of the loop that follow from the noise, by denoise step."""
    constant_bytes: int
    """Weights and tables that the programs read in one chunk; the loop's are counted once."""


@dataclass
class _Shape:
    """The programs of one shape."""

    prefix: Program
    loop: Program | None
    outputs: pytree.TreeSpec
    """Of the results, see `wamkit.inference.runtime_chunk.tensors_of`."""
    run: Callable[[Sequence[Tensor], Tensor | None], list[Tensor]]
    report: BuildReport
    recordings: tuple[Recording, Recording | None] = field(repr=False)


class Runtime:
    """Runs `act` of a model from recordings of its phases.

    Args:
        model: In evaluation mode and on its device; it must declare `phases`.
        settings: How to run it.
        calibration: Observations that FP8's scales are fixed on; needed for precision ``fp8`` alone.

    Raises:
        RuntimeUnsupported: The model declares no phases, the device cannot do what is asked for, or FP8 changes the
            actions by more than the settings allow.
    """

    def __init__(
        self,
        model: WorldActionModel,
        settings: RuntimeSettings | None = None,
        *,
        calibration: Sequence[Observation] = (),
    ) -> None:
        settings = settings or RuntimeSettings()
        phases = model.phases()
        if phases is None:
            raise RuntimeUnsupported(f"{model.name} declares no phases of its act: load it without runtime=")
        if model.training:
            raise RuntimeUnsupported("the model is in training mode: call model.eval() before making a runtime of it")
        self.model, self.settings, self.phases, self.device = model, settings, phases, next(model.parameters()).device
        self.precision = chosen_precision(settings.precision, self.device)
        self.graphs = self.device.type == "cuda" if settings.graphs is None else settings.graphs
        if self.graphs and self.device.type != "cuda":
            raise RuntimeUnsupported("CUDA graphs need a CUDA device: set RuntimeSettings.graphs to False or None")
        if self.precision == "fp8" and settings.compile:
            raise RuntimeUnsupported("precision fp8 is not compiled: set RuntimeSettings.compile to False")
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self.dtype = None if self.precision == "fp32" else torch.bfloat16
        self.constants = Constants()
        self.calls = self.phases.caller = RecordedCalls(self)
        self.evicted = 0
        self._schedule_rows: list[Any] | None = None
        self._shapes: OrderedDict[tuple[Any, ...], _Shape] = OrderedDict()
        self._calibration = tuple(calibration)
        if self.precision == "fp8":
            self._check_fp8()

    def act(self, observation: Observation, *, noise: Tensor | None = None) -> ActionChunk:
        """As the model's own `act`, up to rounding, with what was imagined on the way where its phases hand it out.

        Args:
            observation: On the model's device.
            noise: [B, K, A] to start from; None draws it. Models without denoise steps need none.
        """
        # Looked at as a whole, then parted: a model that remembers has a row of its past for each sample of the batch.
        parts = self._parts(self.phases.inputs(observation, self.settings.text_tokens), noise)
        self.phases.settle()
        return parts[0] if len(parts) == 1 else joined(parts)

    def warm_up(self, observations: Sequence[Observation]) -> list[BuildReport]:
        """Build and run the programs for these observations' shapes before the first that counts; what each cost.

        For a model that remembers: of every shape that an episode which begins like this comes through. Episodes under
        way stay where they are. What is recorded besides the chunk's programs is in ``calls.held()``.
        """
        for observation in observations:
            for inputs in self.phases.rehearsal(observation, self.settings.text_tokens):
                self._parts(inputs, None)
        return self.reports()

    def reports(self) -> list[BuildReport]:
        """What every shape that is held cost."""
        return [shape.report for shape in self._shapes.values()]

    def programs(self, observation: Observation) -> tuple[Program, Program | None]:
        """The prefix and the denoise loop that serve an observation's shape."""
        shape = self._shape(self._filled(self.phases.inputs(observation, self.settings.text_tokens)))
        return shape.prefix, shape.loop

    def recordings(self, observation: Observation) -> tuple[Recording, Recording | None]:
        """Their recordings, to count on."""
        return self._shape(self._filled(self.phases.inputs(observation, self.settings.text_tokens))).recordings

    def parts(self, observation: Observation, noise: Tensor | None = None) -> dict[str, Callable[[], Any]]:
        """Each phase of the prefix, and the denoise loop, as a call on fixed inputs: for the latency table.

        The parts of the prefix are optimised apart, so together they may take longer than the whole; on a GPU they run
        as calls, not as CUDA graphs.
        """
        with torch.inference_mode():
            inputs = self._filled(self.phases.inputs(observation, self.settings.text_tokens))
            state: State = dict(inputs)
            batch = next(iter(inputs.values())).shape[0]
            calls: dict[str, Callable[[], Any]] = {}
            for phase in self.phases.prefix():
                program, outputs = self.program_of(lambda given, phase=phase: dict(phase.run(given)), (state,))
                flat = pytree.tree_leaves((state,))
                state = state | pytree.tree_unflatten(program.run(*flat), outputs)
                calls[phase.name] = lambda program=program, flat=flat: program.run(*flat)
            if self.phases.steps:
                if noise is None:
                    noise = torch.randn(batch, *self._noise_shape(), device=self.device)
                shape = self._shape(inputs)
                loop, flat = shape.loop, [noise, *shape.prefix.run(*inputs.values())]
                assert loop is not None
                calls["denoise_loop"] = lambda: loop.run(*flat)
        return calls

    def _noise_shape(self) -> tuple[int, int]:
        shape = self.model.action_noise_shape
        assert shape is not None, "a model with denoise steps says its noise's shape"
        return shape

    def _parts(self, inputs: Mapping[str, Tensor], noise: Tensor | None) -> list[ActionChunk]:
        """The chunks of a batch's parts, each no larger than the largest that programs are made for."""
        batch, most = len(next(iter(inputs.values()))), max(self.settings.batch_sizes)
        if noise is None and self.phases.steps:
            noise = torch.randn(batch, *self._noise_shape(), device=self.device)
        return [
            self._act(
                {name: tensor[start : start + most] for name, tensor in inputs.items()},
                None if noise is None else noise[start : start + most],
            )
            for start in range(0, batch, most)
        ]

    def _act(self, inputs: Mapping[str, Tensor], noise: Tensor | None) -> ActionChunk:
        batch = len(next(iter(inputs.values())))
        with torch.inference_mode():
            filled = self._filled(inputs)
            if noise is not None:
                noise = repeat_last(noise, len(next(iter(filled.values()))) - batch)
            shape = self._shape(filled)
            return chunk_of(pytree.tree_unflatten(shape.run(list(filled.values()), noise), shape.outputs), batch)

    def size_of(self, batch: int) -> int:
        """The batch that programs are made for, for one of so many samples."""
        return next((size for size in sorted(self.settings.batch_sizes) if size >= batch), batch)

    def _filled(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With the batch filled up to one of the sizes that programs are made for."""
        batch = len(next(iter(inputs.values())))
        return {name: repeat_last(tensor, self.size_of(batch) - batch) for name, tensor in inputs.items()}

    def _shape(self, inputs: Mapping[str, Tensor]) -> _Shape:
        key = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in inputs.items())
        shape = self._shapes.get(key)
        if shape is None:
            while len(self._shapes) >= max(1, self.settings.max_programs):
                self._shapes.popitem(last=False)
                self.evicted += 1
            shape = self._shapes[key] = self._build(dict(inputs))
        self._shapes.move_to_end(key)
        return shape

    def _prefix(self, inputs: State) -> State:
        state = dict(inputs)
        for phase in self.phases.prefix():
            state |= phase.run(state)
        return state

    def _rows(self, noise: Tensor, state: State) -> list[Any]:
        """Each step's rows of the schedule, in the runtime's precision; computed once for all shapes."""
        if self._schedule_rows is None:
            precision = torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype is not None)
            with torch.no_grad(), precision:
                schedule = self.phases.schedule()
                self._schedule_rows = rows_of(schedule, self.phases.steps)
                check_alike(self.phases, schedule, self._schedule_rows, noise, state)
        return self._schedule_rows

    def _whole(self, inputs: State) -> tuple[Any, ...]:
        return tensors_of(self.phases.chunk(None, self._prefix(inputs)))

    def program_of(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Program, pytree.TreeSpec]:
        """A function of nests of tensors, for inputs of these shapes, and how its flat outputs make up its result."""
        recording = self._record(function, inputs)
        optimise(recording, self.constants)
        return build(recording), recording.outputs

    def _record(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Recording:
        # Recordings are made outside of inference mode: its tensors cannot be functionalised.
        with torch.inference_mode(False), torch.no_grad():
            plain = pytree.tree_map_only(Tensor, lambda tensor: tensor.clone(), inputs)
            return record(function, plain, dtype=self.dtype)

    def _build(self, inputs: dict[str, Tensor], *, fp8: bool | None = None) -> _Shape:
        seconds: dict[str, float] = {}
        clock = _Clock(seconds)
        flat = list(inputs.values())
        noise: Tensor | None = None
        loop, used = None, []
        loop_recording: Recording | None = None
        if self.phases.steps:
            prefix = self._record(self._prefix, (inputs,))
            noise = torch.randn(flat[0].shape[0], *self._noise_shape(), device=self.device)
            with torch.inference_mode(False), torch.no_grad():
                state = pytree.tree_unflatten(prefix.module(*_plain(flat)), prefix.outputs)
                loop = record_loop(self.phases, self._rows(noise, state), noise, state, self._record)
            loop_recording = loop.unrolled()
            clock("record")
            optimise(loop_recording, self.constants)
            used = drop_unused_inputs(loop_recording)
            keep_outputs(prefix, used)
        else:
            prefix = self._record(self._whole, (inputs,))
            clock("record")
        optimise(prefix, self.constants)
        clock("optimise")
        if self.precision == "fp8" if fp8 is None else fp8:
            self._quantise(prefix, loop_recording, flat, noise)
            clock("calibrate")
        prefix_program = build(prefix)
        loop_program = None if loop_recording is None else build(loop_recording)
        first: Callable[..., list[Tensor]] = prefix_program.run
        second: Callable[..., list[Tensor]] | None = None if loop_program is None else loop_program.run
        if self.settings.compile:
            quick = compiled(prefix, [tensor.contiguous() for tensor in flat])
            # Pictures may come as views; what is compiled knows one layout.
            first = lambda *given: quick(*(tensor.contiguous() for tensor in given))  # noqa: E731
            if loop is not None:
                assert noise is not None
                second = loop.compiled(used, self.constants, [noise, *first(*flat)])
        run = self._runner(first, second, flat, noise)
        clock("compile_or_capture")
        run(flat, noise)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        clock("first_run")
        report = BuildReport(
            shape={name: tuple(tensor.shape) for name, tensor in inputs.items()},
            seconds=seconds,
            prefix_operations=prefix_program.operations,
            operations_per_step=0.0
            if loop_program is None
            else loop_program.operations_of_first_input / self.phases.steps,
            constant_bytes=prefix_program.weight_bytes + (0 if loop_program is None else loop_program.weight_bytes),
        )
        outputs = prefix.outputs if loop_recording is None else loop_recording.outputs
        return _Shape(prefix_program, loop_program, outputs, run, report, (prefix, loop_recording))

    def _runner(
        self,
        first: Callable[..., list[Tensor]],
        second: Callable[..., list[Tensor]] | None,
        flat: Sequence[Tensor],
        noise: Tensor | None,
    ) -> Callable[[Sequence[Tensor], Tensor | None], list[Tensor]]:
        if self.graphs:
            return GraphedChunk(first, second, flat, noise)
        if second is None:
            return lambda given, _: first(*given)
        return lambda given, noise: second(noise, *first(*given))

    def _quantise(
        self, prefix: Recording, loop: Recording | None, flat: Sequence[Tensor], noise: Tensor | None
    ) -> None:
        samples = [
            list(self._filled(self.phases.inputs(o, self.settings.text_tokens)).values()) for o in self._calibration
        ]
        samples = [s for s in samples if [t.shape for t in s] == [t.shape for t in flat]] or [list(flat)]
        # Interpreted: the module's own code is that of the recording before it was optimised.
        states = [Interpreted(prefix.module).run(*sample) for sample in samples]
        calibrate_fp8(prefix, samples, self.constants)
        if loop is not None:
            assert noise is not None
            calibrate_fp8(loop, [[noise, *state] for state in states], self.constants)

    def _check_fp8(self) -> None:
        if not self._calibration:
            raise RuntimeUnsupported("precision fp8 needs calibration= observations to fix its scales on")
        worst, references = 1.0, dict[Any, _Shape]()
        for observation in self._calibration:
            inputs = self._filled(self.phases.inputs(observation, self.settings.text_tokens))
            key = tuple(tuple(tensor.shape) for tensor in inputs.values())
            if key not in references:
                references[key] = self._build(dict(inputs), fp8=False)
            noise = None
            if self.phases.steps:
                noise = torch.randn(next(iter(inputs.values())).shape[0], *self._noise_shape(), device=self.device)
            reference = references[key].run(list(inputs.values()), noise)
            worst = min(worst, cosine(self._shape(inputs).run(list(inputs.values()), noise)[0], reference[0]))
        if worst < self.settings.fp8_min_cosine:
            raise RuntimeUnsupported(
                f"FP8 changes the actions: cosine {worst:.5f} to bf16 on the calibration observations, below"
                f" {self.settings.fp8_min_cosine}; use bf16"
            )


class _Clock:
    """Notes the time since its last call under a name."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies that are no inference tensors."""
    with torch.inference_mode(False):
        return [tensor.clone() for tensor in tensors]
