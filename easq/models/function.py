"""A Python function as a model."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import TypeAlias

from easq.errors import UsageError
from easq.models.base import DEFAULT_TIMEOUT_S, ENGINE_ERROR, Answer, Call, ModelFailed, last_line
from easq.models.threads import THREADS, Threaded
from easq.protocol.operations import SHUTDOWN

#: gets the data of an item; returns the answer (text is sent as UTF-8). None or an empty value means no answer
ModelFunction: TypeAlias = Callable[[bytes], bytes | str | None]


class Function:
    """A Model that calls a Python function in threads.

    An exception of the function is a failure of the item; the reason is its class and text. The function may raise
    ModelFailed to choose status and code. A function cannot be interrupted: after the time limit the item has failed,
    but the thread is busy until the function returns.
    """

    def __init__(self, function: ModelFunction, *, threads: int = THREADS) -> None:
        """Prepare a model with up to `threads` calls at the same time. Raises UsageError for a coroutine function."""
        if inspect.iscoroutinefunction(function):
            raise UsageError(
                "the model is a coroutine function", hint="give a plain one; it runs in a thread"
            )
        self._threaded = Threaded(_Blocking(function), threads=threads)
        self._calls: set[asyncio.Timeout] = set()

    def check(self) -> None:
        """Do nothing: the function is there."""

    async def answer(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """Return the result of the function for the call's data; see `Model.answer`."""
        limit = asyncio.timeout(timeout_s)
        self._calls.add(limit)
        try:
            async with limit:
                return await self._threaded.answer(call, timeout_s=timeout_s)
        except TimeoutError as error:
            if limit not in self._calls:
                raise ModelFailed("the call was cancelled", status=503, code=SHUTDOWN) from error
            raise ModelFailed(f"no answer within {timeout_s:g} s", status=504) from error
        finally:
            self._calls.discard(limit)

    def cancel(self) -> None:
        """Make the calls in flight fail with the code `Shutdown`, though the function may still run."""
        calls, self._calls = self._calls, set()
        for limit in calls:
            limit.reschedule(0.0)

    async def close(self) -> None:
        """Cancel the calls in flight. Each thread ends when its function returns."""
        self.cancel()
        await self._threaded.close()


class _Blocking:
    """The function as a BlockingModel."""

    def __init__(self, function: ModelFunction) -> None:
        self._function = function

    def check(self) -> None:
        pass

    def run(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:  # noqa: ARG002
        try:
            answer = self._function(call.data)
            data = answer.encode() if isinstance(answer, str) else b"" if answer is None else answer
        except ModelFailed:
            raise
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            reason = last_line(" ".join(said.split()).encode("utf-8", "replace"))
            raise ModelFailed(reason, status=500, code=ENGINE_ERROR) from error
        if not isinstance(data, bytes | bytearray | memoryview):
            reason = f"the function returned {type(data).__name__}, not bytes or text"
            raise ModelFailed(reason, status=500, code=ENGINE_ERROR)
        return Answer(bytes(data))

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass
