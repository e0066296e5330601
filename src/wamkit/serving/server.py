"""The policy server: openpi's websocket protocol, many sessions, one policy.

The first frame of a session is the metadata. Each request is a packed dictionary in one binary frame, and is answered
in order by one binary frame with ``actions``; what is wrong with a request is said in a text frame, after which the
session is closed with 1011, as openpi does. No session can disturb another: each has its own reader, its own memory and
its own error. ``GET /healthz``, ``GET /metrics`` and, where it was asked for, ``GET /monitor`` are answered on the same
port.

Shutting down, the server answers every request that has arrived whole and closes with 1001: what has no reply by then
was not begun, so a client may send it elsewhere.
"""

from __future__ import annotations

import asyncio
import http
import logging
import secrets
import signal
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from wamkit import __version__
from wamkit.errors import WamkitError
from wamkit.serving import live_page
from wamkit.serving.batching import Answer, Batcher, InferenceError, Item
from wamkit.serving.config import ServerConfig, ServerError
from wamkit.serving.connection import arrived, peer, speaking
from wamkit.serving.doors import may_enter, turned_away
from wamkit.serving.logs import LOGGER, log
from wamkit.serving.metrics import CONTENT_TYPE, ServerMetrics
from wamkit.serving.requests import Request, holds_jpeg
from wamkit.serving.served import Served
from wamkit.serving.session import END, Session
from wamkit.serving.wire import WireError, decode_jpeg, encode_jpeg, pack, unpack

CONVENTIONS = {
    "images": "uint8 [H, W, 3], RGB, upright, or the bytes of a JPEG of that size",
    "state": "physical units; normalised on the server",
    "actions": "physical units; un-normalised on the server",
    "time": "action i takes effect times[i] seconds after the observation",
    "names": "observation/...; LeRobot's observation.images.<camera>, observation.state and task mean the same",
    "episodes": "reset=True in a request begins one; a new connection does so too",
    "executed": "optional: what was executed since the session's last request, [n, A] in physical units; 'takes' says "
    "whether this policy remembers it",
    "observed": "optional: pictures [T, H, W, 3] of each camera since then, picture_interval_s apart, oldest first",
    "errors": "a text frame, then close 1011; 1001 means that what has no reply was not begun",
}


class ContractError(WamkitError):
    """A session's first observation does not fit what the policy was trained on."""


class PolicyServer:
    """Serves one policy.

    Args:
        served: The policy.
        config: How.
        live: What ``GET /monitor`` shows; None: no such page.
    """

    def __init__(self, served: Served, config: ServerConfig | None = None, live: live_page.Live | None = None) -> None:
        self.config = config or ServerConfig()
        self._live = live
        self._served, self._format = served, served.request_format
        facts = served.metadata()
        self._rate_hz = float(facts["rate_hz"])
        self.max_message_bytes = self.config.max_message_bytes or 2 * self._format.raw_bytes() + (1 << 20)
        self.metadata: dict[str, Any] = {
            "server": "wamkit",
            "version": __version__,
            "protocol": "openpi",
            "observation": self._format.metadata(),
            **facts,
            "conventions": CONVENTIONS,
            "max_message_bytes": self.max_message_bytes,
        }
        self._greeting = pack(self.metadata)
        # Pillow is imported at its first use, which should not be a client's.
        decode_jpeg(encode_jpeg(np.zeros((8, 8, 3), np.uint8)), (8, 8))
        self._sessions: dict[int, tuple[Session, ServerConnection]] = {}
        self._draining = False
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.metrics = ServerMetrics(lambda: len(self._sessions), lambda: self._draining)
        self._batcher: Batcher | None = None
        self._aside = ThreadPoolExecutor(2, "wamkit-decode")

    # Life

    async def run(self, ready: Callable[[int], None] | None = None) -> None:
        """Serve until `stop`, then finish what was accepted.

        Args:
            ready: Called with the port once connections are taken.

        Raises:
            ServerError: The port is taken, or the certificate cannot be read.
        """
        config, tls = self.config, self.config.tls()
        self._loop = asyncio.get_running_loop()
        self._batcher = Batcher(self._served.act, max_batch=config.max_batch, wait_s=config.batch_wait_s)
        logger = LOGGER.getChild("websockets")
        logger.setLevel(logging.WARNING)
        try:
            server = await serve(
                self._session,
                config.host,
                config.port,
                ssl=tls,
                compression=None,
                process_request=self._http,
                create_connection=speaking(self.max_message_bytes),
                max_size=self.max_message_bytes,
                max_queue=config.max_pending,
                ping_interval=config.ping_s,
                ping_timeout=3 * config.ping_s,
                close_timeout=5,
                logger=logger,
            )
        except OSError as error:
            self._batcher.close(1.0)
            raise ServerError(f"cannot listen on {config.host}:{config.port}: {error.strerror or error}.") from error
        port = next(iter(server.sockets)).getsockname()[1]
        if config.token is None and not config.local_only:
            log("open_to_all", level=logging.WARNING, advice="whoever reaches this port can use it: set a token")
        encrypted, guarded = config.certificate is not None, config.token is not None
        log("listening", host=config.host, port=port, tls=encrypted, token=guarded)
        if ready is not None:
            ready(port)
        try:
            await self._stop.wait()
        finally:
            await self._drain(server)

    def stop(self) -> None:
        """Ask the server to finish; may be called from any thread, and again."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    async def _drain(self, server: Server) -> None:
        """Take nothing new, answer what has arrived, close."""
        self._draining = True
        log("draining", sessions=len(self._sessions), timeout_s=self.config.drain_timeout_s)
        server.close(close_connections=False)
        readers = [session.reader for session, _ in self._sessions.values() if session.reader is not None]
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for session, connection in list(self._sessions.values()):
            async for message in arrived(connection):
                self._accept(session, message)
            session.inbox.put_nowait(END)
        closed = asyncio.ensure_future(server.wait_closed())
        _, late = await asyncio.wait([closed], timeout=self.config.drain_timeout_s)
        if late:
            log("drain_timeout", level=logging.ERROR, sessions=len(self._sessions))
            server.close()
            for session, connection in list(self._sessions.values()):
                connection.transport.abort()
                if session.handler is not None:
                    session.handler.cancel()  # it waits for a policy that may never answer
            await closed
        if self._batcher is not None:
            await asyncio.to_thread(self._batcher.close, 0.1 if late else None)
        self._aside.shutdown(wait=False, cancel_futures=True)
        counts = self.metrics
        log(
            "stopped",
            accepted=int(counts.accepted.total),
            answered=int(counts.answered.total),
            refused=int(counts.refused.total),
            undelivered=int(counts.undelivered.total),
        )

    # HTTP

    def _http(
        self, connection: ServerConnection, request: HttpRequest
    ) -> Response | Coroutine[Any, Any, Response] | None:
        """Answer health, metrics and the live page, turn away who may not enter; None lets the handshake go on."""
        path, _, query = request.path.partition("?")
        if path == "/healthz":
            well = not self._draining and self._batcher is not None and self._batcher.alive
            status = http.HTTPStatus.OK if well else http.HTTPStatus.SERVICE_UNAVAILABLE
            return connection.respond(status, "OK\n" if well else "not serving\n")
        page = live_page.asks_for_page(path)
        if not may_enter(request, self.config.token):
            self.metrics.rejected.add(label="token")
            log("connection_rejected", level=logging.WARNING, peer=peer(connection), reason="token")
            return turned_away(connection, browser=page)
        if page:
            return live_page.off() if self._live is None else self._beside(live_page.answer, self._live, path, query)
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self.metrics.text())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if len(self._sessions) >= self.config.max_sessions or self._draining:
            self.metrics.rejected.add(label="draining" if self._draining else "full")
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "the server takes no further session\n")
        return None

    # Sessions

    async def _session(self, connection: ServerConnection) -> None:
        """One client, from its metadata to its close."""
        number = int(self.metrics.sessions.total) + 1
        self.metrics.sessions.add()
        session = Session(number, peer(connection), self._served.remember(), self.config.max_pending)
        session.handler = asyncio.current_task()
        self._sessions[number] = session, connection
        log("session_opened", session=number, peer=session.peer)
        code, reason = CloseCode.NORMAL_CLOSURE, ""
        try:
            await connection.send(self._greeting)
            if self._draining:
                session.inbox.put_nowait(END)
            else:
                session.reader = asyncio.create_task(self._read(session, connection))
            code, reason = await self._answer_all(session, connection)
        except ConnectionClosed:
            pass
        finally:
            if session.reader is not None:
                session.reader.cancel()
            await connection.close(code, reason)
            self._account(session)
            del self._sessions[number]
            log(
                "session_closed",
                session=number,
                accepted=session.accepted,
                answered=session.answered,
                code=connection.close_code,
                reason=connection.close_reason,
            )

    def _accept(self, session: Session, message: str | bytes) -> None:
        self.metrics.accepted.add()
        self.metrics.received.add(len(message))
        session.accept(message)

    async def _read(self, session: Session, connection: ServerConnection) -> None:
        """Move messages into the session's inbox, a few ahead of their answers; the rest wait in the client."""
        try:
            while True:
                await session.slots.acquire()
                self._accept(session, await connection.recv())
        except ConnectionClosed as closed:
            if closed.sent is not None and closed.sent.code == CloseCode.MESSAGE_TOO_BIG and not closed.rcvd_then_sent:
                self.metrics.refused.add(label="oversized")
                log("request_refused", level=logging.WARNING, session=session.number, reason="oversized")
            session.inbox.put_nowait(END)

    async def _answer_all(self, session: Session, connection: ServerConnection) -> tuple[CloseCode, str]:
        """Answer message after message; returns how to close."""
        while (message := await session.inbox.get()) is not END:
            try:
                reply = await self._reply(session, message)
            except WamkitError as error:
                return await self._refuse(session, connection, _reason(error), str(error))
            except Exception as error:
                mark = secrets.token_hex(4)
                log("request_failed", level=logging.ERROR, exception=error, session=session.number, mark=mark)
                said = f"{type(error).__name__}: {error} (not foreseen: the server's log has the traceback at {mark})"
                return await self._refuse(session, connection, "internal", said)
            await connection.send(reply)
            session.answered += 1
            session.slots.release()
            self.metrics.answered.add()
            self.metrics.sent.add(len(reply))
        if self._draining:
            return CloseCode.GOING_AWAY, "the server is shutting down"
        return CloseCode.NORMAL_CLOSURE, ""

    async def _refuse(
        self, session: Session, connection: ServerConnection, reason: str, text: str
    ) -> tuple[CloseCode, str]:
        self.metrics.refused.add(label=reason)
        log("request_refused", level=logging.WARNING, session=session.number, reason=reason, said=text)
        session.refused += 1
        await connection.send(text)
        return CloseCode.INTERNAL_ERROR, "the frame before says why"

    async def _reply(self, session: Session, message: str | bytes) -> bytes:
        """The answer to one message.

        Raises:
            WireError: It is no request.
            ContractError: The robot is not what the policy was trained on.
            InferenceError: The policy gave no usable actions.
        """
        started = time.perf_counter()
        if isinstance(message, str):
            raise WireError("a request is a binary frame; this was text.")
        content = unpack(message)
        if holds_jpeg(content):
            request = await self._beside(self._format.read, content)
        else:
            request = self._format.read(content)
        if session.began is None and (request.executed is not None or request.observed):
            raise WireError(
                "'executed' and 'observed' follow on an observation, and this episode's first is still to come."
            )
        if request.reset:
            session.begin_episode(self._served.remember())
        if not session.checked or request.robot is not None:
            await self._check(request)
            session.checked = True
        assert self._batcher is not None
        elapsed = session.seconds(started)
        seed = session.seed(self.config.seed) if request.seed is None else request.seed
        item = Item(
            observation=request.observation,
            seed=seed,
            memory=session.memory,
            previous=request.previous,
            delay=request.delay,
            executed=request.executed,
            observed=request.observed,
            at=elapsed if request.timestamp is None else request.timestamp,
        )
        answer = await asyncio.wrap_future(self._batcher.submit(item))
        return self._packed(session, request, answer, started)

    async def _check(self, request: Request) -> None:
        violations = await self._beside(self._served.violations, request.observation, request.robot or {})
        if violations:
            raise ContractError("this robot does not fit the policy: " + " ".join(violations))

    async def _beside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run what takes milliseconds beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._aside, function, *arguments)

    def _packed(self, session: Session, request: Request, answer: Answer, started: float) -> bytes:
        total_s = time.perf_counter() - started
        timing = {
            "queue_ms": 1e3 * answer.queue_s,
            "infer_ms": 1e3 * answer.infer_s,
            "total_ms": 1e3 * total_s,
            "batch": answer.batch,
        }
        if session.previous_total_s is not None:
            timing["prev_total_ms"] = 1e3 * session.previous_total_s
        session.previous_total_s = total_s
        self.metrics.queue.observe(answer.queue_s)
        self.metrics.infer.observe(answer.infer_s)
        self.metrics.batch.observe(answer.batch)
        self.metrics.total.observe(total_s)
        # openpi's ActionChunkBroker cuts every array along the chunk: arrays here have K first, all else is scalar.
        times = (np.arange(len(answer.actions)) / self._rate_hz).astype(np.float32)
        reply: dict[str, Any] = {"actions": answer.actions, "times": times, "server_timing": timing}
        if request.echo is not None:
            reply["echo"] = request.echo
        return pack(reply)

    def _account(self, session: Session) -> None:
        """Requests that were accepted and can no longer be answered, because the client has gone or made an error."""
        left = session.accepted - session.answered - session.refused
        if left:
            self.metrics.undelivered.add(left)


def _reason(error: WamkitError) -> str:
    kinds = {WireError: "malformed", ContractError: "contract", InferenceError: "inference"}
    return next((name for kind, name in kinds.items() if isinstance(error, kind)), "policy")


async def serve_until_signal(server: PolicyServer, ready: Callable[[int], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted; for a process's main thread."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await server.run(ready)
