"""Documents that are run: the fenced blocks of a Markdown file, and what their commands print."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
#: seconds after which a command of a document is taken for one that hangs
PATIENCE_S = 120.0
_SEPARATOR = "@@ next command @@"

#: what differs from run to run, as text in a document and as pattern in an output
VOLATILE = (
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",  # a request id
    r"\b[0-9]{13}\b",  # Unix time in ms
    r"\b[0-9]+(?:\.[0-9]+)?(?:ns|µs|ms)\b",  # a Go duration
    r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(?:\.[0-9]+)?Z",  # a time of day
    r'"p_[01]":[01]\.[0-9]{1,6}',  # a probability: releases of scikit-learn differ a little
)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and the line of the file at which it begins."""

    language: str
    text: str
    line: int


def read_blocks(document: str) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    return [Block(one[1], one[2], document.count("\n", 0, one.start()) + 1) for one in found]


def blocks_of(document: str, language: str) -> list[str]:
    """Return the text of the blocks of one language, in order."""
    return [block.text for block in read_blocks(document) if block.language == language]


def output_pattern(shown: str) -> re.Pattern[str]:
    """Return what an output has to match that a document shows as `shown`."""
    pieces = re.split(f"({'|'.join(VOLATILE)})", shown)
    kinds = [next((kind for kind in VOLATILE if re.fullmatch(kind, piece)), None) for piece in pieces]
    return re.compile("".join(kind or re.escape(piece) for kind, piece in zip(kinds, pieces, strict=True)))


def commands_of(block: str) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with the output that is shown below it.

    A command begins with `$ `; lines that begin with `> ` continue it.
    """
    pieces = re.split(r"^\$ ", block, flags=re.MULTILINE)
    assert pieces[0] == "", f"a console block begins with a command: {pieces[0]!r}"
    found = []
    for piece in pieces[1:]:
        command, _, shown = piece.partition("\n")
        while shown.startswith("> "):
            more, _, shown = shown.removeprefix("> ").partition("\n")
            command += f"\n{more}"
        found.append((command, shown))
    return found


def make_home(folder: Path) -> dict[str, str]:
    """Make `folder` the home of a user who has nothing of easq yet; return that user's environment.

    `easq` and `python` on its PATH are those of this interpreter, and `tests/` is the one of this checkout.
    """
    (folder / "bin").mkdir()
    for name, program in (("easq", f'"{sys.executable}" -m easq'), ("python", f'"{sys.executable}"')):
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
        path.chmod(0o755)
    (folder / "tests").symlink_to(ROOT / "tests")
    return {
        "HOME": str(folder),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
    }


def check_block(block: str, home: Path, environ: Mapping[str, str]) -> None:
    """Run the commands of a console block in one shell; fail where one does not print what stands below it."""
    commands = commands_of(block)
    script = "\n".join(f"{command}\necho '{_SEPARATOR}'" for command, _ in commands)
    with subprocess.Popen(
        ["bash", "-c", script],
        env=environ,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            said, _ = shell.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)  # and what it left in the background
            raise
    outputs = said.split(f"{_SEPARATOR}\n")
    for (command, shown), output in zip(commands, outputs, strict=False):
        assert output_pattern(shown).fullmatch(output), f"$ {command}\nshown:\n{shown}\ngiven:\n{output}"
