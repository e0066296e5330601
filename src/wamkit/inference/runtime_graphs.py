"""CUDA graphs: one for the prefix, one for the whole denoise loop, replayed on fixed memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wamkit.inference.runtime_record import RuntimeUnsupported

WARM_UP = 3
"""Runs before the capture: libraries choose their kernels and take their workspaces outside of it."""


class GraphedChunk:
    """Prefix and denoise loop of one shape as two CUDA graphs that share one pool of memory.

    Args:
        prefix: From the inputs to what the loop reads.
        loop: From the noise and what the prefix returned to the results; None where there are no denoise steps (the
            prefix then returns the results).
        inputs: Tensors of the shapes to capture for, on the device.
        noise: The same for the noise.

    Raises:
        RuntimeUnsupported: The inputs are not on a CUDA device.
    """

    def __init__(
        self,
        prefix: Callable[..., list[Tensor]],
        loop: Callable[..., list[Tensor]] | None,
        inputs: Sequence[Tensor],
        noise: Tensor | None,
    ) -> None:
        if not inputs or any(not tensor.is_cuda for tensor in inputs):
            raise RuntimeUnsupported("CUDA graphs need a CUDA device: set RuntimeSettings.graphs to False or None")
        self.inputs = [tensor.clone() for tensor in inputs]
        self.noise = None if noise is None else noise.clone()
        self._prefix_graph, self._loop_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                state = prefix(*self.inputs)
                if loop is not None:
                    loop(self.noise, *state)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self._prefix_graph, pool=pool):
            # The second graph reads these where the first one writes them, so they must outlive the capture.
            self._state = prefix(*self.inputs)
        self.results = self._state
        if loop is not None:
            with torch.cuda.graph(self._loop_graph, pool=pool):
                self.results = loop(self.noise, *self._state)
        self._has_loop = loop is not None

    def __call__(self, inputs: Sequence[Tensor], noise: Tensor | None) -> list[Tensor]:
        """Copy the inputs in, replay both graphs, copy the results out (the next replay overwrites them)."""
        for fixed, given in zip(self.inputs, inputs, strict=True):
            fixed.copy_(given, non_blocking=True)
        if self.noise is not None and noise is not None:
            self.noise.copy_(noise, non_blocking=True)
        self._prefix_graph.replay()
        if self._has_loop:
            self._loop_graph.replay()
        return [tensor.clone() for tensor in self.results]
