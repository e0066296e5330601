"""Batches are those of the counter: whatever the workers, the ranks, or an interruption."""

from __future__ import annotations

import itertools

import pytest
import torch

from wamkit.data.loader import WindowLoader
from wamkit.data.mixture import Mixture
from wamkit.data.windows import MixtureEntry, WindowError, WindowSpec


@pytest.fixture
def mixture(numbered, store):
    first = numbered(lengths=(12, 9, 14))
    second = numbered(lengths=(11,), fps=5.0, video_rate_hz=5.0, action_dim=2)
    entries = [MixtureEntry(source=source, frame_store=store(source)) for source in (first, second)]
    return Mixture(
        entries, WindowSpec(frame_offsets_s=(0.0, 0.3), chunk_s=0.5, resolution=(4, 6), frame_jitter_s=0.1), seed=9
    )


def content(window):
    return (window.frames["front"], window.frame_times, window.state, window.actions, window.action_valid, window.task)


def assert_same(one, other):
    for mine, theirs in zip(content(one), content(other), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs


def first(loader, count):
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 3), (4, 1)])
def test_workers_change_no_batch(mixture, workers, prefetch):
    with WindowLoader(mixture, 6, workers=workers, prefetch=prefetch) as loader:
        for mine, theirs in zip(first(loader, 12), first(WindowLoader(mixture, 6), 12), strict=True):
            assert_same(mine, theirs)


def test_ranks_share_the_batch(mixture):
    whole = first(WindowLoader(mixture, 6), 4)
    parts = [first(WindowLoader(mixture, 6, rank=rank, world_size=3), 4) for rank in range(3)]
    for batch in range(4):
        joined = torch.cat([parts[rank][batch].actions for rank in range(3)])
        assert torch.equal(joined, whole[batch].actions)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_goes_on_where_it_stood(mixture, workers):
    whole = first(WindowLoader(mixture, 5), 9)
    with WindowLoader(mixture, 5, workers=workers) as before:
        first(before, 4)
        state = before.state_dict()
    assert state == {"counter": 20}
    with WindowLoader(mixture, 5, workers=workers) as after:
        first(after, 2)  # what was read ahead must be forgotten
        after.load_state_dict(state)
        for mine, theirs in zip(first(after, 5), whole[4:], strict=True):
            assert_same(mine, theirs)


def test_start_is_a_counter(mixture):
    assert_same(next(WindowLoader(mixture, 4, start=8)), first(WindowLoader(mixture, 4), 3)[2])


def test_a_broken_batch_is_told_where_it_is_asked_for(mixture, monkeypatch):
    read = Mixture.window

    def broken(self, counters):
        if 12 in list(counters):
            raise ValueError("episode 1 is broken")
        return read(self, counters)

    monkeypatch.setattr(Mixture, "window", broken)
    with WindowLoader(mixture, 4, workers=2, prefetch=4) as loader:
        first(loader, 3)
        with pytest.raises(ValueError, match="episode 1 is broken"):
            next(loader)
        assert loader.state_dict() == {"counter": 12}


def test_batches_that_do_not_divide(mixture):
    with pytest.raises(WindowError, match="does not divide among 4 processes"):
        WindowLoader(mixture, 6, world_size=4)


def test_close_ends_the_workers(mixture):
    import threading

    loader = WindowLoader(mixture, 4, workers=2)
    next(loader)
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("windows")]
