"""Conditions on the figures of a load test: the values of `--fail-if`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from easq.protocol.durations import format_duration, parse_duration

_CONDITION = re.compile(r"\s*([a-z][a-z0-9._]*)\s*(<=|>=|==|=|<|>)\s*(\S.*?)\s*")
_LATENCIES = ("min", "mean", "p50", "p90", "p99", "p99.9", "max")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True)
class FigureCondition:
    """A condition on a metric: the comparison with a value in the metric's unit."""

    text: str
    metric: str
    sign: str
    value: float
    percent: bool = False

    def holds(self, record: dict[str, object]) -> bool:
        """Return whether the condition holds for the figures; True if the metric was not measured."""
        found = self._found(record)
        if found is None:
            return True
        return {
            "<": found < self.value,
            "<=": found <= self.value,
            ">": found > self.value,
            ">=": found >= self.value,
            "=": found == self.value,
        }[self.sign]

    def told(self, record: dict[str, object]) -> str:
        """Return the condition and the value of its metric as text."""
        found = self._found(record)
        if found is None:
            shown = "not known"
        elif self.metric in _LATENCIES:
            shown = format_duration(found)
        else:
            shown = f"{found:g}{'%' if self.percent else '/s' if self.metric == 'throughput' else ''}"
        return f"{self.text} holds: {self.metric} is {shown}"

    def _found(self, record: dict[str, object]) -> float | None:
        if self.metric in _LATENCIES:
            value = record[f"{self.metric.replace('.', '_')}_ms"]
            return None if value is None else float(str(value)) / 1000
        if self.metric == "throughput":
            return float(str(record["throughput"]))
        failed, requests = int(str(record["failed"])), int(str(record["requests"]))
        if not self.percent:
            return float(failed)
        return 100 * failed / requests if requests else None


def read_condition(text: str) -> FigureCondition:
    """Return the condition in `text`: `p99>50ms`, `throughput<5000/s`, `errors>0`, `errors>=1%`.

    Raises ValueError for anything else.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not METRIC OP VALUE, as in 'p99>50ms'")
    metric, sign, value = match[1].replace("p99_9", "p99.9"), match[2].replace("==", "="), match[3]
    if metric in _LATENCIES:
        if _NUMBER.fullmatch(value):
            raise ValueError(f"{value!r} has no unit: write {value}ms or {value}s")
        return FigureCondition(text, metric, sign, parse_duration(value))
    if metric == "throughput":
        number, percent = value.removesuffix("/s").rstrip(), False
    elif metric == "errors":
        number, percent = value.removesuffix("%").rstrip(), value.endswith("%")
    else:
        raise ValueError(f"{metric!r} is none of {', '.join((*_LATENCIES, 'throughput', 'errors'))}")
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"{value!r} is no number for {metric}")
    return FigureCondition(text, metric, sign, float(number), percent)
