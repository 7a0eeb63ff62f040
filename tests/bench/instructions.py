"""`python -m tests.bench.instructions`: instructions of a put and of a worked item, counted by valgrind's callgrind.

Two runs of a program differ only in how many operations they do, so their difference is the cost of the operations:
start-up and the arrival of long polls are in both. The kernel is not counted, nor is the client of the service. Two
measurements differ by less than 1 %, however busy the machine is.

The table goes to stdout, what is going on to stderr, and with `--json FILE` the figures to a file, which a later run
compares its own with (`--base FILE`). The exit code is 1 if a row does not reach what is wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench.stall import connect_polls
from tests.bench.world import SIZE
from tests.support.http import Connection
from tests.support.process import ROOT, Service

#: a put that has to pass by idle long polls may cost so many times one that has not
MOST_WITH_POLLS = 1.1
#: and any operation so many times what it did before
MOST_OF_BASE = 1.03
#: operations of the shorter run
_FEW = 100
#: runs at a time; what is counted does not depend on it
_AT_ONCE = min(2, os.cpu_count() or 1)
#: seconds that a run may take
_PATIENCE_S = 900.0


@dataclass(frozen=True)
class Program:
    """One program of `tests.bench.counted`, with or without long polls that wait meanwhile."""

    name: str
    program: str
    storage: str
    polls: int = 0
    beside: str = ""  #: the name of the same program without polls


@dataclass(frozen=True)
class Row:
    """What an operation costs, and what that is measured against, if anything."""

    name: str
    instructions: float
    against: str = ""
    theirs: float | None = None
    most: float = 0.0

    @property
    def ratio(self) -> float | None:
        return None if self.theirs is None else self.instructions / self.theirs

    @property
    def reached(self) -> bool:
        return self.ratio is None or self.ratio <= self.most

    def text(self) -> str:
        """Return the row as a line of the table."""
        figure = f"{self.instructions:,.0f}"
        if self.theirs is None:
            return f"| {self.name} | {figure} | - | - | - | - |"
        against = f"{self.against}: {self.theirs:,.0f}"
        reached = "yes" if self.reached else "no"
        return f"| {self.name} | {figure} | {against} | {self.ratio:.3f} x | <= {self.most:g} x | {reached} |"


def programs(polls: int) -> Sequence[Program]:
    """Return all programs, those without polls before those with them."""
    found = []
    for name, program, storage in (
        ("put, SQLite storage", "put", "sqlite"),
        ("put, memory storage", "put", "memory"),
        ("put, service on SQLite", "serve", "sqlite"),
    ):
        found.append(Program(name, program, storage))
        found.append(Program(f"{name}, {polls:,} idle long polls", program, storage, polls, beside=name))
    found.append(Program("worked item (push, put in the sink, commit), SQLite storage", "work", "sqlite"))
    return found


def selected(all_programs: Sequence[Program], only: Sequence[str]) -> Sequence[Program]:
    """Return the programs whose name holds one of the texts, and those that they are measured against."""
    chosen = [one for one in all_programs if any(text in one.name for text in only or [""])]
    besides = {one.beside for one in chosen}
    return [one for one in all_programs if one in chosen or one.name in besides]


def rows(
    measured: Sequence[Program], figures: Mapping[str, float], base: Mapping[str, float] | None = None
) -> list[Row]:
    """Return a row for each program, and a second one where it is compared with the base as well."""
    found = []
    for one in measured:
        figure = figures[one.name]
        before = (base or {}).get(one.name)
        if one.beside:
            found.append(Row(one.name, figure, "without them", figures[one.beside], MOST_WITH_POLLS))
        if before is not None:
            found.append(Row(one.name, figure, "base", before, MOST_OF_BASE))
        elif not one.beside:
            found.append(Row(one.name, figure))
    return found


def total(text: str) -> int:
    """Return the instructions of a whole run from the file that callgrind writes."""
    found = re.findall(r"^totals: (\d+)", text, re.MULTILINE)
    if not found:
        raise ValueError("callgrind wrote no totals: the program ended before its time")
    return sum(map(int, found))


def run_once(one: Program, count: int, items: int, under: Sequence[str], folder: Path) -> None:
    """Run the program with `count` operations to its end."""
    storage = "memory:" if one.storage == "memory" else f"sqlite:{folder / 'easq.db'}"
    if one.program == "serve":
        service = Service(folder, storage, (), "")
        service.under, service.program = under, ("tests.bench.counted",)
        service.patience_s = _PATIENCE_S
        with ExitStack() as stack:
            service.start()
            stack.callback(service.kill)
            stream = service.stream()
            if one.polls:
                connect_polls(stack, service, stream, one.polls)
            line = stack.enter_context(Connection(service.port))
            line.socket.settimeout(_PATIENCE_S)
            for _ in range(count):
                assert line.ask("POST", stream.target(), (), b"x" * SIZE).status == 200
            service.terminate()
        return
    options = ("--storage", storage, "--count", count, "--polls", one.polls, "--items", items)
    command = [*under, sys.executable, "-m", "tests.bench.counted", one.program, *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    if done.returncode:
        raise SystemExit(f"{one.name}: exit {done.returncode}: {done.stderr}")


def _count(one: Program, count: int, items: int) -> int:
    """Return the instructions of a run with `count` operations."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "callgrind.out"
        callgrind = ("valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}")
        run_once(one, count, items, ("env", "PYTHONHASHSEED=0", *callgrind), Path(name))
        found = total(out.read_text())
    print(f"{one.name}: {found:,} instructions with {count:,} operations", file=sys.stderr)
    return found


def measure(measured: Sequence[Program], count: int) -> dict[str, float]:
    """Return the instructions of one operation of each program."""
    few = min(_FEW, count // 2)
    for kind in dict.fromkeys((one.program, one.storage) for one in measured):
        with tempfile.TemporaryDirectory() as name:  # writes the byte code that all counted runs load
            run_once(Program("first run", *kind), 1, 1, (), Path(name))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        runs = [
            [pool.submit(_count, one, operations, count) for operations in (few, count)] for one in measured
        ]
        return {
            one.name: (many.result() - fewer.result()) / (count - few)
            for one, (fewer, many) in zip(measured, runs, strict=True)
        }


def table(found: Iterable[Row]) -> str:
    """Return the table of the rows."""
    head = "| | instructions an operation | measured against | ratio | wanted | reached |"
    return "\n".join([head, "|---|---|---|---|---|---|", *(row.text() for row in found)])


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.instructions", description=__doc__)
    parser.add_argument("--only", action="append", help="rows whose name holds this text; repeatable")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--base", type=Path, help="such a file of an earlier run, to compare with")
    parser.add_argument("--count", type=int, default=1_100, help="operations of the longer run")
    parser.add_argument("--polls", type=int, default=2_000, help="idle long polls")
    asked = parser.parse_args()
    if asked.count < 2:
        parser.error("--count: 2 or more")
    if shutil.which("valgrind") is None:
        parser.error("valgrind is missing (a Debian package)")
    measured = selected(programs(asked.polls), asked.only)
    if not measured:
        parser.error(f"no row has {' or '.join(map(repr, asked.only))} in its name")
    base = json.loads(asked.base.read_text())["instructions"] if asked.base is not None else None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection for each long poll
    began = time.strftime("%Y-%m-%d")
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    figures = measure(measured, asked.count)
    found = rows(measured, figures, base)
    print(f"{began}, {machine}, {asked.count:,} operations\n")
    print(table(found))
    if asked.json is not None:
        record = {"date": began, "machine": machine, "operations": asked.count, "instructions": figures}
        asked.json.write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(not all(row.reached for row in found))


if __name__ == "__main__":
    main()
