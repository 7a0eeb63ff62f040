"""The interface of models: calls, answers and failures.

    Model.answer(Call) -> Answer, or raises ModelFailed

Each call has a time limit of its own, and `cancel` ends all calls in flight.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from easq.errors import ServerError

#: default time limit of a call, in seconds
DEFAULT_TIMEOUT_S = 60.0
#: limit of an answer, in bytes
MAX_ANSWER = 64 * 1024**2
#: code of a failure without an HTTP status
ENGINE_ERROR = "EngineError"

#: statuses with which a working model refuses one item
ABOUT_THE_ITEM = frozenset((400, 413, 415, 422))
#: errors of a system that cannot open another connection or start another process, for reasons outside the call
NO_ROOM = frozenset(
    (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL)
)

#: number of last bytes of an output that may hold the reason, and longest reason in characters
MAX_SAID, _MAX_REASON = 64 * 1024, 300


@dataclass(frozen=True, slots=True)
class Call:
    """One inference: data, path, query and headers.

    `path` is percent-encoded and begins with `/`; it is appended to the model's path. A command gets path, query and
    content type in its environment as EASQ_PATH, EASQ_QUERY and EASQ_CONTENT_TYPE, in addition to `environ`.
    """

    data: bytes = b""
    method: str = "POST"
    path: str = ""
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        """The content type of the data; empty if it is not known."""
        return _content_type(self.headers.items())


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a model: its bytes, unchanged, and its end-to-end headers."""

    data: bytes
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()

    @property
    def content_type(self) -> str:
        """The content type of the answer; empty if the model does not say."""
        return _content_type(self.headers)


class ModelFailed(ServerError):
    """The model gave no result.

    `status` is returned to a caller over HTTP: the model's own 4xx or 5xx, 500 for a failed command, 502 for an
    unusable answer, 504 for a timeout, 503 for a cancelled call. `code` is the status as text, or `EngineError` or
    `Shutdown`. `data` is the model's output, possibly empty.

    `busy` means that the model accepts no calls now, but the same call may succeed later. `retry_after_s` is the pause
    that the model asked for.
    """

    kind = "model_failed"

    def __init__(
        self,
        reason: str,
        *,
        status: int,
        code: str = "",
        answer: Answer | None = None,
        busy: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(reason, status=status)
        self.code = code or str(status)
        self.answer = answer or Answer(b"", status)
        self.busy = busy
        self.retry_after_s = retry_after_s

    @property
    def data(self) -> bytes:
        """The body of a refusal, or the output of a failed command; may be empty."""
        return self.answer.data


class ModelAnswerTooLarge(ModelFailed):
    """The answer of the model is above the limit of an answer, and was not read to its end."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the answer is above {limit} bytes", status=502)


@runtime_checkable
class Model(Protocol):
    """A model on an event loop. All methods except `check` are called on one event loop."""

    def check(self) -> None:
        """Raise ChildFailed if a command does not exist, before there is a call."""

    async def answer(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """Return the answer, within `timeout_s` in total.

        Raises ModelFailed; ChildFailed when the command cannot be started at all.
        """

    def cancel(self) -> None:
        """Make the calls in flight fail with the code `Shutdown`; a command is killed with its process group."""

    async def close(self) -> None:
        """Cancel the calls in flight and close the connections. Calls made later fail."""


@runtime_checkable
class BlockingModel(Protocol):
    """A model whose calls block the thread that makes them."""

    def check(self) -> None:
        """As `Model.check`."""

    def run(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """As `Model.answer`, blocking."""

    def cancel(self) -> None:
        """As `Model.cancel`; may be called from any thread."""

    def close(self) -> None:
        """As `Model.close`, without waiting."""


def last_line(said: bytes) -> str:
    """Return the last line that is not blank, cut and with printable characters only."""
    lines = said[-MAX_SAID:].decode("utf-8", "replace").split("\n")
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")[:_MAX_REASON]
    return "".join(letter if letter.isprintable() else " " for letter in line)


def _content_type(headers: Iterable[tuple[str, str]]) -> str:
    return next((value for name, value in headers if name.lower() == "content-type"), "")
