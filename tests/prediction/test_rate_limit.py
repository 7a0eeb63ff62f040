"""The rate limiter of look-ups: one look-up per spacing, over threads and processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from easq.prediction.cache import limiter_file
from easq.prediction.rate_limit import LookupLimiter


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return limiter_file(tmp_path / "deep" / "easq", "https://e")


def test_one_has_the_turn_and_the_others_are_told_when(file: Path) -> None:
    first, second = LookupLimiter(file, 3600.0), LookupLimiter(file, 3600.0)
    assert first.take() == 0.0
    for limiter in (first, second):
        assert 3590 < limiter.take() <= 3600
    assert 100 < LookupLimiter(file, 200.0).take() <= 200


def test_of_many_threads_and_processes_one_has_it(file: Path) -> None:
    limit = f"LookupLimiter(Path({str(file)!r}), 3600.0)"
    program = f"from easq.prediction.rate_limit import *; print({limit}.take() == 0.0)"
    others = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for _ in range(3)]
    limiter = LookupLimiter(file, 3600.0)
    with ThreadPoolExecutor(8) as pool:
        taken = [left == 0.0 for left in pool.map(lambda _: limiter.take(), range(16))]
    taken += [b"True" in other.communicate()[0] for other in others]
    assert taken.count(True) == 1


def test_a_spacing_later_there_is_another(file: Path) -> None:
    assert LookupLimiter(file, 60.0).take() == 0.0
    file.write_text(repr(time.time() - 61))
    assert LookupLimiter(file, 60.0).take() == 0.0
    assert LookupLimiter(file, 60.0).take() > 0


@pytest.mark.parametrize("content", [b"", b"soon", b"nan", b"inf", b"9" * 500, b"\xff"])
def test_what_is_no_time_of_the_past_holds_nobody_up(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert LookupLimiter(file, 60.0).take() == 0.0


def test_without_a_spacing_it_is_always_ours_and_nothing_is_written(file: Path) -> None:
    limiter = LookupLimiter(file, 0.0)
    assert [limiter.take() for _ in range(3)] == [0.0] * 3
    assert not file.exists()


def test_where_the_file_cannot_be_used_the_process_keeps_count(tmp_path: Path) -> None:
    for place in (None, tmp_path, tmp_path / "link"):
        if place is not None and place.name == "link":
            place.symlink_to(tmp_path / "other")
        limiter = LookupLimiter(place, 60.0)
        assert limiter.take() == 0.0
        assert limiter.take() > 0
    assert not (tmp_path / "other").exists()


def test_nobody_else_may_read_it(file: Path) -> None:
    old = os.umask(0)
    try:
        LookupLimiter(file, 60.0).take()
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
