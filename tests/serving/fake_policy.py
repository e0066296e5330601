"""Policies for the server's tests that need no torch, and a server in a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from wamkit.serving.batching import Item
from wamkit.serving.config import ServerConfig
from wamkit.serving.requests import RequestFormat
from wamkit.serving.server import PolicyServer
from wamkit.serving.wire import pack, unpack

SIZE = (6, 8)
CHUNK, WIDTH = 5, 3


@dataclass
class FakePolicy:
    """Its actions tell whose observation they answer: [state 0, mean of the picture, seed or plan] in each row."""

    seconds: float = 0.0
    """What a batch takes."""
    batches: list[int] = field(default_factory=list)
    request_format: RequestFormat = field(
        default_factory=lambda: RequestFormat(
            cameras={"front": SIZE}, state_names=("who", "count"), action_dim=WIDTH, inpaints=True
        )
    )

    def metadata(self) -> dict[str, Any]:
        return {
            "model": "fake",
            "action": {"shape": [CHUNK, WIDTH], "dtype": "float32", "normalised": False},
            "rate_hz": 10.0,
            "chunk": {"length": CHUNK, "seconds": 0.5, "inpaints": True},
        }

    def violations(self, observation: Mapping[str, Any], robot: Mapping[str, Any]) -> list[str]:
        return ["rate: 10 Hz, not another."] if robot.get("rate_hz", 10.0) != 10.0 else []

    def remember(self) -> list[float]:
        return []

    def act(self, items: Sequence[Item]) -> list[np.ndarray]:
        self.batches.append(len(items))
        if self.seconds:
            time.sleep(self.seconds)
        chunks = []
        for item in items:
            who, count = item.observation["observation.state"]
            task = item.observation["task"]
            if task == "explode":
                raise ZeroDivisionError("the policy's own fault")
            item.memory.append(float(count))
            if task == "remember":
                chunk = np.full((CHUNK, WIDTH), len(item.memory))
            elif task == "nan":
                chunk = np.full((CHUNK, WIDTH), np.nan)
            elif item.previous is not None:
                chunk = np.full((CHUNK, WIDTH), item.previous.sum() + 1000 * item.delay)
            else:
                mean = item.observation["observation.images.front"].mean()
                chunk = np.tile(np.array([who + count / 1e4, mean, item.seed % 1009]), (CHUNK, 1))
            chunks.append(chunk.astype(np.float32))
        return chunks


def observation(who: float = 1.0, count: float = 0.0, *, gray: int = 7, task: str = "go") -> dict[str, Any]:
    """One for `FakePolicy`, under openpi's names."""
    return {
        "observation/images/front": np.full((*SIZE, 3), gray, np.uint8),
        "observation/state": np.array([who, count], np.float32),
        "prompt": task,
    }


@dataclass
class Running:
    """A server in a thread of this process."""

    server: PolicyServer
    port: int
    thread: threading.Thread

    @property
    def address(self) -> str:
        scheme = "ws" if self.server.config.certificate is None else "wss"
        return f"{scheme}://localhost:{self.port}"

    def counted(self, name: str) -> float:
        return getattr(self.server.metrics, name).total

    def accounts(self) -> dict[str, int]:
        """The counts of requests, once each accepted one has its fate: a reply is counted after it was sent."""
        oversized = self.server.metrics.refused.values.get("oversized", 0)  # these were never accepted
        deadline = time.monotonic() + 10
        while True:
            counts = {name: int(self.counted(name)) for name in ("accepted", "answered", "refused", "undelivered")}
            fates = counts["answered"] + counts["refused"] - oversized + counts["undelivered"]
            if counts["accepted"] == fates:
                return counts
            assert time.monotonic() < deadline, counts
            time.sleep(0.01)


@contextmanager
def running(served: Any = None, *, live: Any = None, **options: Any) -> Iterator[Running]:
    """A server on a free port, drained at the end."""
    config = ServerConfig(**{"port": 0, "drain_timeout_s": 10.0} | options)
    server = PolicyServer(served or FakePolicy(), config, live)
    ports: list[int] = []
    started = threading.Event()
    failed: list[BaseException] = []

    def ready(port: int) -> None:
        ports.append(port)
        started.set()

    def main() -> None:
        try:
            asyncio.run(server.run(ready))
        except BaseException as error:
            failed.append(error)
            started.set()

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    assert started.wait(10)
    if failed:
        raise failed[0]
    try:
        yield Running(server, ports[0], thread)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert not failed, failed


class Talk:
    """A bare session: frames as they are."""

    def __init__(self, running: Running, **options: Any) -> None:
        from websockets.sync.client import connect

        self.connection = connect(running.address, compression=None, max_size=None, proxy=None, **options)
        self.metadata = unpack(self.connection.recv(timeout=30))

    def send(self, message: Any) -> None:
        self.connection.send(message if isinstance(message, bytes | str) else pack(message))

    def receive(self) -> Any:
        """A reply's content, or the text of an error frame."""
        reply = self.connection.recv(timeout=30)
        return reply if isinstance(reply, str) else unpack(reply)

    def ask(self, message: Any) -> Any:
        self.send(message)
        return self.receive()

    def closed(self) -> int:
        """The code with which the server ended the session, which it must."""
        from websockets.exceptions import ConnectionClosed

        with pytest.raises(ConnectionClosed):
            self.connection.recv(timeout=30)
        assert self.connection.close_code is not None
        return self.connection.close_code

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
