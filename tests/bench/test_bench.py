"""The tool that measures: what it makes of figures, and that a quick run of one row prints the README's table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.comparison import Comparison, Result, alone
from tests.bench.deep import fill
from tests.conftest import Serve
from tests.support.process import ROOT


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
