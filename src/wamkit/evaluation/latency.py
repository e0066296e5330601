"""How long a chunk takes: adaptive warm-up, percentiles with intervals, rounds of blocks A B B A, and a null test.

A boundary is always named. ``model``: tensors on the device to actions on the device, encoders included. ``policy``:
uint8 pictures, state and words on the host to physical actions on the host.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wamkit.errors import WamkitError

Call = Callable[[int], Any]
"""Does the work for one of a ring of observations; the number says for which."""

PERCENTILES = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How latency is measured. The defaults are those of published results; fewer calls are for a glance."""

    ring: int = 16
    """Different observations, one after the other."""
    window: int = 20
    """Calls in a window of the warm-up."""
    agree: float = 0.02
    """The warm-up ends when the medians of three windows in a row lie within this share of each other."""
    least_warm_up: int = 50
    most_warm_up: int = 400
    """Calls after which it goes on regardless; the result says so."""
    calls: int = 1000
    slow_calls: int = 200
    """Instead of ``calls`` where one takes more than half a second."""
    warm_up_s: float | None = None
    """Seconds after which a warm-up goes on no longer, settled or not; None: no bound."""
    measure_s: float | None = None
    """Seconds that the timed calls of one comparison, or of one part, may take. The number of calls is cut to it before
    the first one is timed; None: no bound."""
    resamples: int = 2000
    """Of the bootstrap."""


GLANCE = Protocol(ring=4, window=5, agree=0.1, least_warm_up=5, most_warm_up=30, calls=30, slow_calls=10, resamples=500)
"""A few seconds: for a demo's report, never for a claim."""


class LatencyError(WamkitError):
    """Something that cannot be timed as asked."""


def synchronise() -> None:
    """Wait for the accelerator, where one is in use."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(call: Call, index: int) -> float:
    """Seconds of one call, the device idle before and after."""
    synchronise()
    started = time.perf_counter()
    call(index)
    synchronise()
    return time.perf_counter() - started


def warm_up(call: Call, protocol: Protocol) -> dict[str, Any]:
    """Call until three windows agree; what that took.

    Returns:
        ``calls``, ``settled`` (whether they agreed before the limit of calls and of time), ``first_ms`` (the very first
        call) and ``medians_ms`` of the last three windows.
    """
    seconds: list[float] = []
    medians: list[float] = []
    settled = False
    limit = float("inf") if protocol.warm_up_s is None else protocol.warm_up_s
    while len(seconds) < protocol.most_warm_up and not settled and (sum(seconds) < limit or not seconds):
        seconds.append(timed(call, len(seconds) % protocol.ring))
        if len(seconds) % protocol.window == 0:
            medians.append(float(np.median(seconds[-protocol.window :])))
            last = medians[-3:]
            agreeing = len(last) == 3 and max(last) - min(last) <= protocol.agree * min(last)
            settled = agreeing and len(seconds) >= protocol.least_warm_up
    return {
        "calls": len(seconds),
        "settled": settled,
        "first_ms": 1e3 * seconds[0],
        "medians_ms": [1e3 * median for median in medians[-3:]],
    }


def calls_of(protocol: Protocol, seconds: float) -> int:
    """How many calls to time of something that takes about so long: the protocol's, or as many as its time allows."""
    wanted = protocol.slow_calls if seconds > 0.5 else protocol.calls
    if protocol.measure_s is None:
        return wanted
    return max(1, min(wanted, int(protocol.measure_s / max(seconds, 1e-9))))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """The garbage collector runs once, and then waits."""
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def measure(call: Call, count: int, protocol: Protocol) -> np.ndarray:
    """Seconds of ``count`` calls over the ring, float64; the garbage collector waits."""
    with uncollected():
        return _seconds(call, count, protocol)


def _seconds(call: Call, count: int, protocol: Protocol) -> np.ndarray:
    return np.array([timed(call, index % protocol.ring) for index in range(count)])


def bootstrap(
    seconds: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], resamples: int
) -> tuple[float, float]:
    """95 % percentile interval of a statistic over the rows of resampled calls."""
    rng = np.random.default_rng(0)
    drawn = statistic(seconds[rng.integers(0, len(seconds), size=(resamples, len(seconds)))])
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def _median(rows: np.ndarray) -> np.ndarray:
    return np.median(rows, axis=-1)


def summarise(seconds: np.ndarray, protocol: Protocol) -> dict[str, Any]:
    """Percentiles in milliseconds, with the bootstrap interval of the median.

    Raises:
        LatencyError: nothing was timed.
    """
    if len(seconds) == 0:
        raise LatencyError("no call was timed: ask for at least one")
    low, high = bootstrap(seconds, _median, protocol.resamples)
    return {
        "n": len(seconds),
        **{name: 1e3 * float(np.percentile(seconds, share)) for name, share in PERCENTILES.items()},
        "max_ms": 1e3 * float(seconds.max()),
        "mean_ms": 1e3 * float(seconds.mean()),
        "p50_ci95_ms": [1e3 * low, 1e3 * high],
    }


def ratio(first: Sequence[np.ndarray], second: Sequence[np.ndarray], resamples: int) -> dict[str, Any]:
    """Median of ``first`` over the median of ``second``: how much faster the second is.

    Args:
        first: Seconds of calls, for each round of the comparison.
        second: Likewise, of the same rounds.
        resamples: Of the bootstrap, which draws rounds and then calls within them: calls of one round share the state
            that the machine was in, so they alone would promise too much.
    """
    rng = np.random.default_rng(0)
    drawn = np.empty(resamples)
    for index in range(resamples):
        rounds = rng.integers(0, len(first), size=len(first))
        medians = [
            np.median(np.concatenate([rng.choice(side[chosen], len(side[chosen])) for chosen in rounds]))
            for side in (first, second)
        ]
        drawn[index] = medians[0] / medians[1]
    low, high = np.percentile(drawn, (2.5, 97.5))
    value = np.median(np.concatenate(list(first))) / np.median(np.concatenate(list(second)))
    return {"ratio": float(value), "ci95": [float(low), float(high)]}


ROUNDS = 4
"""Of A B B A. The null test wants an even number."""


def compare(first: Call, second: Call, protocol: Protocol) -> dict[str, Any]:
    """Two calls in `ROUNDS` rounds of blocks A B B A in one process, so that a drift of the machine meets both alike.

    Args:
        first: A, warmed up.
        second: B, warmed up.
        protocol: Of the calls.

    Returns:
        ``first`` and ``second`` (see `summarise`), ``ratio`` of their medians (A over B) with its interval; ``null``:
        the same ratio of A against itself, as free of drift as A against B is: of each two rounds the first and the
        last block of A against the two between them. Its interval must hold 1 for the ratio to mean anything.
        ``drift``: A's first half over its second half, which says how far the machine moved meanwhile; ``cut``: whether
        the protocol's time bound allowed fewer calls than it asks for.
    """
    both = timed(first, 0), timed(second, 0)
    # Of both together as many calls as fit; what one call takes decides between many and few as ever.
    asked = min(calls_of(replace(protocol, measure_s=None), one) for one in both)
    count = asked
    if protocol.measure_s is not None:
        count = min(asked, int(protocol.measure_s / max(sum(both), 1e-9)))
    share = max(1, count // (2 * ROUNDS))
    with uncollected():
        rounds = [[_seconds(call, share, protocol) for call in (first, second, second, first)] for _ in range(ROUNDS)]
    a_rounds, b_rounds = (
        [np.concatenate([blocks[index] for index in indices]) for blocks in rounds] for indices in ((0, 3), (1, 2))
    )
    pairs = list(zip(rounds[::2], rounds[1::2], strict=True))
    outer = [np.concatenate([one[0], other[3]]) for one, other in pairs]
    inner = [np.concatenate([one[3], other[0]]) for one, other in pairs]
    half = ROUNDS // 2
    early, late = (np.median(np.concatenate(part)) for part in (a_rounds[:half], a_rounds[half:]))
    return {
        "first": summarise(np.concatenate(a_rounds), protocol),
        "second": summarise(np.concatenate(b_rounds), protocol),
        **ratio(a_rounds, b_rounds, protocol.resamples),
        "null": ratio(outer, inner, protocol.resamples),
        "drift": float(early / late),
        "blocks": "ABBA" * ROUNDS,
        "cut": count < asked,
    }


def by_part(parts: Mapping[str, Callable[[], Any]], protocol: Protocol) -> dict[str, dict[str, Any]]:
    """Each part alone, warmed up, on fixed inputs."""
    measured = {}
    for name, part in parts.items():

        def call(_: int, part: Callable[[], Any] = part) -> Any:
            return part()

        warm_up(call, protocol)
        measured[name] = summarise(measure(call, calls_of(protocol, timed(call, 0)), protocol), protocol)
    return measured


def conditions(*, cameras: Sequence[str], boundary: str, **more: Any) -> dict[str, Any]:
    """What a latency holds for, as the report prints it: boundary, cameras, machine load and whatever is given."""
    import os

    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"boundary": boundary, "cameras": list(cameras), "load_average": load, **more}
