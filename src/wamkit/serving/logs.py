"""Structured logs: one JSON object a line, for whatever gathers a robot's logs."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any, TextIO

LOGGER = logging.getLogger("wamkit.serving")


class JsonLines(logging.Formatter):
    """``{"time": ..., "level": ..., "event": ..., <fields>}``; an exception's traceback under ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        entry = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def log(event: str, *, level: int = logging.INFO, exception: BaseException | None = None, **fields: Any) -> None:
    """Write one event with its fields."""
    LOGGER.log(level, event, extra={"fields": fields}, exc_info=exception)


def log_to(stream: TextIO | None = None) -> None:
    """Send the server's events, and Python's warnings, to a stream as JSON lines; by default standard error."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers[:] = [handler]
