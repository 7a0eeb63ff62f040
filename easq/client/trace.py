"""What `-v` shows of an exchange, and the one place where secrets are taken out of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import quote, quote_plus

from easq.client.endpoint import shown
from easq.redact import mask

#: called with a level (1: request, status, time; 2: headers; 3: first KiB of a body) and a line
Trace = Callable[[int, str], None]

_SECRET_NAME = re.compile(
    r"(?i)auth|token|secret|cookie|password|passwd|signature|appcode|api-?key|access-?key"
)
_BODY_BYTES = 1024


class Tracer:
    """Hands lines to a `Trace`. No line holds a secret, wherever in it the secret stood."""

    def __init__(self, trace: Trace | None, secrets: Iterable[str] = ()) -> None:
        self._trace = trace
        found = {secret for secret in secrets if len(secret) >= 4}
        spellings = {(form, mask(secret)) for secret in found for form in _spellings(secret)}
        # the longest first: one secret may be part of another
        self._masks = sorted(spellings, key=lambda pair: -len(pair[0]))

    def request(self, method: str, url: str, query: Iterable[tuple[str, str]]) -> None:
        """Tells that a request begins."""
        if self._trace is not None:
            pairs = ((name, mask(value) if _SECRET_NAME.search(name) else value) for name, value in query)
            text = "&".join(
                f"{quote_plus(name, errors='replace')}={_readable(value)}" for name, value in pairs
            )
            self._line(1, f"> {method} {shown(url)}{'?' if text else ''}{text}")

    def answer(self, text: str, seconds: float) -> None:
        """Tells what a request was answered with, or why it was not, and after how long."""
        if self._trace is not None:
            self._line(1, f"< {text} in {seconds * 1000:.0f} ms")

    def headers(self, direction: str, headers: Mapping[str, str]) -> None:
        """Tells the headers that went (`>`) or came (`<`)."""
        if self._trace is not None:
            for name, value in headers.items():
                self._line(2, f"{direction} {name}: {mask(value) if _SECRET_NAME.search(name) else value}")

    def body(self, direction: str, body: bytes) -> None:
        """Tells the first KiB of a body."""
        if self._trace is not None and body:
            more = f" ... ({len(body)} bytes)" if len(body) > _BODY_BYTES else ""
            self._line(3, f"{direction} {body[:_BODY_BYTES].decode(errors='replace')}{more}")

    def _line(self, level: int, line: str) -> None:
        for secret, masked in self._masks:
            line = line.replace(secret, masked)
        if self._trace is not None:
            self._trace(level, line)


def secrets_of(headers: Mapping[str, str]) -> list[str]:
    """The values among `headers` that nobody may see, and the part behind a scheme word such as Bearer."""
    values = [value for name, value in headers.items() if _SECRET_NAME.search(name)]
    return values + [value.partition(" ")[2] for value in values if " " in value]


def _spellings(secret: str) -> set[str]:
    return {secret, quote(secret, errors="replace"), quote(secret, safe="", errors="replace")}


def _readable(value: str) -> str:
    return quote_plus(value, safe="/:@,", errors="replace")
