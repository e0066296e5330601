"""A policy on another machine: needs numpy, msgpack and websockets, and neither torch nor anything else of wamkit.

client = PolicyClient("ws://gpu-machine:8000")
reply = client.infer(observation)  # {"actions": [K, A] in physical units, "times": [K] in seconds, ...}

It speaks openpi's protocol, so it also reaches openpi's own servers.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from wamkit.errors import WamkitError, suggest
from wamkit.serving.wire import encode_jpeg, pack, unpack

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_LEROBOT = {"observation/state": "observation.state", "prompt": "task"}


class ClientError(WamkitError):
    """Base of what goes wrong between a client and its server."""


class Unreachable(ClientError):
    """No server could be reached in time, or it does not let this client in."""


class NoReply(ClientError):
    """The server did not answer in time; the request was given up."""


class Refused(ClientError):
    """The server says that the request is wrong, or that its policy failed; asking again will not help."""


class PolicyClient:
    """Asks a policy server for actions, and finds it again when it was lost.

    A request whose connection broke is sent again over a new one, as long as there is time: an answer changes nothing
    in the world, so asking twice does no harm. May be used by several threads, one request after the other.

    Args:
        address: ``ws://host:port``, or ``wss://`` for TLS; ``host:port`` means the first.
        token: Of a server that wants one.
        timeout_s: How long a reply may take, reconnecting included.
        connect_timeout_s: How long to wait for a server that is not there (yet).
        certificate: PEM file of the authority that signed the server's certificate; by default the system's.
        jpeg_quality: 1 to 95 sends pictures as JPEG of that quality (needs pillow); None as they are. What a policy
            sees is then not quite what the camera saw: measure what that costs before relying on it.
        robot: What is known of the robot, for the server's contract check: any of ``embodiment``, ``rate_hz``,
            ``state_names``, ``action_names``, ``action_low``, ``action_high``.

    Raises:
        Unreachable: There is no server there.
    """

    def __init__(
        self,
        address: str = "ws://127.0.0.1:8000",
        *,
        token: str | None = None,
        timeout_s: float = 5.0,
        connect_timeout_s: float = 60.0,
        certificate: Path | str | None = None,
        jpeg_quality: int | None = None,
        robot: Mapping[str, Any] | None = None,
    ) -> None:
        self.address = address if "://" in address else f"ws://{address}"
        self.timeout_s, self.connect_timeout_s = timeout_s, connect_timeout_s
        self._headers = {"Authorization": f"Bearer {token}"} if token else None
        self._tls = ssl.create_default_context(cafile=certificate) if self.address.startswith("wss:") else None
        self._jpeg_quality, self._robot = jpeg_quality, dict(robot or {})
        self._lock = threading.Lock()
        self._connection: ClientConnection | None = None
        self._greeted = self._new_episode = False
        self._asked = 0
        self.connections = 0
        """Sessions so far; more than one says that the server was lost in between."""
        self.metadata: dict[str, Any] = {}
        """What the server says of its policy: observation, action, rate_hz, chunk, conventions."""
        with self._lock:
            self._connect(time.monotonic() + connect_timeout_s)

    # Asking

    def infer(
        self,
        observation: Mapping[str, Any],
        *,
        seed: int | None = None,
        previous: np.ndarray | None = None,
        delay: int = 0,
        executed: np.ndarray | None = None,
        observed: Sequence[Mapping[str, Any]] = (),
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """The server's reply to one observation.

        Args:
            observation: Under LeRobot's keys (``observation.images.<camera>`` uint8 [H, W, 3], ``observation.state``
                [S], ``task``) or openpi's (``observation/...``, ``prompt``); only what the policy takes is sent.
                LeRobot's ``timestamp``, seconds since the episode's start, is sent where the server's page wants it.
            seed: What the policy samples depends on it alone; None leaves it to the server.
            previous: In-painting: the plan [M, A] from this observation on that the chunk must go on from.
            delay: In-painting: how many of its rows will have been executed when the answer comes.
            executed: What was executed since the last observation, [n, A] in physical units. Sent where the policy
                remembers it, and within the session that saw that observation: where the connection was lost since,
                the server's memory is gone, and an episode begins with this observation.
            observed: Pictures seen since then, oldest first, as observations; sent as ``executed`` is, to policies that
                must see them (``picture_interval_s`` of the metadata apart).
            timeout_s: Instead of the client's.

        Returns:
            ``actions`` float32 [K, A] in physical units, ``times`` [K] in seconds after the observation,
            ``server_timing`` in milliseconds.

        Raises:
            Refused: The server found a fault; its words are the message.
            NoReply: None came in time.
            Unreachable: The connection was lost, and could not be made again in time.
            ClientError: The observation lacks something, or the server now serves another policy.
        """
        words: dict[str, Any] = {} if seed is None else {"seed": int(seed)}
        if previous is not None:
            words |= {"previous": np.asarray(previous, np.float32), "delay": int(delay)}
        limit = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        with self._lock:
            while True:
                connection = self._connection or self._connect(deadline)
                self._asked += 1
                message = self._message(observation, words, executed, observed)
                try:
                    connection.send(message)
                    reply = connection.recv(timeout=max(0.0, deadline - time.monotonic()))
                except TimeoutError as error:
                    # The reply may still come: on a new connection it cannot be taken for that of the next request.
                    self._drop()
                    raise NoReply(f"{self.address} did not answer within {limit:g} s.") from error
                except (ConnectionClosed, OSError) as error:
                    self._drop()
                    if time.monotonic() >= deadline:
                        raise Unreachable(f"{self.address} was lost and not found again: {error}.") from error
                    continue
                except BaseException:  # such as Ctrl-C: the reply is still to come
                    self._drop()
                    raise
                return self._read(reply)

    def act(self, observation: Mapping[str, Any], *, seed: int | None = None) -> np.ndarray:
        """The actions of `infer`, float32 [K, A]."""
        return self.infer(observation, seed=seed)["actions"]

    def reset(self) -> None:
        """An episode begins with the next observation."""
        self._new_episode = True

    def chunk_source(self) -> ChunkSource:
        """This client as the source of `wamkit.inference.execution_loop.ControlLoop`; in-paints where the policy can.

        Raises:
            ClientError: The server does not say the rate of its chunks.
        """
        inpaints = self.metadata.get("chunk", {}).get("inpaints", False)
        return (InpaintingChunkSource if inpaints else ChunkSource)(self)

    def close(self) -> None:
        """End the session; the next `infer` would begin another."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Messages

    @property
    def _ours(self) -> bool:
        """Whether the server understands more than openpi's do."""
        return self.metadata.get("server") == "wamkit"

    def _message(
        self,
        observation: Mapping[str, Any],
        words: Mapping[str, Any],
        executed: np.ndarray | None,
        observed: Sequence[Mapping[str, Any]],
    ) -> bytes:
        if not self._ours:  # openpi's servers do not say what they take: they get what is there
            if words:
                raise ClientError(f"{self.address} is no wamkit server: it takes no {', '.join(words)}.")
            return pack(dict(observation))
        content = {key: self._value(key, observation) for key in self.metadata["observation"]}
        content |= {"echo": self._asked, **words}
        if not self._greeted and self._robot:
            content["robot"] = self._robot
        if self._new_episode:
            content["reset"] = True
        takes = self.metadata.get("takes", ())
        follows = self._greeted and not self._new_episode
        if "executed" in takes and follows and executed is not None and len(executed):
            content["executed"] = np.asarray(executed, np.float32)
        if "observed" in takes and follows and observed:
            cameras = [key for key in self.metadata["observation"] if key.startswith("observation/images/")]
            content["observed"] = {key: [self._value(key, seen) for seen in observed] for key in cameras}
        if "timestamp" in takes and "timestamp" in observation:
            content["timestamp"] = float(np.asarray(observation["timestamp"]).item())
        return pack(content)

    def _value(self, key: str, observation: Mapping[str, Any]) -> Any:
        is_image = key.startswith("observation/images/")
        other = "observation.images." + key.removeprefix("observation/images/") if is_image else _LEROBOT.get(key, key)
        for name in (key, other):
            if name in observation:
                value = observation[name]
                break
        else:
            raise ClientError(f"the policy needs {other!r}.{suggest(other, map(str, observation))}")
        if not is_image or isinstance(value, bytes):
            return value if isinstance(value, str | bytes) else np.asarray(value)
        picture = np.asarray(value)
        if picture.dtype != np.uint8:
            raise ClientError(f"{other!r} must be uint8 [H, W, 3], not {picture.dtype}: scale it to 0..255.")
        return picture if self._jpeg_quality is None else encode_jpeg(picture, self._jpeg_quality)

    def _read(self, reply: str | bytes) -> dict[str, Any]:
        if isinstance(reply, str):
            self._drop()
            raise Refused(f"{self.address} refused: {reply}")
        content = unpack(reply)
        if not isinstance(content, dict) or not isinstance(content.get("actions"), np.ndarray):
            self._drop()
            raise ClientError(f"{self.address} answered without actions; it is no policy server.")
        if self._ours and content.pop("echo", None) != self._asked:
            self._drop()
            raise ClientError(f"{self.address} answered another request; the connection was dropped.")
        self._greeted, self._new_episode = True, False
        return content

    # Connection

    def _connect(self, deadline: float) -> ClientConnection:
        """Connect and read the metadata; tries again until the deadline."""
        pause, problem = _FIRST_PAUSE_S, "no time was left"
        while (left := deadline - time.monotonic()) > 0:
            try:
                return self._opened(left)
            except (InvalidURI, ssl.SSLCertVerificationError) as error:
                raise Unreachable(f"{self.address} cannot be used: {error}.") from error
            except InvalidStatus as error:
                status = error.response.status_code
                if status in (401, 403):
                    raise Unreachable(f"{self.address} wants another token ({status}).") from error
                problem = f"it answers {status}"
            except (OSError, InvalidHandshake, ConnectionClosed, EOFError) as error:
                problem = str(error) or type(error).__name__
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        raise Unreachable(f"no policy server at {self.address}: {problem}.")

    def _opened(self, timeout_s: float) -> ClientConnection:
        connection = connect(
            self.address,
            ssl=self._tls,
            additional_headers=self._headers,
            compression=None,
            max_size=None,
            open_timeout=timeout_s,
            close_timeout=1.0,
            proxy=None,
        )
        try:
            greeting = connection.recv(timeout=timeout_s)
            metadata = unpack(greeting) if isinstance(greeting, bytes) else None
            if not isinstance(metadata, dict):
                raise ClientError(f"{self.address} did not begin with its metadata; it is no policy server.")
            self._compare(metadata)
        except BaseException:
            connection.close()
            raise
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: a cable that is pulled must not block a send for minutes
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1e3 * self.timeout_s))
        self._connection, self.metadata, self._greeted = connection, metadata, False
        self.connections += 1
        return connection

    def _compare(self, metadata: dict[str, Any]) -> None:
        """Refuse a server that came back with another policy: the robot would act on it unasked."""
        for key in ("model", "checkpoint", "embodiment", "observation", "action", "rate_hz"):
            if self.connections and metadata.get(key) != self.metadata.get(key):
                raise ClientError(
                    f"{self.address} now serves another policy ({key} differs): make a new client if that is meant."
                )

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # Aside: a peer that is gone answers no farewell, and a robot has no second to wait for it.
            threading.Thread(target=connection.close, daemon=True).start()


class ChunkSource:
    """A policy on a server as a function from an observation to a chunk.

    What an executor tells of executed actions goes with the next request, for policies that remember.

    Args:
        client: The connection to it.
    """

    def __init__(self, client: PolicyClient) -> None:
        self.client = client
        rate = client.metadata.get("rate_hz")
        if not isinstance(rate, int | float):
            raise ClientError(f"{client.address} does not say its policy's rate_hz; call infer yourself.")
        self.rate_hz = float(rate)
        self.picture_interval_s: float | None = client.metadata.get("picture_interval_s")
        """Seconds between the pictures that the policy must see; None: those that it acts on are enough."""
        self.look_interval_s: float | None = client.metadata.get("look_interval_s")
        """Seconds of which a whole number must pass between two requests; None: it may be asked any time."""
        self._forget()

    def _forget(self) -> None:
        self._executed: list[np.ndarray] = []
        self._observed: list[Mapping[str, Any]] = []

    def __call__(self, observation: Mapping[str, Any]) -> np.ndarray:
        """Physical actions, float32 [K, A]; action i is meant for i / rate_hz seconds after the observation."""
        return self._asked(observation)

    def executed(self, actions: np.ndarray) -> None:
        """What was executed since the last observation, [n, A] in physical units."""
        self._executed.append(np.asarray(actions, np.float32))

    def observed(self, observations: Sequence[Mapping[str, Any]]) -> None:
        """What was seen since the last observation, oldest first."""
        self._observed += observations

    def reset(self) -> None:
        """An episode begins."""
        self._forget()
        self.client.reset()

    def _asked(self, observation: Mapping[str, Any], **words: Any) -> np.ndarray:
        executed = np.concatenate(self._executed) if self._executed else None
        reply = self.client.infer(observation, executed=executed, observed=self._observed, **words)
        self._forget()  # only now: what failed is told with the next request
        return reply["actions"]


class InpaintingChunkSource(ChunkSource):
    """The same, of a policy that can go on from a plan: what `RealTimeChunking` needs."""

    def inpaint(self, observation: Mapping[str, Any], previous: np.ndarray, delay: int) -> np.ndarray:
        """Physical actions, float32 [K, A], that go on from ``previous`` [M, A] and keep its first ``delay`` rows."""
        return self._asked(observation, previous=previous, delay=delay)
