"""What is asked of the websockets library beyond its everyday interface; tests/serving pins each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.protocol import State


class SpeakingConnection(ServerConnection):
    """A connection that says in words that a message is too large, before the library closes it for that."""

    limit = 0
    """Bytes of the largest message."""

    def __init__(self, protocol: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(protocol, *arguments, **options)
        fail = protocol.fail

        def tell_and_fail(code: int, reason: str = "") -> None:
            if code == CloseCode.MESSAGE_TOO_BIG and protocol.state is State.OPEN:
                said = f"the message is larger than the {self.limit} bytes that this server takes:"
                protocol.send_text(f"{said} send smaller pictures, or JPEG.".encode())
            fail(code, reason)

        protocol.fail = tell_and_fail


def speaking(limit: int) -> type[ServerConnection]:
    """The class of connections of a server whose messages hold at most ``limit`` bytes."""
    return type("SpeakingConnection", (SpeakingConnection,), {"limit": limit})


async def arrived(connection: ServerConnection) -> AsyncIterator[str | bytes]:
    """The messages that have arrived whole and were not read yet; waits for none."""
    try:
        while True:
            async with asyncio.timeout(0):  # a message that is there is taken before any timeout can strike
                message = await connection.recv()
            yield message
    except (TimeoutError, ConnectionClosed):
        return


def peer(connection: ServerConnection) -> str:
    """Address and port of the other end."""
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "unknown"
