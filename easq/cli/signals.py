"""Signals that end a command: as exceptions, or as a call that lets the command finish what it began."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """Raised for SIGTERM and SIGHUP. They end a command as Ctrl-C does, with another exit status."""


@contextmanager
def signals_raise() -> Iterator[None]:
    """Raise KeyboardInterrupt or Terminated in the body for a signal that ends the command."""

    def end(number: int, _frame: object) -> None:
        raise interrupt_of(number)

    with signals_call(end):
        yield


@contextmanager
def signals_call(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Call `handler` for SIGINT, SIGTERM and SIGHUP in the body, except for those that are ignored (nohup, `&`)."""
    import signal

    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    taken = [number for number in ends if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in taken}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def hang_up_as_terminate() -> None:
    """Turn SIGHUP into SIGTERM from here on, for code that handles SIGTERM itself. An ignored SIGHUP stays ignored."""
    import signal

    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def interrupt_of(number: int) -> KeyboardInterrupt:
    """Return the exception that stands for the signal `number`, which ends a command."""
    import signal

    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


class Interrupt:
    """A context manager that calls `stop` for the first signal, kept in `raised`, and raises a second one at once.

    Commands with requests in flight use it, to report the outcome of each.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self.raised: KeyboardInterrupt | None = None
        self._signals = signals_call(self._caught)

    def __enter__(self) -> Interrupt:
        self._signals.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._signals.__exit__(*error)

    def _caught(self, number: int, _frame: object) -> None:
        interrupt = interrupt_of(number)
        if self.raised is not None:
            raise interrupt
        self.raised = interrupt
        self._stop()
