"""A model behind HTTP, called over connections that are reused.

A call is only sent to the model's own address: redirects are not followed, the path of a call cannot leave the address,
and no proxy is used.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from easq.errors import AnswerTooLarge, EasqError, NotAQueueService, UsageError
from easq.models.base import (
    DEFAULT_TIMEOUT_S,
    MAX_ANSWER,
    Answer,
    Call,
    ModelAnswerTooLarge,
    ModelFailed,
    last_line,
)
from easq.net.failures import Incomplete, Unanswered, Unconnected, connect_reason
from easq.protocol.hop_by_hop import end_to_end
from easq.protocol.operations import SHUTDOWN
from easq.protocol.replies import Reply, retry_after_s

if TYPE_CHECKING:
    from easq.net.aio_raw import RawClient

#: longest idle time after which a connection is reused, in seconds: uvicorn closes idle connections after 5 s
MAX_IDLE_S = 2.0
#: statuses of a busy service; 450 is EAS's full queue
_BUSY = frozenset((429, 450, 502, 503, 504))
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_URL_SAFE = "/%:@!$&'()*+,;=~"


class Http:
    """Calls a model at one HTTP address. `answer`, `cancel` and `close` have to run on one event loop."""

    def __init__(self, url: str, *, max_answer: int = MAX_ANSWER) -> None:
        """Prepare a model at `url`. Raises UsageError unless it is a plain http or https address."""
        self._address = _address(url)
        self._max_answer = max_answer
        self._client: RawClient | None = None
        self._calls: set[asyncio.Timeout] = set()
        self._is_closed = False

    def check(self) -> None:
        """Do nothing: the service may be started later."""

    async def answer(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """Return the service's answer with status 2xx; see `Model.answer`. A call that failed may have taken effect.

        A call is sent once. There is one exception: if a reused connection ends without an answer, the call is sent
        again on a new connection, since the server was closing the idle one.
        """
        url, headers = self.url(call.path, urlencode(call.query)), _sent_headers(call)
        if self._is_closed:
            raise ModelFailed("the model is closed", status=503, code=SHUTDOWN)
        if self._client is None:
            from easq.net.aio_raw import RawClient  # takes 300 ms, which other models do not need

            self._client = RawClient(idle_s=MAX_IDLE_S)
        limit = asyncio.timeout_at(time.monotonic() + timeout_s)  # the loop's clock
        try:
            async with limit:
                self._calls.add(limit)
                reply = await self._client.fetch(
                    call.method, url, headers, call.data, max_answer=self._max_answer
                )
        except TimeoutError as error:
            if limit not in self._calls:
                raise ModelFailed("the call was cancelled", status=503, code=SHUTDOWN) from error
            raise ModelFailed(f"no answer within {timeout_s:g} s", status=504) from error
        except EasqError as error:
            if limit not in self._calls:
                raise ModelFailed("the call was cancelled", status=503, code=SHUTDOWN) from error
            raise as_failure(error, max_answer=self._max_answer) from error
        finally:
            self._calls.discard(limit)
        return _successful(reply)

    def cancel(self) -> None:
        """End the calls in flight; they fail with the code `Shutdown`."""
        calls, self._calls = self._calls, set()
        for limit in calls:
            limit.reschedule(0.0)

    async def close(self) -> None:
        """Cancel the calls in flight and close all connections. Calls made later fail."""
        self._is_closed = True
        self.cancel()
        if self._client is not None:
            await self._client.close()

    def url(self, path: str, query: str) -> str:
        """Return the URL of a call: the model's address, followed by `path` and `query`, both percent-encoded already.

        Raises ModelFailed for a path that leads out of the model's address.
        """
        if any(part in (".", "..") for part in unquote(path).replace("\\", "/").split("/")):
            raise ModelFailed("the path leads out of the model's address", status=400)
        own = self._address.path.rstrip("/") if path else self._address.path
        slash = "/" if path and not path.startswith("/") else ""
        queries = "&".join(filter(None, (self._address.query, quote(query, safe=_URL_SAFE + "?"))))
        target = "?".join(filter(None, (quote(own + slash + path, safe=_URL_SAFE) or "/", queries)))
        return f"{self._address.scheme}://{self._address.netloc}{target}"


def as_failure(error: EasqError, *, max_answer: int = MAX_ANSWER, timeout_s: float = 0.0) -> ModelFailed:
    """Return the ModelFailed for an error of the network."""
    if isinstance(error, Unconnected):
        reason, tls_failed = connect_reason(error)
        return ModelFailed(f"the model cannot be reached: {reason}", status=502, busy=not tls_failed)
    if isinstance(error, Unanswered):
        return ModelFailed(f"no answer within {timeout_s:g} s", status=504)
    if isinstance(error, Incomplete):
        return ModelFailed("the answer broke off", status=502)
    if isinstance(error, AnswerTooLarge):
        return ModelAnswerTooLarge(max_answer)
    if isinstance(error, NotAQueueService):
        return ModelFailed("the model's answer is no HTTP", status=502)
    if isinstance(error, UsageError):
        return ModelFailed("the call cannot be sent as a request", status=400)
    return ModelFailed("the connection to the model was lost", status=502)


def _address(url: str) -> SplitResult:
    """Return the parts of `url`. Raises UsageError unless it is a plain http or https address."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        shown = re.split("[?#]", url.rpartition("@")[2], maxsplit=1)[0]
        raise UsageError(
            f"model {shown!r}: no http or https address", hint="write it as http://HOST:PORT/PATH"
        )
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise UsageError("model: the url holds a user, a password or a fragment", hint="leave it out")
    return parts


def _sent_headers(call: Call) -> list[tuple[str, str]]:
    """Return the end-to-end headers of the call. Raises ModelFailed for a header that would break the request."""
    is_given = any(name.lower() == "accept-encoding" for name in call.headers)
    sent = [] if is_given else [("Accept-Encoding", "identity")]
    for name, value in end_to_end(call.headers.items()):
        if not _NAME.fullmatch(name) or {"\r", "\n", "\0"} & set(value):
            raise ModelFailed(f"the header {name[:40]!r} cannot be sent", status=400)
        sent.append((name, value.strip()))
    return sent


def _successful(reply: Reply) -> Answer:
    """Return the answer in a 2xx reply. Raises ModelFailed for any other status."""
    # aiohttp reads the values as UTF-8; they are ISO 8859-1
    given = ((name, value.encode("utf-8", "surrogateescape")) for name, value in reply.headers.items())
    headers = end_to_end((name, value.decode("latin-1")) for name, value in given)
    answer = Answer(reply.body, reply.status, headers)
    if 200 <= answer.status < 300:
        return answer
    if not 400 <= answer.status < 600:
        raise ModelFailed(f"the model answered {answer.status}, which is not followed", status=502)
    reason = last_line(answer.data) if answer.content_type.startswith("text/plain") else ""
    reason = reason or f"the model answered {answer.status}"
    asked_s = retry_after_s(reply)
    busy = asked_s is not None or answer.status in _BUSY
    raise ModelFailed(reason, status=answer.status, answer=answer, busy=busy, retry_after_s=asked_s)
