"""The headers of a request: those of easq, of the caller and of the user. They are checked before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping

from easq import __version__
from easq.errors import ConfigError, UsageError
from easq.protocol.operations import Caller, Request, caller_headers, valid_name

_TOKEN = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
#: headers that users cannot set, since they define the framing of the message or the connection
_OURS = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)


def request_headers(request: Request, caller: Caller | None, extra: Mapping[str, str]) -> dict[str, str]:
    """Return all headers of a request. The headers of the user, `extra`, override the others.

    Raises ConfigError for an invalid token, and UsageError for another invalid name or value.

    Args:
        caller: the caller whose identity is sent; None for none.
    """
    headers = {"User-Agent": f"easq/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
    if caller is not None:
        _check_caller(caller)
        _merge(headers, caller_headers(caller))
    _merge(headers, request.headers)
    for name, value in extra.items():
        if not re.fullmatch(_TOKEN, name):
            raise UsageError(f"a header cannot have the name {name[:80]!a}")
        if name.lower() in _OURS or name.lower().startswith("sec-websocket-"):
            raise UsageError(f"the header {name} cannot be set")
        check_value(name, value)
    _merge(headers, extra)
    for name, value in headers.items():
        check_value(name, value)
    return headers


def _check_caller(caller: Caller) -> None:
    if caller.token and not _is_value(caller.token):
        raise ConfigError(
            "the token holds a line break or another character that cannot stand in a header",
            hint="a token is one line of plain characters; check the file or variable it comes from",
        )
    for what, name in (("group", caller.consumer.group), ("user", caller.consumer.user)):
        if not valid_name(name):
            raise UsageError(
                f"the {what} {name[:80]!a} is not a name",
                hint="a name is 1 to 128 of letters, digits, '.', '_' and '-'",
            )


def check_value(name: str, value: str) -> None:
    """Raise UsageError for a value that a header cannot have."""
    if not _is_value(value):
        raise UsageError(f"the value of header {name} holds a character that cannot stand in a header")


def _is_value(value: str) -> bool:
    """Return whether `value` is printable ASCII, tabs inside. Servers read other values of RFC 9110 differently."""
    return value.isascii() and value.replace("\t", " ").isprintable() and value == value.strip()


def _merge(headers: dict[str, str], more: Mapping[str, str]) -> None:
    """Add `more` to `headers`, and replace headers of the same name. Names are compared without case."""
    for name, value in more.items():
        for old in [key for key in headers if key.lower() == name.lower()]:
            del headers[old]
        headers[name] = value
