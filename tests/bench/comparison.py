"""What a comparison is, and what its figures say."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.world import World


def ratio(ours: float, theirs: float) -> float:
    """How many times theirs."""
    return ours / theirs


def alone(ours: float, _theirs: float) -> float:
    """Our figure, which nothing is compared with."""
    return ours


@dataclass(frozen=True)
class Comparison:
    """`ours` and `theirs` give a figure in `unit`; what `judge` makes of the two is to be `least` or at `most`."""

    name: str
    against: str
    unit: str
    ours: Callable[[World], float]
    theirs: Callable[[World], float] | None = None
    least: float | None = None
    most: float | None = None
    judge: Callable[[float, float], float] = ratio
    wanted: str = ""  #: in words, where least and most do not say it
    queues: int = 0  #: of the service that one round uses up
    repeats: int = 1  #: measurements of one round, of which the median counts


@dataclass
class Result:
    """The figures of one comparison, a pair a round."""

    comparison: Comparison
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)  #: as many zeros where there is no other side

    @property
    def values(self) -> list[float]:
        """What is judged: ratios, as a rule."""
        judge = self.comparison.judge
        return [judge(ours, theirs) for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def reached(self) -> bool:
        value, wanted = statistics.median(self.values), self.comparison
        return (wanted.least is None or value >= wanted.least) and (
            wanted.most is None or value <= wanted.most
        )

    def measure(self, world: World, *, ours_first: bool) -> None:
        """One more round."""
        wanted = self.comparison
        sides = [(wanted.ours, self.ours), (wanted.theirs or (lambda _: 0.0), self.theirs)]
        found: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(wanted.repeats):
            for side in (0, 1) if ours_first else (1, 0):
                found[side].append(sides[side][0](world))
        for side in (0, 1):
            sides[side][1].append(statistics.median(found[side]))

    def record(self) -> dict[str, object]:
        wanted, values = self.comparison, self.values
        return {
            "name": wanted.name,
            "against": wanted.against or None,
            "unit": wanted.unit,
            "ours": self.ours,
            "theirs": self.theirs if wanted.theirs else None,
            "values": values,
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "at_least": wanted.least,
            "at_most": wanted.most,
            "reached": self.reached,
        }

    def row(self) -> str:
        """A line of the table of docs/performance.md."""
        wanted, values = self.comparison, self.values
        unit = " x" if wanted.judge is ratio else f" {wanted.unit}"
        limit = f">= {wanted.least:g}{unit}" if wanted.least is not None else f"<= {wanted.most:g}{unit}"
        ours, theirs = (
            f"{_shown(statistics.median(found))} {wanted.unit}" for found in (self.ours, self.theirs)
        )
        spread = f"{statistics.median(values):.3g}{unit} ({min(values):.3g}-{max(values):.3g})"
        cells = (
            wanted.name, ours, wanted.against or "-", theirs if wanted.theirs else "-", spread,
            wanted.wanted or limit, "yes" if self.reached else "no",
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"
