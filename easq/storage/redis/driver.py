"""One connection to a Redis, by redis-py: the only module that imports it.

redis-py documents its client, but hardly the classes of `redis.asyncio.connection` that are needed here to send many
commands at once and to read their replies one at a time. `tests/storage/redis/test_driver.py` shows that they do what
this module expects of them.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, TypeAlias

from redis import exceptions
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.crc import key_slot as _key_slot

from easq.storage.redis.url import RedisUrl

#: bytes, int, None, a list of them, or an ErrorReply
Reply: TypeAlias = Any
Command: TypeAlias = Sequence[str | bytes | int]

#: redis-py's exceptions for error replies of Redis; its other exceptions are errors of the connection
_ERROR_REPLIES = (exceptions.ResponseError, exceptions.BusyLoadingError, exceptions.AuthenticationError)
#: redis-py removes the code from the text of these
_CODES: Mapping[type[Exception], str] = {
    exceptions.NoScriptError: "NOSCRIPT",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.AuthenticationError: "WRONGPASS",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.MovedError: "MOVED",
    exceptions.AskError: "ASK",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.ClusterCrossSlotError: "CROSSSLOT",
}
_BROKEN = (exceptions.RedisError, OSError, asyncio.IncompleteReadError)
#: redis-py's option to clear a TLS verify flag; older versions lack it. Python 3.13 sets VERIFY_X509_STRICT, which
#: refuses private CAs without key usage; redis-cli and Python 3.12 accept them
_EXCLUDE = "ssl_exclude_verify_flags"


class ConnectionLost(Exception):
    """The connection cannot be used any more; the message says why."""


class ErrorReply(Exception):
    """An error that Redis replied with. `code` is the word with which the reply begins."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        word = str(error).partition(" ")[0]
        self.code = _CODES.get(type(error)) or (word if word.isupper() else "ERR")


def slot_of(key: str) -> int:
    """Return the slot of a Cluster to which the key belongs."""
    return int(_key_slot(key.encode()))


class RedisConnection:
    """A connection that is not open yet, with the users, passwords and TLS options of `url`."""

    def __init__(
        self, url: RedisUrl, host: str, port: int, *, connect_timeout_s: float, sentinel: bool = False
    ) -> None:
        self._connection = _connection(url, host, port, connect_timeout_s, sentinel=sentinel)

    async def open(self) -> None:
        """Connect and log in. Raises ConnectionLost and ErrorReply."""
        try:
            await self._connection.connect()
        except _ERROR_REPLIES as error:
            raise ErrorReply(error) from error
        except _BROKEN as error:
            # the cause says why without the address, which redis-py repeats
            cause = error.__context__
            if isinstance(cause, ConnectionError) and cause.errno:
                raise ConnectionLost(os.strerror(cause.errno)) from error
            raise ConnectionLost(str(error)) from error

    def pack(self, commands: Sequence[Command]) -> Any:
        """Return the bytes of the commands, for `send`."""
        return self._connection.pack_commands(commands)

    async def send(self, packed: Any) -> None:
        """Send packed commands. Raises ConnectionLost."""
        try:
            await self._connection.send_packed_command(packed, check_health=False)
        except _BROKEN as error:
            raise ConnectionLost(str(error)) from error

    async def receive(self) -> Reply:
        """Return the next reply; an error that Redis replied with is a value. Raises ConnectionLost."""
        try:
            return await self._connection.read_response(disable_decoding=True, disconnect_on_error=False)
        except _ERROR_REPLIES as error:
            return ErrorReply(error)
        except _BROKEN as error:
            raise ConnectionLost(str(error)) from error

    async def close(self, *, nowait: bool) -> None:
        """Close the connection; with `nowait`, without the round trip that ends TLS."""
        try:
            await self._connection.disconnect(nowait=nowait)
        except (exceptions.RedisError, OSError):
            pass


def _connection(
    url: RedisUrl, host: str, port: int, connect_timeout_s: float, *, sentinel: bool
) -> AbstractConnection:
    options: dict[str, Any] = dict(url.options)
    username, password = options.pop("sentinel_username", ""), options.pop("sentinel_password", "")
    common: dict[str, Any] = {
        "db": 0 if sentinel else url.db,
        "username": (username if sentinel else url.username) or None,
        "password": (password if sentinel else url.password) or None,
        "protocol": 2,
        # one timer for all replies of a round trip is in `PipelinedConnection`
        "socket_timeout": None,
        "socket_connect_timeout": connect_timeout_s,
    }
    if url.path:
        return UnixDomainSocketConnection(path=url.path, **common)
    if url.tls:
        checks = options.pop("ssl_check_hostname", "true").lower() not in {"no", "false", "0"}
        if _EXCLUDE in signature(SSLConnection).parameters:
            options[_EXCLUDE] = [ssl.VERIFY_X509_STRICT]
        return SSLConnection(host=host, port=port, ssl_check_hostname=checks, **common, **options)
    return Connection(host=host, port=port, **common)
