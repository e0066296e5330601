"""The live page's answers: ``GET /monitor`` is the page, ``GET /monitor/state`` what it draws, as JSON."""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

from websockets.datastructures import Headers
from websockets.http11 import Response

PAGE, STATE = "/monitor", "/monitor/state"
_FILE = Path(__file__).parent / "live.html"
_SAFE = {
    # Nothing from elsewhere, whatever an instruction says; pictures come inside the JSON.
    "Content-Security-Policy": "default-src 'none'; img-src data:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Live(Protocol):
    """What the page shows; `wamkit.serving.live.LiveImagination` is one."""

    def state(self, number: int | None = None, known: str = "") -> dict[str, Any]:
        """Of an episode, ready for JSON."""
        ...


def asks_for_page(path: str) -> bool:
    """Whether a request's path is one of the page's."""
    return path.rstrip("/") in (PAGE, STATE)


def answer(live: Live, path: str, query: str) -> Response:
    """The page, or what it asks for; draws pictures, so not in the event loop."""
    if path.rstrip("/") == PAGE:
        return _response("text/html; charset=utf-8", _FILE.read_bytes())
    asked = parse_qs(query)
    number = asked.get("episode", [""])[0]
    state = live.state(int(number) if number.isdecimal() and len(number) < 10 else None, asked.get("known", [""])[0])
    return _response("application/json", json.dumps(state).encode())


def off() -> Response:
    """For a server without the page."""
    text = b"this server shows no imagination: start it with wam serve --monitor\n"
    return _response("text/plain; charset=utf-8", text, HTTPStatus.NOT_FOUND)


def _response(kind: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> Response:
    headers = Headers({"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"} | _SAFE)
    return Response(status.value, status.phrase, headers, body)
