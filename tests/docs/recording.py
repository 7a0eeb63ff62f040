"""`python -m tests.docs.recording FILE.svg`: record a terminal session, from a real run, as a picture.

A shell on a pseudo-terminal runs `COMMANDS` one after the other in the home of a new user, with a service of its own;
pyte reads the screen. What differs from run to run (request ids, times) is in the picture as it was in that run.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import pyte
from pyte.screens import Char

from tests.support.documents import PATIENCE_S, make_home
from tests.support.redis import free_port

COLUMNS, ROWS = 92, 60
PROMPT = "$ "
COMMANDS = (
    "easq serve --quiet > serve.log & until easq wait --ready -q; do :; done",
    "easq put -d 'a picture of a red fox'",
    "easq get -o raw; echo",
    "easq work -q -- tr a-z A-Z &",
    "easq wait --empty",
    "easq predict -d 'a picture of a blue bird'",
    "easq info --field meta.durability",
)
#: commands that prepare the session and are not in the picture
HIDDEN = 1

_COLORS = {
    "default": "#d8dee9", "black": "#4c566a", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b",
    "yellow": "#e5c07b", "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#d8dee9",
}  # fmt: skip


def record(commands: Sequence[str], home: Path, environ: dict[str, str]) -> list[list[Char]]:
    """Return the rows of the screen after `commands` ran, one list of cells per row."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execvpe("bash", ["bash", "--norc", "--noediting", "+m"], environ)
    try:
        _read_until_prompt(terminal, screen, stream)
        for at, command in enumerate(commands):
            if at == HIDDEN:
                screen.reset()
                stream.feed(PROMPT.encode())
            os.write(terminal, command.encode() + b"\n")
            _read_until_prompt(terminal, screen, stream)
    finally:
        os.killpg(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGHUP)
        os.waitpid(pid, 0)
        os.close(terminal)
    rows = [[screen.buffer[y][x] for x in range(COLUMNS)] for y in range(ROWS)]
    texts = ["".join(cell.data for cell in row).rstrip() for row in rows]
    last = max(at for at, text in enumerate(texts) if text not in ("", PROMPT.strip()))
    return rows[: last + 1]


def _read_until_prompt(terminal: int, screen: pyte.Screen, stream: pyte.ByteStream) -> None:
    until = time.monotonic() + PATIENCE_S
    quiet = 0
    while quiet < 3:
        if time.monotonic() > until:
            raise TimeoutError("\n".join(screen.display))
        ready, _, _ = select.select([terminal], [], [], 0.1)
        if ready:
            stream.feed(os.read(terminal, 65536))
            quiet = 0
        elif screen.display[screen.cursor.y][: screen.cursor.x] == PROMPT:
            quiet += 1


def draw(rows: Sequence[Sequence[Char]]) -> str:
    """Return the rows as an SVG that names no font file and no other host."""
    width, height, line = COLUMNS * 8 + 32, len(rows) * 19 + 52, []
    for y, row in enumerate(rows):
        at = 0
        for (color, bold), group in groupby(row, key=lambda cell: (cell.fg, cell.bold)):
            text = "".join(cell.data for cell in group)
            if text.strip():
                weight = ' font-weight="bold"' if bold else ""
                fill = _COLORS.get(
                    color, f"#{color}" if re.fullmatch("[0-9a-f]{6}", color) else _COLORS["default"]
                )
                line.append(
                    f'<text x="{16 + at * 8}" y="{52 + y * 19}" fill="{fill}"{weight} xml:space="preserve" '
                    f'textLength="{len(text.rstrip()) * 8}">{escape(text.rstrip())}</text>'
                )
            at += len(text)
    dots = "".join(f'<circle cx="{20 + 18 * at}" cy="18" r="6" fill="#4c566a"/>' for at in range(3))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13.3" role="img">\n'
        "<title>A terminal session with easq</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#22272e"/>{dots}\n'
        + "\n".join(line)
        + "\n</svg>\n"
    )


def main() -> None:
    """Record the session into the file that the command line names."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        environ = make_home(home) | {
            "TERM": "xterm-256color",
            "PS1": PROMPT,
            "BASH_SILENCE_DEPRECATION_WARNING": "1",
        }
        port = str(free_port())
        environ["EASQ_URL"] = f"http://127.0.0.1:{port}/api/predict/qservice"
        commands = [COMMANDS[0].replace("serve", f"serve --port {port}", 1), *COMMANDS[1:]]
        rows = record(commands, home, environ)
    Path(sys.argv[1]).write_text(draw(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
