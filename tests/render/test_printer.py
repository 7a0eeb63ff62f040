"""Output on a terminal: no text, whatever its source, can control the terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from easq.errors import EasqError
from easq.model import Frame
from easq.render.printer import Printer

#: clipboard, title, cursor, overwriting, 8-bit CSI, text direction, hidden text
EVIL = "\x1b]52;c;eA==\x07 \x1b[2J\r\x08 \x9b31m \u202e \u200b \x00"
ENVIRON = {"NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "1000"}


class _Terminal(io.BytesIO):
    """A stream that claims to be a terminal, and stores its output."""

    def isatty(self) -> bool:
        return True


def _told(monkeypatch: pytest.MonkeyPatch, say: Callable[[Printer], None], **options: str) -> str:
    """Return the output of `say` with a Printer, whose stdout and stderr are terminals."""
    streams = _Terminal(), _Terminal()
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, write_through=True))
    say(Printer(verbose=3, environ={**ENVIRON, **options}))
    told = b"".join(stream.getvalue() for stream in streams).decode()
    monkeypatch.undo()
    return told


@pytest.mark.parametrize(
    "say",
    [
        pytest.param(lambda p: p.lines([EVIL]), id="lines"),
        pytest.param(lambda p: p.line(EVIL), id="line"),
        pytest.param(
            lambda p: p.frame(0, Frame(1, {"requestId": EVIL, EVIL: EVIL}, EVIL.encode())), id="frame"
        ),
        pytest.param(lambda p: p.frame(0, Frame(1, {EVIL: EVIL}), file=EVIL), id="file name"),
        pytest.param(lambda p: p.table(["a"], [[EVIL]]), id="table"),
        pytest.param(lambda p: p.row([EVIL]), id="row"),
        pytest.param(lambda p: p.record({EVIL: EVIL}), id="record"),
        pytest.param(lambda p: p.info(EVIL), id="info"),
        pytest.param(lambda p: p.remark(EVIL), id="remark"),
        pytest.param(lambda p: p.notice(EVIL), id="notice"),
        pytest.param(lambda p: p.warn(EVIL), id="warn"),
        pytest.param(lambda p: p.summary({"a": EVIL}), id="summary"),
        pytest.param(lambda p: p.log(EVIL), id="log"),
        pytest.param(lambda p: p.ask(EVIL), id="ask"),
        pytest.param(lambda p: p.trace(1, EVIL), id="trace"),
        pytest.param(lambda p: p.error(EasqError(EVIL)), id="error"),
        pytest.param(lambda p: p.error(EasqError("a", hint=EVIL)), id="hint"),
        pytest.param(lambda p: p.error(EasqError("a"), prefix=EVIL), id="prefix"),
        pytest.param(lambda p: p.bug(ValueError(EVIL)), id="bug"),
    ],
)
def test_nothing_that_a_terminal_obeys_is_printed(
    monkeypatch: pytest.MonkeyPatch, say: Callable[[Printer], None]
) -> None:
    told = _told(monkeypatch, say)
    assert told.replace("\n", "").isprintable(), repr(told)
    assert "52;c;" in told  # it was said, escaped


def test_a_traceback_is_escaped_and_keeps_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    told = _told(monkeypatch, lambda printer: printer.bug(ValueError(EVIL)), EASQ_DEBUG="1")
    assert told.replace("\n", "").isprintable(), repr(told)


def test_the_line_that_changes_is_escaped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The only control sequence that reaches the terminal is the Printer's own, which clears the line."""
    told = _told(monkeypatch, lambda printer: printer.status(EVIL))
    assert told.replace("\r\x1b[K", "").isprintable(), repr(told)
    assert "52;c;" in told
