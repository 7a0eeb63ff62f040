"""`python -m tests.bench`: every comparison in one go, several rounds in turns; medians of ratios, their spread.

The table goes to stdout, what is going on to stderr, and with `--json FILE` the figures of every round to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.comparisons import COMPARISONS, Comparison, World
from tests.support.sdk import ROOT, make_sdk


@dataclass
class Result:
    """The figures of one comparison, a pair a round."""

    comparison: Comparison
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def reached(self) -> bool:
        ratio, wanted = statistics.median(self.ratios), self.comparison
        return (wanted.least is None or ratio >= wanted.least) and (
            wanted.most is None or ratio <= wanted.most
        )

    def record(self) -> dict[str, object]:
        wanted = self.comparison
        return {
            "name": wanted.name,
            "against": wanted.against,
            "unit": wanted.unit,
            "ours": self.ours,
            "theirs": self.theirs,
            "ratios": self.ratios,
            "ratio_median": statistics.median(self.ratios),
            "ratio_min": min(self.ratios),
            "ratio_max": max(self.ratios),
            "at_least": wanted.least,
            "at_most": wanted.most,
            "reached": self.reached,
        }

    def row(self) -> str:
        wanted = self.comparison
        target = f">= {wanted.least:g}" if wanted.least is not None else f"<= {wanted.most:g}"
        ours, theirs = (f"{statistics.median(found):.4g}" for found in (self.ours, self.theirs))
        ratios = self.ratios
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        cells = (
            wanted.name, f"{ours} {wanted.unit}", wanted.against, f"{theirs} {wanted.unit}", spread, target,
            "yes" if self.reached else "no",
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"


def measure(world: World, results: Sequence[Result], rounds: int) -> None:
    """Each round measures every comparison, one side right after the other, the first one changing by round."""
    for number in range(rounds):
        for result in results:
            wanted = result.comparison
            sides = [(wanted.ours, result.ours), (wanted.theirs, result.theirs)]
            found: dict[int, list[float]] = {0: [], 1: []}
            for _ in range(wanted.repeats):
                for side in (0, 1) if number % 2 == 0 else (1, 0):
                    found[side].append(sides[side][0](world))
            for side in (0, 1):
                sides[side][1].append(statistics.median(found[side]))
            print(
                f"round {number + 1}: {wanted.name}: {result.ours[-1]:.4g} against {result.theirs[-1]:.4g} "
                f"{wanted.unit}, {result.ratios[-1]:.2f} x",
                file=sys.stderr,
            )


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=50_000, help="of a bulk put or a watch")
    parser.add_argument("--loop-items", type=int, default=3_000, help="of a loop over the official SDK")
    parser.add_argument("--only", default="", help="comparisons whose name holds this text")
    parser.add_argument("--json", type=Path, help="file for the figures of all rounds")
    asked = parser.parse_args()
    results = [Result(comparison) for comparison in COMPARISONS if asked.only in comparison.name]
    if not results:
        parser.error(f"no comparison has {asked.only!r} in its name")
    cache = ROOT / "build" / "bench"
    cache.mkdir(parents=True, exist_ok=True)
    sdk = make_sdk(cache)
    began = time.strftime("%Y-%m-%d")
    with tempfile.TemporaryDirectory() as folder:
        queues = 1 + 2 * asked.rounds * len(results)
        with World(Path(folder), sdk, items=asked.items, loop_items=asked.loop_items, queues=queues) as world:
            measure(world, results, asked.rounds)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{began}, {machine}, {asked.rounds} rounds, load {os.getloadavg()[0]:.1f}\n")
    print("| | easq | measured against | | ratio, median (spread) | wanted | reached |")
    print("|---|---|---|---|---|---|---|")
    for result in results:
        print(result.row())
    if asked.json is not None:
        record: dict[str, object] = {
            "date": began,
            "machine": machine,
            "rounds": asked.rounds,
            "items": asked.items,
        }
        record["comparisons"] = [result.record() for result in results]
        asked.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
