"""Runs of `easq` forked from a process that has imported it: real processes, without a quarter second of imports each.

A run has its own arguments, environment, folder and files. Only what Python reads while it starts (PYTHON*, LANG, LC_*)
is the parent's, so runs with other values of these have to be started the long way.

    python -m tests.support.forks FD      answers requests on the socket FD until it is closed
"""

from __future__ import annotations

import fcntl
import importlib
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

#: what most commands import
_PRELOADED = (
    *("easq.cli.main", "easq.cli.items", "easq.client.queue", "easq.net.http", "easq.client.watch"),
    *(
        "easq.predict.exchanges",
        "easq.render.printer",
        "easq.render.rows",
        "easq.protocol.replies",
        "rich.table",
    ),
)
#: a request has at most so many bytes
MOST_BYTES = 64 * 1024


class Forks:
    """Asks for runs; from one thread at a time."""

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forks", str(theirs.fileno())],
                env=dict(environ),
                pass_fds=[theirs.fileno()],
                cwd=folder,
            )

    def close(self) -> None:
        """No run is forked any more."""
        self._socket.close()
        self._process.wait()

    def run(
        self,
        args: Sequence[str | bytes],
        *,
        stdin: bytes,
        environ: Mapping[str, str],
        folder: Path,
        timeout_s: float,
    ) -> tuple[int, bytes, bytes]:
        """Status, stdout and stderr of `easq ARGS`; the status is negative for a signal, as subprocess tells it."""
        pipes = [os.pipe() for _ in range(4)]  # stdin, stdout, stderr, and what becomes of it
        self.start([pipes[0][0], *(write for _, write in pipes[1:])], args, environ=environ, folder=folder)
        told = _talk(pipes[0][1], [read for read, _ in pipes[1:]], stdin, timeout_s)
        return int(told[2].split()[1]), told[0], told[1]

    def start(
        self, handles: Sequence[int], args: Sequence[str | bytes], *, environ: Mapping[str, str], folder: Path
    ) -> None:
        """Starts `easq ARGS` with `handles` as its stdin, stdout and stderr, and closes them.

        A fourth one is told, in ASCII, its process id, and then its status. A stdin that is a terminal controls it.
        """
        request = json.dumps(
            {
                "args": [os.fsdecode(arg) for arg in args],
                "environ": dict(environ),
                "folder": str(folder),
            }
        ).encode(errors="surrogatepass")
        try:
            socket.send_fds(self._socket, [request], handles)
        finally:
            for handle in handles:
                os.close(handle)


def _talk(write: int, read: Sequence[int], data: bytes, timeout_s: float) -> list[bytes]:
    """Writes `data`, and reads each of `read` to its end. The run is killed when the time is over."""
    deadline = time.monotonic() + timeout_s
    got = {handle: bytearray() for handle in read}
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        # each is closed once: its number may be that of another thread's socket right after that
        ends = {
            handle: stack.enter_context(os.fdopen(handle, "wb" if handle == write else "rb", 0))
            for handle in (write, *read)
        }
        os.set_blocking(write, False)
        selector.register(write, selectors.EVENT_WRITE)
        for handle in read:
            selector.register(handle, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                if key.fd == write:
                    try:
                        data = data[os.write(write, data) :] if data else b""
                    except BrokenPipeError:
                        data = b""
                    if not data:
                        selector.unregister(write)
                        ends[write].close()
                elif piece := os.read(key.fd, 1 << 16):
                    got[key.fd] += piece
                else:
                    selector.unregister(key.fd)
            if time.monotonic() > deadline:
                os.kill(int(got[read[2]].split()[0]), signal.SIGKILL)
                raise AssertionError(f"still running after {timeout_s} s: {got}")
    return [bytes(got[handle]) for handle in read]


def serve(requests: socket.socket) -> None:
    """Forks a run for each request; returns in each of them, and when nobody asks any more."""
    for name in _PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, handles, _, _ = socket.recv_fds(requests, MOST_BYTES * 2, 4)
        if not data:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            if (run := os.fork()) == 0:
                os.close(handles[3])
                _become(json.loads(data.decode(errors="surrogatepass")), handles[:3])
            for handle in handles[:3]:
                os.close(handle)
            os.write(handles[3], b"%d " % run)
            _, status = os.waitpid(run, 0)
            os.write(handles[3], b"%d" % os.waitstatus_to_exitcode(status))
            os._exit(0)
        for handle in handles:
            os.close(handle)


def _become(request: Mapping[str, object], handles: Sequence[int]) -> None:
    """This process is `easq`: it does not come back."""
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
    os.chdir(str(request["folder"]))
    sys.argv = ["easq", *args]
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.BufferedReader(io.FileIO(0)) if number == 0 else io.BufferedWriter(io.FileIO(number, "w")),
            encoding=old.encoding,
            errors=old.errors,
            line_buffering=number == 2,
        )
        for number, old in enumerate((sys.stdin, sys.stdout, sys.stderr))
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    importlib.import_module("easq.cli.main").main()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
