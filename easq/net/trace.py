"""The lines that `-v` shows of an exchange, and the secrets that are masked in them."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar
from urllib.parse import quote_plus, unquote, urlsplit

from easq.errors import EasqError
from easq.net.url import shown
from easq.protocol.replies import Reply
from easq.redact import hide, mask

#: called with a level (1: request, status, time; 2: headers; 3: first KiB of a body) and a line
Trace = Callable[[int, str], None]

E = TypeVar("E", bound=EasqError)

_SECRET_NAME = re.compile(
    r"(?i)auth|token|secret|cookie|password|passwd|signature|appcode|api-?key|access-?key"
)
#: most bytes of a body that are shown
_BODY_BYTES = 1024


class Tracer:
    """Calls a `Trace` with lines in which all secrets are masked."""

    def __init__(self, trace: Trace | None, secrets: Iterable[str] = ()) -> None:
        self._trace = trace
        self._secrets = list(secrets)

    def sent(
        self,
        method: str,
        url: str,
        query: Iterable[tuple[str, str]],
        headers: Mapping[str, str],
        body: bytes = b"",
    ) -> None:
        """Trace a request."""
        if self._trace is not None:
            pairs = ((name, mask(value) if _SECRET_NAME.search(name) else value) for name, value in query)
            text = "&".join(
                f"{quote_plus(name, errors='replace')}={_readable(value)}" for name, value in pairs
            )
            self._line(1, f"> {method} {shown(url)}{'?' if text else ''}{text}")
            self.headers(">", headers)
            self.body(">", body)

    def received(self, reply: Reply, seconds: float) -> None:
        """Trace the answer to a request."""
        if self._trace is not None:
            self.answer(f"{reply.status}, {len(reply.body)} bytes", seconds)
            self.headers("<", reply.headers)
            self.body("<", reply.body)

    def answer(self, text: str, seconds: float) -> None:
        """Trace the status of an answer, or the reason why there is none, and the duration."""
        if self._trace is not None:
            self._line(1, f"< {text} in {seconds * 1000:.0f} ms")

    def headers(self, direction: str, headers: Mapping[str, str]) -> None:
        """Trace headers that were sent (`>`) or received (`<`)."""
        if self._trace is not None:
            for name, value in headers.items():
                self._line(2, f"{direction} {name}: {mask(value) if _SECRET_NAME.search(name) else value}")

    def body(self, direction: str, body: bytes) -> None:
        """Trace the first KiB of a body."""
        if self._trace is not None and body:
            more = f" ... ({len(body)} bytes)" if len(body) > _BODY_BYTES else ""
            # masked before it is cut: half of a secret at the cut would not be recognized
            text = hide(body[: 8 * _BODY_BYTES].decode(errors="replace"), self._secrets)[:_BODY_BYTES]
            self._line(3, f"{direction} {text}{more}")

    def _line(self, level: int, line: str) -> None:
        if self._trace is not None:
            self._trace(level, hide(line, self._secrets))


def hidden(error: E, secrets: Iterable[str]) -> E:
    """Mask `secrets` in `error`, and return it. The error may quote an answer that repeats the request."""
    error.message = hide(error.message, secrets)
    error.args = (error.message,)
    return error


def hide_in(reply: Reply, secrets: Iterable[str]) -> Reply:
    """Return the beginning of an answer, for an error. `secrets` are masked, since servers may quote a request."""
    found = list(secrets)
    headers = {name: hide(value, found) for name, value in reply.headers.items()}
    return Reply(reply.status, headers, hide(reply.body[:8192].decode(errors="replace"), found).encode())


def secrets_of(headers: Mapping[str, str], proxy: str | None = None) -> list[str]:
    """Return the secret values of `headers` and of the URL `proxy`.

    A header is secret with and without its scheme, such as Bearer. The secrets of a proxy are its password (without
    one, its user), and the Basic credentials of user and password.
    """
    values = [value for name, value in headers.items() if _SECRET_NAME.search(name)]
    values += [value.partition(" ")[2] for value in values if " " in value]
    parts = urlsplit(proxy or "")
    if parts.username is not None:
        name, password = unquote(parts.username), unquote(parts.password or "")
        values.append(base64.b64encode(f"{name}:{password}".encode()).decode())
        # a user name without a password is likely a token
        values += [password, parts.password] if parts.password else [name, parts.username]
    return values


def _readable(value: str) -> str:
    return quote_plus(value, safe="/:@,*", errors="replace")
