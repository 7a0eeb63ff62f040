"""A terminal for runs of easq: what a person would see on its screen, by pyte, a terminal emulator."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

from tests.support.forks import Run
from tests.support.waiting import PATIENCE_S

#: rows of the screen: nothing that a test prints scrolls away
ROWS = 500
#: rows that the program is told of
TOLD_ROWS = 24


class _Screen(pyte.Screen):
    """A screen that knows which of its rows are broken, and go on in the next."""

    def __init__(self, columns: int, rows: int) -> None:
        self.broken: set[int] = set()
        self._is_drawing = False
        super().__init__(columns, rows)

    def draw(self, data: str) -> None:
        self._is_drawing = True
        super().draw(data)
        self._is_drawing = False

    def linefeed(self) -> None:
        (self.broken.add if self._is_drawing else self.broken.discard)(self.cursor.y)
        super().linefeed()


class Terminal:
    """One run of easq on a terminal of `columns`; a context manager that leaves no process behind."""

    def __init__(
        self,
        args: Sequence[str | bytes],
        *,
        columns: int,
        environ: Mapping[str, str],
        folder: Path,
    ) -> None:
        self.raw = b""
        self._screen = _Screen(columns, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._main, side = os.openpty()
        self._size(columns)
        with open(side, "r+b", buffering=0) as file:
            self._run = Run(args, stdin=file, stdout=file, stderr=file, environ=environ, folder=folder)
        self.pid = self._run.pid

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._main)  # a run that goes on is hung up
        self._run.wait()

    def resize(self, columns: int) -> None:
        """The window is as wide from now on, and the program told (SIGWINCH)."""
        self._screen.resize(columns=columns)
        self._size(columns)

    def send(self, text: bytes) -> None:
        """`text` is typed."""
        os.write(self._main, text)

    def until(self, shows: Callable[[str], object]) -> None:
        """The screen is such that `shows(text)` is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not shows(self.text):
            assert self._read(deadline), f"ended, or took too long; the screen shows:\n{self.text}"

    def finish(self) -> int:
        """The exit status, once all output was read."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        if time.monotonic() > deadline:
            self._run.kill()
        return self._run.wait()

    @property
    def rows(self) -> list[str]:
        """The rows of the screen down to the last one with text, without trailing blanks."""
        rows = [row.rstrip() for row in self._screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    @property
    def text(self) -> str:
        """The lines on the screen, without the blanks at their ends."""
        broken = self._screen.broken
        rows = self._screen.display[: len(self.rows)]
        joined = "".join(row if number in broken else f"{row}\n" for number, row in enumerate(rows))
        return re.sub(" +\n", "\n", joined)

    def _size(self, columns: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", TOLD_ROWS, columns, 0, 0))

    def _read(self, deadline: float) -> bool:
        """Whether something more came, and is on the screen."""
        if not select.select((self._main,), (), (), max(deadline - time.monotonic(), 0.0))[0]:
            return False
        try:
            data = os.read(self._main, 65536)
        except OSError:  # nobody holds the other side any more
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)


#: what stands for a control character where one was escaped
LITERAL_ESCAPE = re.compile(r"\\(?:[nrt]|x[0-9a-f]{2}|u[0-9a-f]{4})|\^\[|\x1b")
