"""What a model is asked, what it answers, and how it fails.

    Model.answer(Call) -> Answer, or ModelFailed with what is known of the failure

Each call has a time limit of its own, and `cancel` ends all calls in flight.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from easq.errors import ServerError

#: a call may take so long unless it is told otherwise, in seconds
DEFAULT_TIMEOUT_S = 60.0
#: an answer has at most so many bytes
MAX_ANSWER = 64 * 1024**2
#: the code of a failure that has no HTTP status
ENGINE_ERROR = "EngineError"

#: statuses with which a working model refuses one item
ABOUT_THE_ITEM = frozenset((400, 413, 415, 422))
#: errors when the system cannot open another connection or start another process: not the call's fault
NO_ROOM = frozenset(
    (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL)
)

#: a reason is looked for in so many bytes, and has so many characters
MAX_SAID, _MAX_REASON = 64 * 1024, 300


@dataclass(frozen=True, slots=True)
class Call:
    """One inference: the data, and what came with it.

    `path` is as it stands in a URL (in percent encoding), from the first `/`; it follows the model's own. A command
    finds path, query and content type in its environment as EASQ_PATH, EASQ_QUERY and EASQ_CONTENT_TYPE, beside
    what `environ` names.
    """

    data: bytes = b""
    method: str = "POST"
    path: str = ""
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        """What the data is said to be; empty where it is not said."""
        return _content_type(self.headers.items())


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, its bytes untouched. Headers are those of the content, not of the connection."""

    data: bytes
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()

    @property
    def content_type(self) -> str:
        """What the model says its answer is; empty when it does not say."""
        return _content_type(self.headers)


class ModelFailed(ServerError):
    """The model gave no result.

    `status` is what a caller over HTTP is answered: the model's own 4xx or 5xx, 500 for a command, 502 without a
    usable answer, 504 without one in time, 503 when it was cancelled. `code` is the same as text, or a word:
    `EngineError`, `Shutdown`. `data` is what the model said, if anything.

    `busy` says that the call may succeed later, after `retry_after_s` if the model named a time: the model accepts no
    calls now.
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
        """The body of a refusal, or what a command had written; empty when there was nothing."""
        return self.answer.data


class Model(Protocol):
    """Something that answers calls. All but `check` is used on one event loop."""

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
    """Something that answers calls, each in the thread that makes it."""

    def check(self) -> None:
        """As `Model.check`."""

    def run(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """As `Model.answer`, blocking."""

    def cancel(self) -> None:
        """As `Model.cancel`; may be called from any thread."""

    def close(self) -> None:
        """As `Model.close`, without waiting."""


def last_line(said: bytes) -> str:
    """The last line that is not blank, for people: printable, of bounded length."""
    lines = said[-MAX_SAID:].decode("utf-8", "replace").split("\n")
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")[:_MAX_REASON]
    return "".join(letter if letter.isprintable() else " " for letter in line)


def _content_type(headers: Iterable[tuple[str, str]]) -> str:
    return next((value for name, value in headers if name.lower() == "content-type"), "")
