"""How to serve."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from wamkit.errors import WamkitError


class ServerError(WamkitError):
    """A server that cannot start as it was asked to."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Limits and doors of a policy server.

    Raises:
        ServerError: A limit is below 1, or of certificate and key one is missing.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    max_batch: int = 16
    batch_wait_s: float = 0.0
    """How long a request may wait for others to share its batch; 0 takes what is there."""
    max_message_bytes: int | None = None
    """None: twice the bytes of an observation as it is, and 1 MiB for the rest."""
    max_sessions: int = 64
    max_pending: int = 8
    """Requests of one session that are read ahead; further ones wait in the client."""
    token: str | None = None
    """Clients must send it as ``Authorization: Bearer <token>`` (openpi's ``Api-Key <token>`` counts too)."""
    certificate: Path | None = None
    """PEM file for TLS."""
    key: Path | None = None
    drain_timeout_s: float = 30.0
    ping_s: float = 20.0
    """Interval of keep-alive pings; a client that has not answered after three is gone."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_sessions", "max_pending", "max_message_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ServerError(f"{name} is {value}; it must be at least 1.")
        if (self.certificate is None) != (self.key is None):
            raise ServerError("TLS needs both a certificate and its key.")
        if self.token is not None and not self.token.strip():
            raise ServerError("the token is empty: give one, or none.")

    @property
    def local_only(self) -> bool:
        """Whether other machines cannot reach it."""
        return self.host in ("127.0.0.1", "::1", "localhost")

    def tls(self) -> ssl.SSLContext | None:
        """The context of a TLS server; None without a certificate.

        Raises:
            ServerError: The files cannot be used.
        """
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ServerError(f"the certificate {self.certificate} cannot be used with its key: {error}.") from error
        return context
