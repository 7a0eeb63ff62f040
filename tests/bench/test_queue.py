"""The figures of a load test, and the conditions of --fail-if."""

from __future__ import annotations

import pytest

from easq.bench.conditions import read_condition
from easq.bench.load import Samples, percentile
from easq.errors import QueueFull, Unreachable


def samples(*latencies: float, errors: int = 0) -> Samples:
    found = Samples()
    for number, latency in enumerate(latencies):
        found.good(float(number), number + latency, 10)
    for _ in range(errors):
        found.bad(QueueFull("full"), 0.0, 1.0)
    return found


def test_a_percentile_is_a_latency_that_was_measured() -> None:
    hundred = [float(number) for number in range(1, 101)]
    found = [percentile(hundred, share) for share in (0.001, 0.5, 0.9, 0.99, 0.999)]
    assert found == [1.0, 50.0, 90.0, 99.0, 100.0]
    assert percentile([7.0], 0.5) == 7.0
    assert percentile([], 0.5) is None


def test_the_figures() -> None:
    found = samples(0.5, 0.25, 0.25, 1.0, errors=1)
    found.bad(Unreachable("lost"), 0.0, 1.0)
    assert found.record() == {
        "requests": 6, "succeeded": 4, "failed": 2, "retried": 0, "seconds": 4.0, "throughput": 1.0,
        "bytes_per_second": 10, "min_ms": 250.0, "mean_ms": 500.0, "p50_ms": 250.0, "p90_ms": 1000.0,
        "p99_ms": 1000.0, "p99_9_ms": 1000.0, "max_ms": 1000.0, "error_queue_full": 1, "error_unreachable": 1,
    }  # fmt: skip
    assert isinstance(found.first_error, QueueFull)


def test_of_nothing_there_are_no_latencies() -> None:
    record = samples().record()
    assert (record["requests"], record["throughput"], record["p99_ms"]) == (0, 0.0, None)
    assert samples().histogram() == []


@pytest.mark.parametrize(
    "latencies", [[0.001], [0.001] * 5, [0.001, 0.1, 0.5], [0.0, 0.0], [n / 1000 for n in range(1, 500)]]
)
def test_a_histogram_counts_every_latency_once(latencies: list[float]) -> None:
    bars = samples(*latencies).histogram()
    assert sum(count for _, count in bars) == len(latencies)
    bounds = [bound for bound, _ in bars]
    assert bounds == sorted(bounds)
    assert len(bars) == (12 if len(set(latencies)) > 1 else 1)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("p50>250ms", False),
        ("p50>=250ms", True),
        ("p50<=0.25s", True),
        ("p50=250ms", True),
        (" p99.9 > 999999us ", True),
        ("p99_9>1s", False),
        ("min<1ms", False),
        ("mean>499ms", True),
        ("max<1s", False),
        ("throughput<2", True),
        ("throughput<1.5/s", True),
        ("throughput>1/s", False),
        ("errors>0", True),
        ("errors==1", True),
        ("errors>20%", False),
        ("errors>=20%", True),
    ],
)
def test_a_condition_holds_or_not(text: str, holds: bool) -> None:
    record = samples(0.5, 0.25, 0.25, 1.0, errors=1).record()
    assert read_condition(text).holds(record) == holds


def test_a_condition_says_what_was_found() -> None:
    record = samples(0.5, 0.25, 0.25, 1.0, errors=1).record()
    told = [
        read_condition(text).told(record) for text in ("p99>5ms", "throughput<2/s", "errors>1%", "errors>0")
    ]
    assert told == [
        "p99>5ms holds: p99 is 1s",
        "throughput<2/s holds: throughput is 1/s",
        "errors>1% holds: errors is 20%",
        "errors>0 holds: errors is 1",
    ]


def test_what_nothing_was_measured_of_is_not_fine() -> None:
    record = samples(errors=1).record()
    assert read_condition("p99>1h").holds(record)
    assert read_condition("p99>1h").told(record) == "p99>1h holds: p99 is not known"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("p99>50", "'50' has no unit: write 50ms or 50s"),
        ("p98>5ms", "'p98' is none of min, mean, p50"),
        ("p99!5ms", "is not METRIC OP VALUE"),
        ("p99>", "is not METRIC OP VALUE"),
        (">5ms", "is not METRIC OP VALUE"),
        ("", "is not METRIC OP VALUE"),
        ("p99>-5ms", "a duration is not negative"),
        ("p99>5 parsecs", "not a duration"),
        ("p99>>5ms", "not a duration"),
        ("throughput<5ms", "'5ms' is no number for throughput"),
        ("throughput<50%", "'50%' is no number for throughput"),
        ("errors>1/s", "'1/s' is no number for errors"),
        ("errors>nan", "'nan' is no number for errors"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_condition(text)
    assert complaint in str(caught.value)
