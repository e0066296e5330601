"""Batches of windows in the background, in an order that no number of workers changes.

Workers are threads: a batch is a few gathers from memory-mapped files, which release the interpreter's lock, and
processes would pay for sending frames (measured in ``benchmarks/loader.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wamkit.data.mixture import Mixture
from wamkit.data.windows import WindowError
from wamkit.types import Window


class WindowLoader:
    """Endless batches of a mixture.

    Batch i of a run with global batch size B holds the draws [i*B, (i+1)*B); a rank gets its contiguous share.

    Args:
        mixture: What is drawn from.
        batch_size: B, over all ranks.
        start: Counter of the first draw.
        rank: This process.
        world_size: How many processes there are.
        workers: Background threads; 0 reads in the foreground.
        prefetch: Batches read ahead by each worker.
        pin_memory: Page-locked tensors, for asynchronous copies to a GPU.

    Raises:
        WindowError: If the batch does not divide among the ranks.
    """

    def __init__(
        self,
        mixture: Mixture,
        batch_size: int,
        *,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
    ):
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise WindowError(
                f"A batch of {batch_size} does not divide among {world_size} processes (this one is {rank}): choose a "
                "multiple."
            )
        self.mixture, self.batch_size = mixture, batch_size
        self.counter = start
        """The first draw of the next batch."""
        self._share, self._rank = batch_size // world_size, rank
        self._pin = pin_memory
        self._ahead = workers * max(1, prefetch)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="windows") if workers > 0 else None
        self._pending: deque[tuple[int, Future[Window]]] = deque()

    def __iter__(self) -> Iterator[Window]:
        return self

    def __next__(self) -> Window:
        window = self._read(self.counter) if self._pool is None else self._next_from(self._pool)
        self.counter += self.batch_size
        return window

    def state_dict(self) -> dict[str, Any]:
        """Where it stands: what was handed out counts, what was read ahead does not."""
        return {"counter": self.counter}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self.counter = int(state["counter"])
        self._drop_pending()

    def close(self) -> None:
        """Stops the workers."""
        self._drop_pending()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> WindowLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _next_from(self, pool: ThreadPoolExecutor) -> Window:
        if self._pending and self._pending[0][0] != self.counter:
            self._drop_pending()
        behind = self._pending[-1][0] + self.batch_size if self._pending else self.counter
        while len(self._pending) < self._ahead + 1:
            self._pending.append((behind, pool.submit(self._read, behind)))
            behind += self.batch_size
        _, future = self._pending.popleft()
        return future.result()

    def _read(self, counter: int) -> Window:
        first = counter + self._rank * self._share
        window = self.mixture.window(np.arange(first, first + self._share))
        return _pinned(window) if self._pin else window

    def _drop_pending(self) -> None:
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()


def _pinned(window: Window) -> Window:
    def pin(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.pin_memory()
        return {name: item.pin_memory() for name, item in value.items()} if isinstance(value, Mapping) else value

    return replace(window, **{name: pin(value) for name, value in vars(window).items()})
