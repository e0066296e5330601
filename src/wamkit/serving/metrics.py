"""Counters, gauges and histograms in Prometheus' text format: the little that a policy server needs of it.

Written from one thread, the event loop's, so nothing is locked.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Bounds of a histogram of durations: from a small model on a GPU to a large one on a CPU."""
SIZES = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Counter:
    """A number that only grows, one for each value of its label where it has one."""

    name: str
    help: str
    label: str = ""
    values: dict[str, float] = field(default_factory=dict)

    def add(self, amount: float = 1, label: str = "") -> None:
        """Count."""
        self.values[label] = self.values.get(label, 0) + amount

    @property
    def total(self) -> float:
        """Over all labels."""
        return sum(self.values.values())

    def lines(self) -> list[str]:
        """The exposition."""
        values = self.values if self.label else {"": self.total}
        rows = [f"{self.name}{_labels(self.label, label)} {value:.17g}" for label, value in sorted(values.items())]
        return _head(self.name, self.help, "counter") + rows


@dataclass
class Gauge:
    """A number that is read when it is asked for."""

    name: str
    help: str
    read: Callable[[], float]

    def lines(self) -> list[str]:
        """The exposition."""
        return [*_head(self.name, self.help, "gauge"), f"{self.name} {self.read():.17g}"]


@dataclass
class Histogram:
    """How often a quantity fell below each bound, and its sum."""

    name: str
    help: str
    bounds: Sequence[float] = SECONDS
    sum: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value; a value on a bound counts below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self) -> list[str]:
        """The exposition."""
        rows, below = _head(self.name, self.help, "histogram"), 0
        for bound, count in zip([*(f"{bound:g}" for bound in self.bounds), "+Inf"], self.counts, strict=True):
            below += count
            rows.append(f'{self.name}_bucket{{le="{bound}"}} {below}')
        return [*rows, f"{self.name}_sum {self.sum:.17g}", f"{self.name}_count {below}"]


class ServerMetrics:
    """Everything that `/metrics` says of a policy server.

    Args:
        sessions: Reads how many clients are connected.
        draining: Reads whether the server is shutting down.
    """

    def __init__(self, sessions: Callable[[], int], draining: Callable[[], bool]) -> None:
        self.sessions = Counter("wamkit_sessions_total", "Sessions begun.")
        self.accepted = Counter("wamkit_requests_accepted_total", "Requests read whole from a client.")
        self.answered = Counter("wamkit_requests_answered_total", "Requests answered with actions.")
        self.refused = Counter("wamkit_requests_refused_total", "Requests answered with an error.", "reason")
        self.undelivered = Counter("wamkit_requests_undelivered_total", "Requests whose client had gone.")
        self.rejected = Counter("wamkit_connections_rejected_total", "Connections refused.", "reason")
        self.received = Counter("wamkit_received_bytes_total", "Bytes of requests.")
        self.sent = Counter("wamkit_sent_bytes_total", "Bytes of replies.")
        self.queue = Histogram("wamkit_queue_seconds", "Time that a request waited for the policy.")
        self.infer = Histogram("wamkit_infer_seconds", "Time that a batch took.")
        self.total = Histogram("wamkit_request_seconds", "Time from a whole request to its reply.")
        self.batch = Histogram("wamkit_batch_size", "Requests in a batch.", SIZES)
        self._gauges = (
            Gauge("wamkit_sessions", "Clients connected now.", sessions),
            Gauge("wamkit_draining", "1 while the server is shutting down.", draining),
            Gauge("process_resident_memory_bytes", "Memory of this process.", resident_bytes),
        )

    def text(self) -> str:
        """All of them, as Prometheus reads it."""
        entries = [entry for entry in vars(self).values() if isinstance(entry, Counter | Histogram)]
        return "\n".join(line for entry in [*entries, *self._gauges] for line in entry.lines()) + "\n"


def resident_bytes() -> float:
    """Memory of this process in bytes; NaN where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return float("nan")


def _head(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _labels(name: str, value: str) -> str:
    if not name:
        return ""
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{{{name}="{escaped}"}}'
