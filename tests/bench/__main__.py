"""`python -m tests.bench`: every comparison in one go, several rounds in turns; medians of ratios, their spread.

The table of docs/performance.md goes to stdout, progress to stderr, and with `--json FILE` the figures of every round
to a file. All of it takes about ten minutes; `--only` and `--rounds 1` with small counts take seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench import many, serving, stall, startup, working
from tests.bench.comparison import Result
from tests.bench.world import Sizes, World

COMPARISONS = (
    *startup.COMPARISONS,
    *many.COMPARISONS,
    *working.COMPARISONS,
    *serving.COMPARISONS,
    *stall.COMPARISONS,
)


def measure(world: World, results: Sequence[Result], rounds: int) -> None:
    """Each round measures every comparison, one side right after the other, the first one changing by round."""
    for number in range(rounds):
        for result in results:
            wanted = result.comparison
            result.measure(world, ours_first=number % 2 == 0)
            print(
                f"round {number + 1}: {wanted.name}: {result.ours[-1]:.4g} against {result.theirs[-1]:.4g} "
                f"{wanted.unit}: {result.values[-1]:.3g}",
                file=sys.stderr,
            )


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", help="comparisons whose name holds this text; repeatable")
    parser.add_argument("--json", type=Path, help="file for the figures of all rounds")
    parser.add_argument("--items", type=int, default=50_000, help="of a bulk put, a watch or a predict")
    parser.add_argument("--loop-items", type=int, default=3_000, help="of a loop over the official SDK")
    parser.add_argument("--operations", type=int, default=300, help="of one kind, one after the other")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="items in the deep queue")
    parser.add_argument("--watchers", type=int, default=1_000, help="that are idle")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a run of wrk")
    asked = parser.parse_args()
    only = asked.only or [""]
    results = [Result(one) for one in COMPARISONS if any(text in one.name for text in only)]
    if not results:
        parser.error(f"no comparison has {' or '.join(map(repr, only))} in its name")
    began = time.strftime("%Y-%m-%d")
    sizes = Sizes(
        asked.items, asked.loop_items, asked.operations, asked.backlog, asked.watchers, asked.seconds
    )
    queues = 1 + asked.rounds * sum(result.comparison.queues for result in results)
    with tempfile.TemporaryDirectory() as folder:
        with World(Path(folder), sizes, queues=queues) as world:
            world.queue()  # the first one is the one for single puts
            measure(world, results, asked.rounds)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{began}, {machine}, {asked.rounds} rounds, load {os.getloadavg()[0]:.1f}\n")
    print("| | easq | measured against | | median (spread) | wanted | reached |")
    print("|---|---|---|---|---|---|---|")
    for result in results:
        print(result.row())
    if asked.json is not None:
        record: dict[str, object] = {"date": began, "machine": machine, "rounds": asked.rounds, **vars(sizes)}
        record["comparisons"] = [result.record() for result in results]
        asked.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
