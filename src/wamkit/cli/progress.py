"""How long work shows that it lives: a rich bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[..., None]
"""``report(done, total, note="")``: how many units are done, of how many (None: unknown), and what to add."""

LOG_INTERVAL_S = 15.0


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """Shows progress on standard error while the block runs.

    Args:
        title: What is being done, such as ``"recording"``.

    Yields:
        A function to call as work advances.
    """
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, note="")

        def report(done: float, total: float | None = None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield report


def _lines(title: str) -> Report:
    started = last = time.monotonic()

    def report(done: float, total: float | None = None, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LOG_INTERVAL_S and done != total:
            return
        last = now
        amount = f"{done:g}" if total is None else f"{done:g}/{total:g}"
        print(f"{title}: {amount} after {now - started:.0f} s {note}".rstrip(), file=sys.stderr, flush=True)

    return report
