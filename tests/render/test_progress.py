"""The progress line of a long run."""

from __future__ import annotations

import pytest

from easq.render.progress import MAX_WIDTH, Progress, clock, fitting, line


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((12500, 0, 25, 100, 2.0), "[#-----] 25% 12,500 6,250/s ETA 0:06"),
        ((12500, 3, 100, 100, 2.0), "[#####] 100% 12,500 3 failed 6,250/s"),
        ((12_500_000, 0, 25, 100, 200.0), "25% 12,500,000 62,500/s ETA 10:00"),
        ((7, 0, 25, None, 125.0), "7 0/s 2:05"),
        ((7, 0, 0, 100, 7.0), "[--------------------] 0% 7 1/s"),
        ((7, 0, 200, 100, 7.0), "[##############] 100% 7 1/s ETA 0:00"),
    ],
)
def test_a_line(args: tuple[int, int, int, int | None, float], text: str) -> None:
    assert line(*args) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_it_is_drawn_past_a_second_not_too_often_and_taken_away() -> None:
    drawn: list[str] = []
    progress = Progress(100, drawn.append)
    for now in (10.0, 10.9, 11.0, 11.05, 11.2):
        progress.at(1, 0, 50, now=now)
    progress.end()
    assert drawn == [
        "[#######--------] 50% 1 1/s ETA 0:01",
        "[#######--------] 50% 1 1/s ETA 0:01",
        "",
    ]


def test_nothing_is_drawn_where_nobody_looks() -> None:
    progress = Progress(100, None)
    progress.at(1, 0, 50, now=0.0)
    progress.at(1, 0, 50, now=10.0)
    progress.end()


@pytest.mark.parametrize("done", [0, 7, 12_500, 10**9])
@pytest.mark.parametrize("failed", [0, 3, 10**8])
@pytest.mark.parametrize("total", [None, 100])
def test_no_line_is_too_long_to_be_cleared_in_40_columns(done: int, failed: int, total: int | None) -> None:
    assert len(line(done, failed, 33, total, 12345.0)) <= MAX_WIDTH


def test_what_does_not_fit_is_left_out_as_a_whole() -> None:
    assert fitting(["12 done", "x" * 29, "y"]) == "12 done"
    assert fitting(["a", "b"]) == "a b"
