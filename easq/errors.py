"""The errors of easq, each with its exit code and its status on the wire.

    EasqError
    ├── UsageError          2   bad option, missing confirmation, no commit policy
    ├── NoData              3   nothing was there in time
    ├── Refused             4   the server said no (any 4xx not named below)
    │   ├── BadRequest          400
    │   ├── MethodNotAllowed    405
    │   ├── NotAcceptable       406
    │   ├── AnotherWatcher      409
    │   ├── StreamEnded         410
    │   ├── PayloadTooLarge     413
    │   ├── KeyReused           422
    │   ├── UpgradeRequired     426, exit code 6: a proxy on the way removes the Upgrade header
    │   └── QueueFull           429, and EAS's 450
    ├── ServerError         5   5xx after retries
    │   ├── Unavailable         503
    │   ├── AnswerTooLarge      an answer larger than the client reads
    │   └── NotAQueueService    an answer that does not come from a queue service
    ├── Unreachable         6   DNS, TCP, TLS, handshake, lost connection
    ├── AuthFailed          7   401
    │   └── Forbidden           403 (and 421: a Host that is not served here)
    ├── NotFound            8   404
    ├── DeadlineExceeded    9   no result or condition within --timeout
    ├── Partial            10   some items succeeded, some failed
    ├── CheckFailed        11   a condition of `bench --fail-if` held
    ├── ChildFailed        12   the command of `watch -- CMD` could not start or failed
    ├── ConfigError        13   configuration unreadable, invalid, no url
    └── StorageError       74   storage failed, foreign, damaged or locked

A class knows its wire status (`status`), its exit code (`exit`) and a word for programs (`kind`). A message says what
was wrong and with which value; `hint` says what to do next. Errors hold only text and numbers.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of easq; `easq --help` and docs/scripts.md show the same table."""

    DONE = 0
    BUG = 1
    USAGE = 2
    NO_DATA = 3
    REFUSED = 4
    SERVER = 5
    UNREACHABLE = 6
    AUTH = 7
    NOT_FOUND = 8
    DEADLINE = 9
    PARTIAL = 10
    CHECK = 11
    CHILD = 12
    CONFIG = 13
    STORAGE = 74
    SIGINT = 130
    SIGPIPE = 141
    SIGTERM = 143

    @property
    def meaning(self) -> str:
        """The text of this code in the table."""
        return _MEANINGS[self]


_MEANINGS: dict[Exit, str] = {
    Exit.DONE: "done",
    Exit.BUG: "a bug in easq",
    Exit.USAGE: "usage: bad option, missing confirmation, no or EOF at a prompt, no commit policy",
    Exit.NO_DATA: "no data: get found nothing, watch -n N got fewer",
    Exit.REFUSED: "refused: other 4xx (payload too large, queue full, bad tag)",
    Exit.SERVER: "server: 5xx after retries, or an answer that is not a queue service's",
    Exit.UNREACHABLE: "unreachable: DNS, TCP, TLS, handshake, connection lost",
    Exit.AUTH: "auth: 401, 403, or no token where one is needed",
    Exit.NOT_FOUND: "not found: 404",
    Exit.DEADLINE: "deadline: no result or condition within --timeout",
    Exit.PARTIAL: "partial: some items succeeded, some failed",
    Exit.CHECK: "check: a --fail-if condition held",
    Exit.CHILD: "child: the command could not start, or failed with --on-fail stop",
    Exit.CONFIG: "config: unreadable, invalid, unknown profile, no url; serve: port in use",
    Exit.STORAGE: "serve: storage failed, foreign, damaged or locked",
    Exit.SIGINT: "interrupted (SIGINT)",
    Exit.SIGPIPE: "stdout was closed",
    Exit.SIGTERM: "terminated (SIGTERM, SIGHUP)",
}


class EasqError(Exception):
    """An error with a message for people, a `kind` for programs, an exit code and a status on the wire.

    `http_status` is the status of the HTTP answer that reported the error; None if there was no such answer.
    """

    kind = "error"
    exit = Exit.BUG
    status = 500
    #: seconds of the answer's Retry-After; None without one
    retry_after_s: float | None = None

    def __init__(self, message: str, *, hint: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.http_status = status
        if status is not None:
            self.status = status


class UsageError(EasqError):
    """The command line, or a call from Python, is not valid as written."""

    kind, exit, status = "usage", Exit.USAGE, 400


class NoData(EasqError):
    """Nothing matched in time."""

    kind, exit, status = "no_data", Exit.NO_DATA, 204


class Refused(EasqError):
    """The server refused the request; nothing was changed."""

    kind, exit, status = "refused", Exit.REFUSED, 400


class BadRequest(Refused):
    """A parameter, tag or index that the operation does not take."""

    kind, status = "bad_request", 400


class MethodNotAllowed(Refused):
    """The service has no operation for this HTTP method. `allow` is the value of the header Allow."""

    kind, status = "method_not_allowed", 405

    def __init__(self, message: str, *, hint: str = "", status: int | None = None, allow: str = "") -> None:
        super().__init__(message, hint=hint, status=status)
        self.allow = allow


class NotAcceptable(Refused):
    """The caller asked for an encoding that the service does not have."""

    kind, status = "not_acceptable", 406


class AnotherWatcher(Refused):
    """The consumer name is taken by a live connection of the same group."""

    kind, status = "another_watcher", 409


class StreamEnded(Refused):
    """The stream was ended: it takes no more puts."""

    kind, status = "stream_ended", 410


class PayloadTooLarge(Refused):
    """The payload is above the limit of one item."""

    kind, status = "payload_too_large", 413


class KeyReused(Refused):
    """An idempotency key was used before, with another body."""

    kind, status = "key_reused", 422


class UpgradeRequired(Refused):
    """A watch arrived without its `Upgrade` header, which a proxy on the way removed; nothing was delivered."""

    kind, exit, status = "upgrade_required", Exit.UNREACHABLE, 426


class QueueFull(Refused):
    """The stream is at its limit of items or bytes, or the disk is; nothing was stored."""

    kind, status = "queue_full", 429


class ServerError(EasqError):
    """The server failed; whether the request took effect is not known."""

    kind, exit, status = "server", Exit.SERVER, 500


class Unavailable(ServerError):
    """The server cannot serve now; nothing was stored."""

    kind, status = "unavailable", 503


class AnswerTooLarge(ServerError):
    """The answer is larger than the client reads; fewer items at once may fit."""


class NotAQueueService(ServerError):
    """The answer does not come from a queue service."""

    kind, status = "not_a_queue_service", 502


class Unreachable(EasqError):
    """No answer: name resolution, TCP, TLS or handshake failed, or the connection was lost."""

    kind, exit, status = "unreachable", Exit.UNREACHABLE, 502


class AuthFailed(EasqError):
    """The token is missing or wrong."""

    kind, exit, status = "auth", Exit.AUTH, 401


class Forbidden(AuthFailed):
    """The caller may not make this request."""

    kind, status = "forbidden", 403


class NotFound(EasqError):
    """No such queue, service or item."""

    kind, exit, status = "not_found", Exit.NOT_FOUND, 404


class DeadlineExceeded(EasqError):
    """The result or condition did not come within the time given."""

    kind, exit, status = "deadline", Exit.DEADLINE, 504


class Partial(EasqError):
    """Some items succeeded and some failed."""

    kind, exit = "partial", Exit.PARTIAL


class CheckFailed(EasqError):
    """A condition of --fail-if holds, so the run has failed."""

    kind, exit = "check", Exit.CHECK


class ChildFailed(EasqError):
    """The command for the items could not start, or it failed with `--on-fail stop`."""

    kind, exit = "child", Exit.CHILD


class ConfigError(EasqError):
    """The configuration is unreadable, invalid or incomplete."""

    kind, exit = "config", Exit.CONFIG


class StorageError(EasqError):
    """The storage failed, or is foreign, damaged or locked; nothing in flight was acknowledged."""

    kind, exit, status = "storage", Exit.STORAGE, 500


#: wire status -> class, to turn an error answer back into the exception of the server
_BY_STATUS: dict[int, type[EasqError]] = {
    cls.status: cls
    for cls in (
        BadRequest,
        AuthFailed,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        NotAcceptable,
        AnotherWatcher,
        StreamEnded,
        PayloadTooLarge,
        KeyReused,
        UpgradeRequired,
        QueueFull,
        Unavailable,
    )
}


def error_class(status: int) -> type[EasqError]:
    """Return the class of an error answer with HTTP `status`; Refused or ServerError if none has that status."""
    if status == 421:
        return Forbidden
    if status == 450:  # EAS: "queue length exceeded, request dropped"
        return QueueFull
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 400 <= status < 500:
        return Refused
    return ServerError
