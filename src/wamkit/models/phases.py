"""How a model's `act` falls into parts: a prefix that runs once per chunk, and denoise steps that are all alike.

This is all that a runtime needs of a model: it records these functions once for each shape and runs the recording
(`wamkit.inference.runtime`). A model that declares them computes in them what its own `act` computes; a test over the
registry holds the two together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wamkit.types import ActionChunk, Observation

State = dict[str, Any]
"""Named tensors, or nests of them (lists, tuples, named tuples, dicts), that phases hand on."""


@dataclass(frozen=True)
class Phase:
    """One part of the prefix."""

    name: str
    """For the latency table; where the model's `parts` know the part, its name there."""
    run: Callable[[State], Mapping[str, Any]]
    """From the inputs and what earlier phases added to what this one adds. Tensors only: no value of one may decide
    what is computed (no ``.item()``, no shape that depends on the data), since the function is recorded once."""


class Caller:
    """Runs what `ActPhases.inputs` must compute itself, plainly; a runtime puts one of its own in its place."""

    @property
    def dtype(self) -> torch.dtype | None:
        """Of matrix products; None: the weights'. What only they read may be handed over in it."""
        return None

    def __call__(self, name: str, function: Callable[[State], Any], given: State) -> Any:
        """``function(given)``: nests of tensors, the batch first in each, and no value of one decides anything.

        Args:
            name: Says which function it is: what is recorded under it for a shape is run for all of that shape.
            function: As `Phase.run`.
            given: What it is given; it sees nothing else but weights.
        """
        return function(given)

    def precision(self) -> AbstractContextManager[Any]:
        """For what cannot be recorded: the precision to compute it in."""
        return nullcontext()


class ActPhases(ABC):
    """A model's `act` as `inputs`, the `prefix` in order, ``steps`` times `step`, and `chunk`.

    A model that remembers says in `inputs` where its episodes have come, and in `settle` that this now holds. What it
    must compute for that goes through `caller`, in functions of tensors as far as it can.
    """

    caller: Caller = Caller()

    @property
    @abstractmethod
    def steps(self) -> int:
        """How many denoise steps lead from noise to actions; 0 where the prefix decodes the actions itself."""

    @abstractmethod
    def inputs(self, observation: Observation, text_tokens: tuple[int, ...] = ()) -> dict[str, Tensor]:
        """The observation as tensors: all that looks at Python values, such as words, happens here.

        Args:
            observation: On the model's device.
            text_tokens: Lengths to which instructions are padded (the first that is long enough), so that few shapes
                occur; a longer instruction keeps its own length. Padding changes no result beyond rounding.

        Returns:
            Named tensors, a row for each sample in all of them.
        """

    def settle(self) -> None:  # noqa: B027  # without a memory there is nothing to settle
        """The chunk of the last `inputs` is there: a model that remembers goes on from what these told it."""

    def rehearsal(self, observation: Observation, text_tokens: tuple[int, ...] = ()) -> Iterator[dict[str, Tensor]]:
        """Inputs of every shape that episodes like this come through: what a runtime prepares before they begin."""
        yield self.inputs(observation, text_tokens)

    @abstractmethod
    def prefix(self) -> tuple[Phase, ...]:
        """The phases that run once per chunk; each sees the inputs and what the earlier ones added."""

    def schedule(self) -> Any:
        """What the steps need that depends on weights alone, such as the modulations of all noise levels.

        Nests of tensors with a row for each step (and one more where a step needs the following row too); a runtime
        computes it once and for all.
        """
        return ()

    def start(self, noise: Tensor, state: State) -> Any:
        """What the first step starts from: the noise, or a nest of tensors where more than actions is denoised."""
        return noise

    def step(self, x: Any, step: int, schedule: Any, state: State) -> Any:
        """One denoise step, to what it was given; keys and values of what the prefix saw come from ``state``.

        Of actions alone it is [B, K, A] -> [B, K, A]. Steps are alike: a step's number serves to index the tensors of
        ``schedule``, with itself or with the following number, and for nothing else, since a runtime records one step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no denoise steps")

    @abstractmethod
    def chunk(self, x: Any, state: State) -> ActionChunk:
        """The chunk in normalised units, from the last step's result (None where there are no steps)."""

    def act(self, observation: Observation, noise: Tensor | None) -> ActionChunk:
        """All of it, one after the other: what a runtime must equal, and what must equal the model's own `act`.

        Args:
            observation: On the model's device.
            noise: [B, K, A]; None where there are no denoise steps.
        """
        state: State = dict(self.inputs(observation))
        for phase in self.prefix():
            state |= phase.run(state)
        chunk = self.chunk(self.denoise(noise, state) if noise is not None and self.steps else None, state)
        self.settle()
        return chunk

    def denoise(self, noise: Tensor, state: State) -> Any:
        """All steps, from noise to the last step's result."""
        schedule, x = self.schedule(), self.start(noise, state)
        for step in range(self.steps):
            x = self.step(x, step, schedule, state)
        return x
