"""Randomness by counter: draw k is a function of (seed, k) alone, so any worker, rank or resumed run computes it.

Integer hashing instead of a library's generator: its streams may change with a version, a resumed run must not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

BLOCK = 4096
"""Draws of one block of the schedule: every block holds each data set exactly ``quota`` times."""

_ROUNDS = 6
_Words = np.ndarray | int


def mix(*words: _Words) -> np.ndarray:
    """Hashes integers to 64 bits, elementwise over broadcast arrays (the finaliser of splitmix64, chained).

    Args:
        words: Integers or integer arrays.

    Returns:
        uint64 array of the broadcast shape.
    """
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for word in words:
            state = np.asarray(word).astype(np.uint64) + (state ^ np.uint64(0x9E3779B97F4A7C15))
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state)


def uniform(*words: _Words) -> np.ndarray:
    """As :func:`mix`, mapped to float64 in [0, 1)."""
    return (mix(*words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permuted(index: np.ndarray, size: int, *key: _Words) -> np.ndarray:
    """A pseudo-random permutation of ``range(size)``, evaluated at some places without writing it out.

    A Feistel network over the next power of four, walked along its cycle until it falls inside the range.

    Args:
        index: int64 ``[n]`` in ``range(size)``.
        size: What is permuted.
        key: Integers or arrays ``[n]``: each element may be permuted under a key of its own.

    Returns:
        int64 ``[n]``.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.broadcast_to(mix(*key), index.shape)
    value = index.astype(np.uint64)
    outside = np.ones(index.shape, bool)
    while outside.any():
        left, right, own = value[outside] >> half, value[outside] & mask, keys[outside]
        for round_ in range(_ROUNDS):
            left, right = right, left ^ (mix(own, round_, right) & mask)
        value[outside] = (left << half) | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)


def quotas(weights: Sequence[float]) -> np.ndarray:
    """Draws of each data set in a block: weights rounded to 1 / BLOCK by largest remainders, at least one each.

    Args:
        weights: Positive numbers.

    Returns:
        int64 ``[len(weights)]`` that sum to :data:`BLOCK`.
    """
    exact = np.asarray(weights, np.float64)
    exact = exact / exact.sum() * BLOCK
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while counts.sum() != BLOCK:
        gap = exact - counts
        if counts.sum() < BLOCK:
            counts[int(np.argmax(gap))] += 1
        else:
            counts[int(np.argmin(np.where(counts > 1, gap, np.inf)))] -= 1
    return counts


class Schedule:
    """Which data set each draw takes, and which of that data set's own draws it is.

    Args:
        weights: How often each is drawn, relative to the others.
        seed: Of the order within blocks.
    """

    def __init__(self, weights: Sequence[float], seed: int):
        self.quotas = quotas(weights)
        self._seed = seed
        self._labels = np.repeat(np.arange(len(self.quotas)), self.quotas)
        self._block = lru_cache(maxsize=16)(self._make_block)

    def locate(self, counters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each global draw: the data set, and how many draws that data set had before.

        Args:
            counters: int64 ``[n]``, not negative.

        Returns:
            (data set int64 ``[n]``, number of the draw within it int64 ``[n]``).
        """
        counters = np.asarray(counters, np.int64)
        if len(self.quotas) == 1:
            return np.zeros_like(counters), counters
        blocks, places = np.divmod(counters, BLOCK)
        labels, ranks = np.empty_like(counters), np.empty_like(counters)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            block_labels, block_ranks = self._block(block)
            labels[here], ranks[here] = block_labels[places[here]], block_ranks[places[here]]
        return labels, blocks * self.quotas[labels] + ranks

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        labels = self._labels[np.argsort(mix(self._seed, block, np.arange(BLOCK)), kind="stable")]
        ranks = np.empty_like(labels)
        for label, quota in enumerate(self.quotas.tolist()):
            ranks[labels == label] = np.arange(quota)
        return labels, ranks
