"""Runs of `easq` forked from a process that has imported it: real processes, without a quarter second of imports each.

A run has its own arguments, environment, folder and files. Only what Python reads while it starts (PYTHON*, LANG, LC_*)
is the parent's, PYTHONUNBUFFERED excepted, so runs with other values of these have to be started the long way.

    python -m tests.support.forks FD      answers requests on the socket FD until it is closed
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NoReturn, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
#: a request has at most so many bytes
MOST_BYTES = 64 * 1024
#: seconds until a test gives up on a run; none waits that long unless it fails
DEADLINE_S = 90.0
#: what Python reads of the environment while it starts
READ_AT_START = ("PYTHON", "LANG", "LC_", "LANGUAGE")

#: as in subprocess: an open file, its number, PIPE, DEVNULL or STDOUT
File: TypeAlias = IO[bytes] | int


class Forks:
    """One such parent, and the socket on which it is asked."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environ = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "LANG": "C.UTF-8"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forks", str(theirs.fileno())],
                env={"PATH": os.environ["PATH"], **environ},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=tempfile.gettempdir(),
            )

    def close(self) -> None:
        """Fork no more runs; those that are going on are left alone."""
        self._socket.close()
        self._process.wait()

    def start(
        self,
        args: Sequence[str | bytes],
        handles: Sequence[int],
        *,
        environ: Mapping[str, str],
        folder: Path | None = None,
    ) -> None:
        """Start `easq ARGS` with copies of `handles` as its stdin, stdout and stderr.

        To a fourth one its process id is written, and then its status, each as a line. A stdin that is a terminal
        controls the run.
        """
        request = {
            "args": [os.fsdecode(arg) for arg in args],
            "environ": dict(environ),
            "folder": str(folder or Path.cwd()),
            "umask": os.umask(0o077),
        }
        os.umask(request["umask"])
        socket.send_fds(self._socket, [json.dumps(request).encode(errors="surrogatepass")], handles)


@functools.cache
def forks() -> Forks:
    """Return the one of this process."""
    made = Forks()
    atexit.register(made.close)
    return made


def can_fork(environ: Mapping[str, str], started: Mapping[str, str]) -> bool:
    """Whether nothing that Python reads at its start differs between `environ` and what is `started` with."""
    return not any(
        name.startswith(READ_AT_START) and name != "PYTHONUNBUFFERED" and value != started.get(name)
        for name, value in environ.items()
    )


class Run:
    """A forked run, with the methods of `subprocess.Popen`. It does not outlive a test that fails."""

    def __init__(
        self,
        args: Sequence[str | bytes],
        *,
        stdin: File = subprocess.DEVNULL,
        stdout: File = subprocess.PIPE,
        stderr: File = subprocess.PIPE,
        environ: Mapping[str, str],
        folder: Path | None = None,
    ) -> None:
        self.args = args
        self.returncode: int | None = None
        theirs: list[int] = []
        opened: list[int] = []
        self.stdin, self.stdout, self.stderr = (
            self._file(number, file, theirs, opened) for number, file in enumerate((stdin, stdout, stderr))
        )
        told, tell = os.pipe()
        try:
            forks().start(args, [*theirs, tell], environ=environ, folder=folder)
        finally:
            for handle in (*opened, tell):
                os.close(handle)
        self._told = os.fdopen(told, "rb")
        self.pid = int(self._told.readline())

    @staticmethod
    def _file(number: int, file: File, theirs: list[int], opened: list[int]) -> IO[bytes] | None:
        """Our end of the pipe, if there is one. Theirs is appended, and also to `opened` if it has to be closed."""
        ours = None
        if file == subprocess.PIPE:
            ends = os.pipe()
            handle, mine = ends if number == 0 else ends[::-1]
            ours = os.fdopen(mine, "wb" if number == 0 else "rb")
            opened.append(handle)
        elif file == subprocess.DEVNULL:
            handle = os.open(os.devnull, os.O_RDWR)
            opened.append(handle)
        elif file == subprocess.STDOUT:
            handle = theirs[1]
        else:
            handle = file if isinstance(file, int) else file.fileno()
        theirs.append(handle)
        return ours

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        for ours in (self.stdout, self.stderr, self.stdin):
            if ours is not None:
                try:
                    ours.close()
                except BrokenPipeError:
                    pass
        self.wait()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        return self._status(0.0)

    def wait(self, timeout: float = DEADLINE_S) -> int:
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self._command, timeout)
        return status

    def communicate(
        self,
        input: bytes | None = None,
        timeout: float = DEADLINE_S,
    ) -> tuple[bytes, bytes]:
        """Write `input`, read both outputs to their ends and wait; the run is killed when the time is over."""
        deadline = time.monotonic() + timeout
        got = {ours: bytearray() for ours in (self.stdout, self.stderr) if ours and not ours.closed}
        with selectors.DefaultSelector() as selector:
            for ours in got:
                os.set_blocking(ours.fileno(), False)
                selector.register(ours, selectors.EVENT_READ)
                got[ours] += ours.read() or b""  # what is buffered shows on no selector
            if self.stdin is not None and not self.stdin.closed:
                self.stdin.flush()
                os.set_blocking(self.stdin.fileno(), False)
                selector.register(self.stdin, selectors.EVENT_WRITE)
            while selector.get_map():
                ready = selector.select(deadline - time.monotonic())
                if time.monotonic() > deadline:
                    self.kill()
                    raise subprocess.TimeoutExpired(self._command, timeout, *map(bytes, got.values()))
                for key, _ in ready:
                    if key.fileobj is self.stdin:
                        try:
                            input = input[os.write(key.fd, input) :] if input else b""
                        except BrokenPipeError:
                            input = b""
                        is_over = not input
                    else:
                        piece = key.fileobj.read()
                        got[key.fileobj] += piece or b""
                        is_over = piece == b""
                    if is_over:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()
        self.wait(max(0.0, deadline - time.monotonic()))
        return tuple(bytes(got.get(ours, b"")) for ours in (self.stdout, self.stderr))

    @property
    def _command(self) -> list[str | bytes]:
        return ["easq", *self.args]

    def _status(self, timeout: float) -> int | None:
        """The status, negative for a signal, once there is one within `timeout` seconds."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._told, selectors.EVENT_READ)
                if not selector.select(timeout):
                    return None
            self.returncode = int(self._told.readline())
            self._told.close()
        return self.returncode


def serve(requests: socket.socket) -> None:
    """Fork a run for each request, until nobody asks any more."""
    import easq

    for found in pkgutil.walk_packages(easq.__path__, "easq."):
        for value in vars(importlib.import_module(found.name)).values():
            if isinstance(value, random.Random):  # the standard library's own is seeded by itself
                os.register_at_fork(after_in_child=value.seed)
    gc.collect()
    gc.freeze()  # each run would copy the pages of what it looks at
    told: dict[int, int] = {}  # for each run that goes on, whom to tell its status
    wake, waken = os.pipe()
    for handle in (wake, waken):
        os.set_blocking(handle, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waken, warn_on_full_buffer=False)
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if wake in ready:
                os.read(wake, 4096)
                _tell(told)
            if requests.fileno() in ready:
                data, handles, _, _ = socket.recv_fds(requests, MOST_BYTES * 2, 4)
                if not data:
                    return
                if (run := os.fork()) == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    selector.close()
                    for handle in (requests.detach(), wake, waken, handles[3], *told.values()):
                        os.close(handle)
                    _become(json.loads(data.decode(errors="surrogatepass")), handles[:3])
                for handle in handles[:3]:
                    os.close(handle)
                os.write(handles[3], b"%d\n" % run)
                told[run] = handles[3]


def _tell(told: dict[int, int]) -> None:
    """Tell the status of each run that has ended."""
    while told:
        run, status = os.waitpid(-1, os.WNOHANG)
        if not run:
            return
        handle = told.pop(run)
        try:
            os.write(handle, b"%d\n" % os.waitstatus_to_exitcode(status))
        except BrokenPipeError:  # nobody wants to know
            pass
        os.close(handle)


def _become(request: Mapping[str, object], handles: Sequence[int]) -> NoReturn:
    """Be `easq`."""
    if os.isatty(handles[0]):
        os.setsid()
        fcntl.ioctl(handles[0], termios.TIOCSCTTY, 0)
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    environ, args = request["environ"], request["args"]
    assert isinstance(environ, dict)
    assert isinstance(args, list)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()
    os.chdir(str(request["folder"]))
    os.umask(int(str(request["umask"])))
    sys.argv = ["easq", *args]
    is_buffered = not environ.get("PYTHONUNBUFFERED")
    sys.stdin, sys.stdout, sys.stderr = (
        _standard(number, old, is_buffered=is_buffered)
        for number, old in enumerate((sys.stdin, sys.stdout, sys.stderr))
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    status = 1
    atexit.register(lambda: _leave(status))  # called last, once the threads have ended
    try:
        importlib.import_module("easq.__main__").main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    raise AssertionError("easq.__main__.main() returned")


def _standard(number: int, like: io.TextIOWrapper, *, is_buffered: bool) -> io.TextIOWrapper:
    """What Python makes of the file `number` at its start, in the encoding of another one."""
    mode, buffering = ("rb", -1) if number == 0 else ("wb", -1 if is_buffered else 0)
    made = os.fdopen(number, mode, buffering=buffering, closefd=False)
    return io.TextIOWrapper(
        made,
        encoding=like.encoding,
        errors=like.errors,
        newline="\n",
        line_buffering=is_buffered and (made.isatty() or number == 2),
        write_through=not is_buffered,
    )


def _leave(status: int) -> None:
    """End without taking everything apart, which takes longer than most runs; Python tells what cannot be flushed."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
    except Exception:
        return
    os._exit(status)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        serve(listening)
