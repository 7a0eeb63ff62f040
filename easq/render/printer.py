"""Output to stdout and stderr. No other module writes to them, and no other module uses rich.

Data goes to stdout, messages go to stderr. The caller flushes stdout: after `flush`, the operating system has all data,
and the printed items may be committed. A closed stdout raises OutputClosed; a closed stderr is ignored. On stderr,
secrets are masked and control characters escaped.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import IO, TYPE_CHECKING, TextIO

from easq.errors import EasqError, StorageError, UsageError
from easq.redact import MIN_SECRET, hide
from easq.render.payload import (
    MAX_CELL,
    MAX_SHOWN,
    as_text,
    cell,
    drives_terminal,
    escape,
    json_safe,
    one_line,
    shown,
)
from easq.render.progress import MAX_WIDTH, Progress

if TYPE_CHECKING:
    from easq.model import Frame

#: escape sequence: go to the start of the line, and clear it
_CLEAR = "\r\x1b[K"
_RED, _YELLOW, _DIM, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"

#: columns that the terminal's echo of two Ctrl-C (`^C^C`) takes
_ECHOED = 4


class OutputClosed(Exception):
    """Raised when stdout is closed."""


def _buffered(stream: TextIO | None) -> IO[bytes] | None:
    """Return a buffered binary stream for `stream`, which writes all bytes or raises; None if `stream` is closed.

    With PYTHONUNBUFFERED, `stream.buffer` is the raw file. A write to it may write only a part of the bytes: on a full
    disk, the rest would be lost without an error.
    """
    if stream is None:
        return None
    below: IO[bytes] = stream.buffer
    if isinstance(below, io.RawIOBase):
        return io.BufferedWriter(io.FileIO(below.fileno(), "w", closefd=False))
    return below


class Printer:
    """Writes the data and the messages of one command, in the format of `--output`."""

    def __init__(
        self,
        *,
        output: str = "text",
        quiet: bool = False,
        verbose: int = 0,
        color: str = "auto",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._out = _buffered(sys.stdout)
        self._err = _buffered(sys.stderr)
        self._secrets: set[str] = set()
        self._status = ""
        self.output, self.quiet, self.verbose, self.color = output, quiet, verbose, color

    # cached: each isatty() is a system call, and 20,000 lines made 20,000 of them
    @cached_property
    def out_is_terminal(self) -> bool:
        """Whether stdout is a terminal."""
        return self._out is not None and self._out.isatty()

    @cached_property
    def err_is_terminal(self) -> bool:
        """Whether stderr is a terminal."""
        return self._err is not None and self._err.isatty()

    # data, on stdout

    def write(self, data: bytes) -> None:
        """Write `data` to the buffer of stdout, unless the format is `none`."""
        if self.output != "none":
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self._out is None:
            raise OutputClosed
        if self._status and self.out_is_terminal:
            self.status("")
        try:
            self._out.write(data)
        except OSError as error:
            raise self.failed(error) from error

    def flush(self) -> None:
        """Flush stdout: afterwards the operating system has all data."""
        try:
            if self._out is not None:
                self._out.flush()
        except OSError as error:
            raise self.failed(error) from error

    def would_wait(self, size: int) -> bool:
        """Return whether a write of `size` bytes to stdout may block."""
        import select
        import stat

        if self._out is None or self.output == "none":
            return False
        fd = self._out.fileno()
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        return size > select.PIPE_BUF // 2 or not select.select((), (fd,), (), 0)[1]

    def lines(self, lines: Iterable[str]) -> None:
        """Print `lines` on stdout, escaped on a terminal, and flush."""
        from easq.render.rows import encode

        for line in lines:
            self.write(encode(one_line(line) if self.out_is_terminal else line) + b"\n")
        self.flush()

    def line(self, line: str) -> None:
        """Print `line` on stdout, escaped on a terminal, and flush."""
        self.lines((line,))

    def help(self, text: str, *, asked: bool = True) -> None:
        """Print help or the version, whatever `-o` is: on stdout if the user `asked` for it, otherwise on stderr."""
        if asked:
            self._write(text.encode() + b"\n")
            self.flush()
        else:
            self._say(text + "\n")

    def record(self, value: Mapping[str, object]) -> None:
        """Print `value` as one line of JSON."""
        self.write(_json(value).encode() + b"\n")

    def frame(self, number: int, frame: Frame, *, alone: bool = False, file: str | None = None) -> None:
        """Print one item. With `alone`, no newline follows a raw payload.

        If the payload was written to a file, `file` is its path.
        """
        from easq.render import rows

        if self.output == "json":
            record = rows.frame_record(number, frame)
            self.record(record if file is None else {**record, "encoding": None, "data": None, "file": file})
        elif self.output == "raw" and file is None:
            self.payload(frame.data if alone else frame.data + b"\n")
        elif self.output == "table":
            self.row(rows.frame_row(number, frame))
        else:
            self.write(rows.frame_line(number, frame, terminal=self.out_is_terminal, instead=file) + b"\n")

    def shows_whole(self, data: bytes) -> bool:
        """Return whether `frame` prints all of `data`: a table cuts it, and a terminal shows no binary data."""
        if self.output == "none":
            return False
        if self.output in ("json", "raw") or (self.output == "text" and not self.out_is_terminal):
            return True
        text = as_text(data)
        return text is not None and len(text) <= (MAX_CELL if self.output == "table" else MAX_SHOWN)

    def payload(self, data: bytes) -> None:
        """Print `data` unchanged, or escaped on a terminal.

        Raises UsageError with `-o raw` on a terminal, if the data has control characters.
        """
        if not self.out_is_terminal:
            self.write(data)
        elif self.output != "raw":
            self.write(shown(data).encode() + (b"\n" if data and not data.endswith(b"\n") else b""))
        elif drives_terminal(data):
            raise UsageError(
                "the payload holds control characters, which the terminal would obey",
                hint="redirect it (> FILE), or easq get --output-dir DIR",
            )
        else:
            self.write(data)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table: drawn on a terminal, else tab-separated with a header line."""
        if self.out_is_terminal:
            self.write(self._drawn(columns, rows).encode("utf-8", "backslashreplace"))
        else:
            self.header(columns)
            for row in rows:
                self.row(row)
        self.flush()

    def header(self, columns: Sequence[str]) -> None:
        """Print the header line of rows that follow one by one."""
        self.row(columns)

    def row(self, values: Sequence[str]) -> None:
        """Print one tab-separated row."""
        self.write("\t".join(cell(value) for value in values).encode("utf-8", "backslashreplace") + b"\n")

    # messages, on stderr

    def info(self, text: str) -> None:
        """Print `[INFO] text` on stderr, unless quiet or in JSON."""
        self.remark(f"[INFO] {text}")

    def remark(self, text: str) -> None:
        """Print `text` on stderr, unless quiet or in JSON."""
        if not self.quiet and self.output != "json":
            self._say(one_line(text) + "\n")

    def progress(self, total: int | None) -> Progress:
        """Return the progress bar of a run of `total` units; it draws on a terminal alone, unless quiet."""
        draw = self.status if self.shows_status else None
        return Progress(total, draw)

    def notice(self, text: str) -> None:
        """Print an event, such as a reconnect, on stderr, unless quiet."""
        if not self.quiet:
            self._say(self._paint(_DIM, one_line(f"[INFO] {text}")) + "\n")

    def warn(self, text: str) -> None:
        """Print a warning on stderr, also if quiet."""
        self._say(f"{self._paint(_YELLOW, 'easq: warning:')} {one_line(text)}\n")

    @property
    def shows_status(self) -> bool:
        """Whether a status line is shown: on a terminal that can rewrite a line, unless quiet."""
        return self.err_is_terminal and not self.quiet and self._environ.get("TERM", "dumb") != "dumb"

    def status(self, text: str) -> None:
        """Show `text` as the status line, below all other messages; an empty text removes the line."""
        if not self.shows_status or text == self._status:
            return
        shown = one_line(text)[: max(min(MAX_WIDTH, _columns(self._err) - _ECHOED), 0)]
        self._status = ""
        self._say(_CLEAR + self._paint(_DIM, shown) if shown else _CLEAR)
        self._status = text

    def summary(self, value: Mapping[str, object]) -> None:
        """Print the totals of a run in JSON on stderr, unless quiet."""
        if not self.quiet:
            self._say(_json({"summary": value}) + "\n")

    def log(self, line: str) -> None:
        """Print a line of a log on stderr, with control characters escaped."""
        self._say(one_line(line) + "\n")

    def ask(self, question: str) -> None:
        """Print a question on stderr; the answer is typed after it."""
        self._say(escape(question))

    def after_answer(self) -> None:
        """Begin a new line, after the user's answer ended without a newline."""
        self._say("\n")

    def trace(self, level: int, line: str) -> None:
        """Print a line about an exchange with the server, if `-v` was given at least `level` times."""
        if self.verbose >= level:
            self._say(self._paint(_DIM, one_line(line)) + "\n")

    def error(self, error: EasqError, *, prefix: str = "") -> None:
        """Print an error, and its hint on a second line; in JSON as one object."""
        if self.output == "json":
            self._say(_json({"error": error_record(error, prefix=prefix)}) + "\n")
            return
        self._say(f"{self._paint(_RED, 'easq:')} {one_line(prefix + error.message)}\n")
        if error.hint:
            self._say(f"{self._paint(_DIM, 'hint:')} {one_line(error.hint)}\n")

    def bug(self, error: BaseException) -> None:
        """Print one line about a bug of easq, or the traceback with EASQ_DEBUG."""
        if self._environ.get("EASQ_DEBUG"):
            import traceback

            self._say(escape("".join(traceback.format_exception(error))))
            return
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        self._say(f"easq: bug: {one_line(what)}; set EASQ_DEBUG=1 for the traceback\n")

    def hide(self, secret: str) -> None:
        """Mask `secret` in all further output on stderr."""
        if len(secret) >= MIN_SECRET:
            self._secrets.add(secret)

    def close(self) -> None:
        """Flush stdout. Raises OutputClosed."""
        self.flush()

    def abandon(self) -> None:
        """Discard all further output to stdout, also what Python would flush at its exit."""
        if sys.stdout is not None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        # last: dropping the stream writes out its buffer, and Python 3.13 prints an error if that fails
        self._out = None

    def failed(self, error: OSError) -> OutputClosed | StorageError:
        """Return the exception for a failed write to stdout, and discard all further output."""
        if isinstance(error, BrokenPipeError):
            return OutputClosed()
        self.abandon()
        return StorageError(f"cannot write to stdout: {error.strerror}")

    # private

    def _say(self, text: str) -> None:
        if self._err is None:
            return
        if self.out_is_terminal and self.err_is_terminal:
            self.flush()  # both streams share one terminal: keep the order of the output
        if self._status:
            self._status, text = "", _CLEAR + text
        text = hide(text, self._secrets, words=False)
        try:
            self._err.write(text.encode("utf-8", "backslashreplace"))
            self._err.flush()
        except OSError:
            self._err = None

    def _colored(self, stream: IO[bytes] | None) -> bool:
        """Whether colours are used: by --color, NO_COLOR, FORCE_COLOR, or on a terminal that has colours."""
        if self.color != "auto":
            return self.color == "always"
        if self._environ.get("NO_COLOR"):
            return False
        if self._environ.get("FORCE_COLOR"):
            return True
        return stream is not None and stream.isatty() and self._environ.get("TERM") != "dumb"

    def _paint(self, code: str, text: str) -> str:
        return f"{code}{text}{_PLAIN}" if self._colored(self._err) else text

    def _drawn(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(one_line(value)) for value in row))  # Text: rich would interpret [markup]
        colored, width = self._colored(self._out), self._environ.get("COLUMNS", "")
        console = Console(
            file=io.StringIO(),
            force_terminal=colored,
            no_color=not colored,
            width=int(width) if width.isascii() and width.isdigit() and int(width) else _columns(self._out),
            highlight=False,
        )
        with console.capture() as capture:
            console.print(table)
        return capture.get()


def error_record(error: EasqError, *, prefix: str = "") -> dict[str, object]:
    """Return the JSON record of an error; the HTTP status only if a server gave one."""
    return {
        "kind": error.kind,
        "exit": int(error.exit),
        "http_status": error.http_status,
        "message": prefix + error.message,
        "hint": error.hint,
    }


def _json(value: Mapping[str, object]) -> str:
    import json

    return json_safe(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _columns(stream: IO[bytes] | None) -> int:
    try:
        return os.get_terminal_size(stream.fileno() if stream else 1).columns or 80
    except OSError:
        return 80
