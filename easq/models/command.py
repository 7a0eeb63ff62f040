"""A command as a model: data on stdin, answer on stdout.

It runs without a shell and leads a process group of its own. Its environment has no token of easq.
"""

from __future__ import annotations

import errno
import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from urllib.parse import urlencode

from easq.errors import ChildFailed
from easq.models.base import (
    DEFAULT_TIMEOUT_S,
    ENGINE_ERROR,
    MAX_ANSWER,
    MAX_SAID,
    NO_ROOM,
    Answer,
    Call,
    ModelAnswerTooLarge,
    ModelFailed,
    last_line,
)
from easq.models.children import children
from easq.protocol.operations import SHUTDOWN
from easq.redact import child_environ

#: bytes that are read or written at once
_PIECE = 64 * 1024
#: pause between two checks for the end of a command that has closed no output, in seconds: its children may keep the
#: output open
_POLL_S = 0.05
#: pause between two checks for the end of a command that has closed its output, in seconds
_ENDING_S = 0.002
#: most pieces that are read after the command has ended: a pipe holds 64 KiB by default, and at most 1 MiB
_MAX_PIECES_LEFT = 32
#: exit status of a command that is busy: the call can be repeated later (EX_TEMPFAIL of sysexits.h)
_BUSY = 75


class Exec:
    """Runs a command for each call: data on stdin, answer on stdout.

    An exit status other than 0 is a failure, and the last line on stderr its reason; 75 means that it is busy.
    Processes that the command leaves in the background are neither killed nor waited for.
    """

    def __init__(self, argv: Sequence[str], *, max_answer: int = MAX_ANSWER) -> None:
        self._argv = tuple(argv)
        self._max_answer = max_answer
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], bool] = {}  # process -> whether it was cancelled
        self._closed = False

    def check(self) -> None:
        """Raise ChildFailed unless the command exists and may be run."""
        if shutil.which(self._argv[0]) is None:
            raise ChildFailed(f"{self._argv[0]} cannot be started: no such command")

    def run(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """Return the command's stdout as the answer; see `Model.answer`."""
        deadline = time.monotonic() + timeout_s
        process = self._start(call)
        pipes = _Pipes(process, call.data, self._max_answer)
        try:
            code = self._finish(process, pipes, deadline)
        finally:
            with self._lock:
                _kill_group(process)
                cancelled = self._running.pop(process) or self._closed
            pipes.close()
            process.wait()
            children.ended(process.pid)
        answer = Answer(bytes(pipes.out))
        if pipes.is_full:
            raise ModelAnswerTooLarge(self._max_answer)
        if code is None:
            raise ModelFailed(f"no answer within {timeout_s:g} s", status=504)
        if code != 0 and cancelled:
            raise ModelFailed("the call was cancelled", status=503, code=SHUTDOWN)
        if code != 0:
            reason = last_line(bytes(pipes.err))
            reason = reason or (f"exit status {code}" if code > 0 else f"killed by signal {-code}")
            if code == _BUSY:
                raise ModelFailed(reason, status=503, busy=True, answer=answer)
            raise ModelFailed(reason, status=500, code=ENGINE_ERROR, answer=answer)
        return answer

    def cancel(self) -> None:
        """Kill the running commands, each with its process group."""
        with self._lock:
            for process in self._running:
                self._running[process] = True
                _kill_group(process)

    def close(self) -> None:
        """Kill the running commands. Later calls fail."""
        with self._lock:
            self._closed = True
        self.cancel()

    def _start(self, call: Call) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        environ = _environ(call)
        with self._lock:
            if self._closed:
                raise ModelFailed("the model is closed", status=503, code=SHUTDOWN)
        try:
            process = children.start(self._argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environ, bufsize=0)
        except OSError as error:
            reason = f"{self._argv[0]} cannot be started: {error.strerror}"
            if error.errno in NO_ROOM:
                raise ModelFailed(reason, status=503, busy=True) from error
            if error.errno == errno.E2BIG:  # the environment of this call is too large
                raise ModelFailed(reason, status=500, code=ENGINE_ERROR) from error
            raise ChildFailed(reason) from error
        except ValueError as error:  # a NUL in the environment
            raise ModelFailed(f"{self._argv[0]} cannot be started: {error}", status=400) from error
        with self._lock:
            self._running[process] = False
            if self._closed:
                _kill_group(process)
        return process

    def _finish(self, process: subprocess.Popen[bytes], pipes: _Pipes, deadline: float) -> int | None:
        """Return the exit status once the command has ended and its output was read; None at the deadline."""
        while (left_s := deadline - time.monotonic()) > 0 and not pipes.is_full:
            with self._lock:  # after the wait its process id may be another's, which must not be killed
                code = process.poll()
            if code is not None:
                pipes.drain()
                return code
            if pipes.is_open:
                pipes.move(min(left_s, _POLL_S))
            else:
                time.sleep(min(left_s, _ENDING_S))
        return None


class _Pipes:
    """The three pipes of a process: writes its input, and collects its output up to a limit."""

    def __init__(self, process: subprocess.Popen[bytes], data: bytes, limit: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._unsent = memoryview(data)
        self._limit = limit
        self.out, self.err = bytearray(), bytearray()
        self._selector = selectors.DefaultSelector()
        self._selector.register(process.stdout, selectors.EVENT_READ, self.out)
        self._selector.register(process.stderr, selectors.EVENT_READ, self.err)
        if data:
            os.set_blocking(process.stdin.fileno(), False)
            self._selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()

    @property
    def is_open(self) -> bool:
        """Whether more output may come."""
        return bool(self._selector.get_map())

    @property
    def is_full(self) -> bool:
        """Whether stdout is above the limit."""
        return len(self.out) > self._limit

    def move(self, wait_s: float) -> bool:
        """Wait up to `wait_s` seconds, and move a piece through each ready pipe. Return whether a pipe was ready."""
        ready = self._selector.select(wait_s) if self.is_open else []
        for key, _ in ready:
            if key.data is None:
                self._write(key.fd)
            elif piece := os.read(key.fd, _PIECE):
                key.data.extend(piece)
            else:
                self._selector.unregister(key.fileobj)
        del self.err[:-MAX_SAID]
        return bool(ready)

    def drain(self) -> None:
        """Read the rest of the output, up to a limit, since background processes may continue to write."""
        for _ in range(_MAX_PIECES_LEFT):
            if self.is_full or not self.move(0.0):
                break

    def _write(self, fd: int) -> None:
        assert self._process.stdin is not None
        try:
            self._unsent = self._unsent[os.write(fd, self._unsent[:_PIECE]) :]
        except BrokenPipeError:  # a command need not read all of its input
            self._unsent = self._unsent[:0]
        if not self._unsent:
            self._selector.unregister(self._process.stdin)
            self._process.stdin.close()

    def close(self) -> None:
        """Close the pipes."""
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to the process, unless it was waited for, and to its group."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _environ(call: Call) -> dict[str, str]:
    """Return our environment without secrets, and with the variables of the call."""
    given = {
        "EASQ_PATH": call.path,
        "EASQ_QUERY": urlencode(call.query),
        "EASQ_CONTENT_TYPE": call.content_type,
    }
    return (
        child_environ(os.environ)
        | {name: value for name, value in given.items() if value}
        | dict(call.environ)
    )
