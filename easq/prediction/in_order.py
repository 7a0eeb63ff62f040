"""Process several items at a time, and yield the results in the order of the items."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from easq.errors import EasqError

if TYPE_CHECKING:
    from concurrent.futures import Future
    from queue import SimpleQueue

    from easq.client.items import Item

T = TypeVar("T")


def in_order(
    items: Iterator[Item],
    work: Callable[[Item], T],
    *,
    workers: int,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Item, T | EasqError]]:
    """Yield each item with the result of `work`, or its error, in the order of the items.

    Args:
        workers: number of items in flight, each in its own thread; with 1, the thread of the caller.
        stop: if it returns True, no further item begins; the results of items in flight are still yielded.
    """

    def attempt(item: Item) -> T | EasqError:
        if item.error is not None:
            return item.error
        try:
            return work(item)
        except EasqError as error:
            return error

    if workers == 1:
        while not stop() and (item := next(items, None)) is not None:
            yield item, attempt(item)
        return
    begun: deque[tuple[Item, Future[T | EasqError]]] = deque()
    pool = _Threads(workers, attempt)
    more = True
    try:
        while more or begun:
            while more and len(begun) < workers and not stop():
                item = next(items, None)
                if item is None:
                    more = False
                    break
                begun.append((item, pool.begin(item)))
            if not begun:
                break
            item, future = begun.popleft()
            yield item, future.result()
    finally:
        pool.end()


class _Threads(Generic[T]):
    """A pool of daemon threads. With ThreadPoolExecutor, Ctrl-C would wait for the last answer."""

    def __init__(self, count: int, work: Callable[[Item], T]) -> None:
        from queue import SimpleQueue

        self._count, self._work = count, work
        self._waiting: SimpleQueue[tuple[Item, Future[T]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def begin(self, item: Item) -> Future[T]:
        """Start the work on `item` as soon as a thread is free, and return its future."""
        from concurrent.futures import Future

        future: Future[T] = Future()
        self._waiting.put((item, future))
        if len(self._threads) < self._count:
            self._threads.append(threading.Thread(target=self._run, daemon=True))
            self._threads[-1].start()
        return future

    def end(self) -> None:
        """Let each thread end after its current item, without waiting for it."""
        for _ in self._threads:
            self._waiting.put(None)

    def _run(self) -> None:
        while (begun := self._waiting.get()) is not None:
            item, future = begun
            try:
                future.set_result(self._work(item))
            except BaseException as error:
                future.set_exception(error)
