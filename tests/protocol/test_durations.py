import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from easq.protocol.durations import format_duration, format_duration_ms, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("5", 5),
        ("1.5", 1.5),
        ("5s", 5),
        ("1m", 60),
        ("1m30s", 90),
        ("1.5s", 1.5),
        ("90000ms", 90),
        ("1h30m", 5400),
        ("1m0s", 60),
        (".5s", 0.5),
        ("1.s", 1),
        ("1ns", 1e-9),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        ("401.892142ms", 0.401892142),
        ("1h1m1s1ms", 3661.001),
    ],
)
def test_reads_what_go_writes_and_bare_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " 5s",
        "5s ",
        "s",
        ".s",
        ".",
        "5x",
        "1e3s",
        "9e99h",
        "１s",
        "5 s",
        "+5s",
        "--5s",
        "5s-1s",
        "1" * 65,
    ],
)
def test_refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a duration: "):
        parse_duration(text)


@pytest.mark.parametrize("text", ["-1s", "-1", "-1m30s"])
def test_refuses_negative_durations_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=f"^a duration is not negative: '{text}'$"):
        parse_duration(text)


def test_a_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration("9" * 1_000_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.401892142, "401.892142ms"),
        (0.0000015, "1.5µs"),
        (0.000000007, "7ns"),
        (1, "1s"),
        (19.997, "19.997s"),
        (62.5, "1m2.5s"),
        (90, "1m30s"),
        (3600, "1h0m0s"),
        (360000.5, "100h0m0.5s"),
        (-1.5, "-1.5s"),
    ],
)
def test_writes_as_go_does(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_idle_is_rounded_to_the_millisecond() -> None:
    assert format_duration_ms(19.9968) == "19.997s"
    assert format_duration_ms(0.0004) == "0s"
    assert format_duration_ms(62.5001) == "1m2.5s"
    assert format_duration_ms(0.25) == "250ms"


@given(st.integers(0, 10**17))
@example(4_503_599_627_370_491)
def test_a_written_duration_is_read_back_unchanged(ns: int) -> None:
    """A float of seconds holds every nanosecond for a hundred days, and the text holds the exact float."""
    assert parse_duration(format_duration(ns / 10**9)) == ns / 10**9 or ns > 2**53
