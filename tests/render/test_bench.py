"""The figures of a bench as text."""

from __future__ import annotations

from easq.render.bench import figure_lines, histogram_lines


def test_each_figure_has_its_unit() -> None:
    record = {
        "items": 10,
        "seconds": 61.5,
        "throughput": 2.04,
        "bytes_per_second": 2048,
        "size": 1024,
        "p50_ms": 1.5,
        "p99_9_ms": 2000,
        "p99_ms": None,
    }
    assert figure_lines(record) == [
        ("items", "10"),
        ("seconds", "1m1.5s"),
        ("throughput", "2.0/s"),
        ("bytes_per_second", "2.00 KiB/s"),
        ("size", "1.00 KiB"),
        ("p50", "1.5ms"),
        ("p99.9", "2s"),
    ]


def test_bars_are_relative_to_the_longest_and_a_count_is_never_invisible() -> None:
    lines = histogram_lines([(0.001, 1), (0.002, 1000), (0.004, 0)])
    assert [line.count("#") for line in lines] == [1, 40, 0]
    assert lines[0].startswith("          <= 1ms ")
    assert lines[1].endswith(" 1000")
    assert histogram_lines([]) == []
