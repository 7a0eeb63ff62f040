"""Hooks: observers that are called once at the end of each request, such as the access log and metrics."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

#: route of malformed input, which is no HTTP request
MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request and its answer, as hooks get it.

    Attributes:
        route: name of the route; empty when the request was refused before one was found.
        queue: name of the stream, such as `q` or `q/sink`; empty for another route.
        status: status of the answer; 0 when the service stopped before there was one.
        duration_s: time from the end of the request's head to the end of the answer, or of the connection.
        bytes_in: bytes of the request's body that were read.
        bytes_out: bytes that were written, the head of the answer included.
    """

    route: str
    queue: str
    method: str
    path: str
    status: int
    duration_s: float
    bytes_in: int
    bytes_out: int


class Hook(Protocol):
    """An observer of requests. It is called on the event loop, and must not block."""

    def is_enabled(self) -> bool:
        """Return whether to call this hook. No record is made while no hook is enabled."""

    def __call__(self, record: RequestRecord) -> None:
        """Record the end of a request, with any outcome: answered, refused, failed, interrupted or upgraded."""


class AccessLog:
    """Logs a line for each request, without payload, query or token."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def is_enabled(self) -> bool:
        """Return whether lines of this level are logged."""
        return self._log.isEnabledFor(logging.INFO)

    def __call__(self, record: RequestRecord) -> None:
        """Log the request, unless it was malformed: `ClientConnection.handle_error` logs those with the reason."""
        if record.route != MALFORMED:
            self._log.info(
                "%s %s %s %.1fms",
                record.method,
                safe(record.path),
                record.status,
                record.duration_s * 1000,
            )


def safe(text: str) -> str:
    """Return at most 500 characters of `text`, control characters replaced, for a line of log."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:500])
