"""One client's connection: what it may still send, what is waiting, what is remembered of it."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Any

END = object()
"""Closes an inbox."""


@dataclass
class Session:
    """The state of one session; nothing in it is shared with another."""

    number: int
    peer: str
    memory: Any
    """The policy's, see `wamkit.serving.served.Served.remember`."""
    pending: int
    """Most requests that are read ahead of their answers."""
    inbox: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    slots: asyncio.Semaphore = field(init=False)
    reader: asyncio.Task[None] | None = None
    handler: asyncio.Task[None] | None = None
    checked: bool = False
    """Whether an observation has passed the contract check."""
    accepted: int = 0
    answered: int = 0
    refused: int = 0
    previous_total_s: float | None = None
    began: float | None = None
    """When the episode's first observation came, by the server's clock."""

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.pending)

    def accept(self, message: str | bytes) -> None:
        """Take responsibility for a message: from here on it is answered, or its client is gone."""
        self.accepted += 1
        self.inbox.put_nowait(message)

    def begin_episode(self, memory: Any) -> None:
        """Forget the one before."""
        self.memory, self.began = memory, None

    def seconds(self, now: float) -> float:
        """Since the episode's first observation, which this may be."""
        if self.began is None:
            self.began = now
        return now - self.began

    def seed(self, server_seed: int) -> int:
        """The seed of the next sample: of the server's seed, the session and how many it has had answered."""
        text = f"{server_seed}/{self.number}/{self.answered}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
