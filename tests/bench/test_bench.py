"""The tool that measures: what it makes of figures, and that a quick run of one row prints the table of the docs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import instructions
from tests.bench.comparison import Comparison, Result, alone
from tests.bench.deep import fill
from tests.conftest import Serve
from tests.support.process import ROOT
from tests.support.tools import find_tool


def figures(wanted: Comparison, *pairs: tuple[float, float]) -> Result:
    return Result(wanted, [ours for ours, _ in pairs], [theirs for _, theirs in pairs])


@pytest.mark.parametrize(("least", "reached"), [(3.0, True), (3.1, False)])
def test_the_median_of_the_ratios_is_judged(least: float, reached: bool) -> None:
    wanted = Comparison("ours", "theirs", "items/s", lambda _: 0.0, lambda _: 0.0, least=least)
    result = figures(wanted, (300, 100), (100, 100), (1000, 10))
    assert result.values == [3.0, 1.0, 100.0]
    assert result.reached is reached
    assert result.row() == (
        f"| ours | 300 items/s | theirs | 100 items/s | 3 x (1-100) | >= {least:g} x | {'yes' if reached else 'no'} |"
    )
    assert (result.record()["median"], result.record()["theirs"]) == (3.0, [100, 100, 10])


def test_a_figure_of_ours_is_judged_alone() -> None:
    result = figures(Comparison("start", "", "s", lambda _: 0.0, most=3, judge=alone), (2.5, 0.0))
    assert result.row() == "| start | 2.5 s | - | - | 2.5 s (2.5-2.5) | <= 3 s | yes |"
    assert result.record()["theirs"] is None


def test_a_filled_file_is_what_puts_would_have_left(tmp_path: Path, serve: Serve) -> None:
    fill(tmp_path / "easq.db", {"a": 30, "b": 2}, 16)
    service = serve("--queue", "a", "--queue", "b", storage=f"sqlite:{tmp_path / 'easq.db'}")
    items = service.stream("a").get(_index_=0, _length_=100)
    assert [(item.index, item.data) for item in items] == [(n + 1, b"%-16d" % n) for n in range(30)]
    assert len({item.tags["requestId"] for item in items}) == 30
    assert service.stream("b").put() == 3


def test_a_quick_run_of_one_row(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    options = ("--rounds=1", "--only=easq --version", f"--json={file}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines()[2].startswith("| | easq | measured against |")
    assert done.stdout.splitlines()[4].startswith("| `easq --version` | ")
    (one,) = json.loads(file.read_text())["comparisons"]
    assert (one["name"], len(one["ours"]), one["unit"]) == ("`easq --version`", 1, "s")


# -- instructions ------------------------------------------------------------------------------------------------------


def test_the_totals_of_a_file_of_callgrind_are_read() -> None:
    assert (
        instructions.total("events: Ir\nfn=(1) main\n12 totals\n\nsummary: 7\ntotals: 845176007\n")
        == 845176007
    )
    with pytest.raises(ValueError, match="no totals"):
        instructions.total("events: Ir\n")


def test_a_row_is_selected_with_what_it_is_measured_against() -> None:
    found = instructions.selected(instructions.programs(2_000), ["SQLite storage, 2,000"])
    assert [one.name for one in found] == [
        "put, SQLite storage",
        "put, SQLite storage, 2,000 idle long polls",
    ]
    assert len(instructions.selected(instructions.programs(2_000), [])) == 7
    assert instructions.selected(instructions.programs(2_000), ["nothing"]) == []


def test_rows_are_judged_against_a_put_without_polls_and_against_the_base() -> None:
    measured = instructions.selected(instructions.programs(2_000), ["memory", "worked"])
    alone, polled, worked = (one.name for one in measured)
    found = instructions.rows(measured, {alone: 1000, polled: 1101, worked: 5000}, {alone: 970, polled: 1090})
    assert instructions.table(found).splitlines() == [
        "| | instructions an operation | measured against | ratio | wanted | reached |",
        "|---|---|---|---|---|---|",
        f"| {alone} | 1,000 | base: 970 | 1.031 x | <= 1.03 x | no |",
        f"| {polled} | 1,101 | without them: 1,000 | 1.101 x | <= 1.1 x | no |",
        f"| {polled} | 1,101 | base: 1,090 | 1.010 x | <= 1.03 x | yes |",
        f"| {worked} | 5,000 | - | - | - | - |",
    ]


@pytest.mark.parametrize("name", ["put, memory storage", "put, service on SQLite", "worked item"])
def test_a_program_that_is_counted_runs_to_its_end(name: str, tmp_path: Path) -> None:
    one = instructions.selected(instructions.programs(2_000), [name])[0]
    instructions.run_once(one, 3, 5, (), tmp_path)


@pytest.mark.long
def test_a_quick_count_of_one_row(tmp_path: Path) -> None:
    find_tool("valgrind")
    file = tmp_path / "figures.json"
    options = ("--only=put, memory", "--count=40", "--polls=20")
    command = [sys.executable, "-m", "tests.bench.instructions", *options]
    done = subprocess.run(
        [*command, f"--json={file}"], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert (done.returncode in {0, 1}, done.stdout.count("\n")) == (True, 6), done.stderr
    figures = json.loads(file.read_text())["instructions"]
    assert list(figures) == ["put, memory storage", "put, memory storage, 20 idle long polls"]
    assert all(20_000 < figure < 500_000 for figure in figures.values())
