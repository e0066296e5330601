"""Who may enter a policy server."""

from __future__ import annotations

import base64
import binascii
import hmac
import http

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response


def may_enter(request: Request, token: str | None) -> bool:
    """Whether a request brings the token, or none is wanted.

    ``Bearer`` is ours, ``Api-Key`` openpi's; ``Basic`` with the token as password is what a browser can send, for the
    live page.
    """
    if token is None:
        return True
    for header in request.headers.get_all("Authorization"):
        scheme, _, given = header.partition(" ")
        given = given.strip()
        if scheme.lower() == "basic":
            given = _password(given)
        elif scheme.lower() not in ("bearer", "api-key"):
            continue
        if hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode()):
            return True
    return False


def turned_away(connection: ServerConnection, *, browser: bool) -> Response:
    """401; a browser is told to ask for a password."""
    response = connection.respond(http.HTTPStatus.UNAUTHORIZED, "this server wants a token\n")
    response.headers["WWW-Authenticate"] = (
        'Basic realm="wamkit: any name, the token as password"' if browser else "Bearer"
    )
    return response


def _password(given: str) -> str:
    try:
        return base64.b64decode(given, validate=True).decode("utf-8", "surrogateescape").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
