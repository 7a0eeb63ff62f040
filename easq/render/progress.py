"""The progress of a long run as one line of a terminal: counts, rate and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

#: seconds before the first drawing; a shorter run draws nothing
PATIENCE_S = 1.0
#: seconds between two drawings
_PERIOD_S = 0.1
_BAR, _MIN_BAR = 20, 4

#: maximum length of a status line, in characters. Some terminals wrap a line when they are made narrower, and a program
#: cannot detect that. The line and two echoed Ctrl-C fit into 40 columns, so it can always be cleared
MAX_WIDTH = 36


class Progress:
    """The progress line of a run, drawn after the first second. A context manager that removes the line at its end.

    It does not use rich.progress, which moves the cursor itself and so cannot share the terminal with Printer, cuts a
    narrow line with an ellipsis instead of leaving words out, and takes 50 ms to import, as long as click.

    The line is drawn only by calls of `at`. In tests, `now` replaces the clock.
    """

    def __init__(self, total: int | None, draw: Callable[[str], None] | None) -> None:
        """Prepare a bar. `total` has the unit of `position` in `at`; None if the total is not known."""
        self._total, self._draw = total, draw
        self._began: float | None = None
        self._next = 0.0

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def at(self, done: int, failed: int, position: int, *, now: float | None = None) -> None:
        """Draw the numbers of finished and failed items, and the `position` in the total."""
        if self._draw is None:
            return
        now = time.monotonic() if now is None else now
        if self._began is None:
            self._began = now
        elapsed_s = now - self._began
        if elapsed_s < PATIENCE_S or now < self._next:
            return
        self._next = now + _PERIOD_S
        self._draw(line(done, failed, position, self._total, elapsed_s))

    def end(self) -> None:
        """Remove the line."""
        if self._draw is not None:
            self._draw("")


def line(done: int, failed: int, position: int, total: int | None, elapsed_s: float) -> str:
    """Return `[##------] 25% 12,500 6,120/s ETA 0:06`, with `3 failed` after the number of items done."""
    words = [f"{done:,}"]
    if failed:
        words.append(f"{failed:,} failed")
    words.append(f"{done / elapsed_s:,.0f}/s")
    if not total:
        return fitting([*words, clock(elapsed_s)])
    share = min(position / total, 1.0)
    words.insert(0, f"{share:.0%}")
    if share:
        words.append(f"ETA {clock(elapsed_s * (1 - share) / share)}")
    text = fitting(words)
    width = min(MAX_WIDTH - len(text) - len("[] "), _BAR)
    if width < _MIN_BAR:
        return text
    filled = int(share * width)
    return f"[{'#' * filled}{'-' * (width - filled)}] {text}"


def fitting(words: Sequence[str]) -> str:
    """Return as many of the first `words` as fit into a status line, separated by blanks."""
    text = ""
    for word in words:
        longer = f"{text} {word}" if text else word
        if len(longer) > MAX_WIDTH:
            break
        text = longer
    return text


def clock(seconds: float) -> str:
    """Return `seconds` as `0:06` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
