"""Runs a command beside a service, forwards signals to the command, and returns its exit code."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress

from easq.errors import ChildFailed
from easq.models.children import children
from easq.server.server import Server


async def run_child(server: Server, cmd: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run `cmd` until it ends or the server fails, and return its exit code.

    A server that fails terminates `cmd`. Raises ChildFailed if `cmd` cannot start, and the error of a failed server.
    """
    loop, signals = asyncio.get_running_loop(), _Signals()
    loop.add_signal_handler(signal.SIGINT, signals.interrupt)
    loop.add_signal_handler(signal.SIGTERM, signals.terminate)
    try:
        with children.starting():
            child = await asyncio.create_subprocess_exec(*cmd, env=environ)
            children.add(child.pid)
    except OSError as error:
        raise ChildFailed(f"{cmd[0]} cannot be started: {error.strerror}") from error
    signals.started(child)
    exited = asyncio.ensure_future(child.wait())
    failed = asyncio.ensure_future(server.wait())
    await asyncio.wait({exited, failed}, return_when=asyncio.FIRST_COMPLETED)
    failed.cancel()
    if not exited.done():
        child.terminate()
    code = await exited
    children.ended(child.pid)
    if server.failed is not None:
        raise server.failed
    return code if code >= 0 else 128 - code


class _Signals:
    """Forwards signals to a command. Signals that arrive before the command runs are forwarded once it runs."""

    def __init__(self) -> None:
        self._child: Process | None = None
        self._early: list[int] = []
        self._interrupts = 0

    def started(self, child: Process) -> None:
        """Forward earlier signals to `child`, and later ones as they arrive."""
        self._child = child
        for number in self._early:
            self._send(number)

    def terminate(self) -> None:
        """Handle a SIGTERM."""
        self._send(signal.SIGTERM)

    def interrupt(self) -> None:
        """Handle a SIGINT: the second one kills. A terminal sends its SIGINT to the command as well."""
        if not _is_in_foreground():
            self._interrupts += 1
            self._send(signal.SIGINT if self._interrupts == 1 else signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self._child is None:
            self._early.append(number)
            return
        with suppress(ProcessLookupError):
            self._child.send_signal(number)


def _is_in_foreground() -> bool:
    """Return whether a terminal sends its SIGINT to the process group of this process and of the command."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # there is none
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
