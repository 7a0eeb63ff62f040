"""A bulk put that is killed with `kill -9` again and again, while the service is too, and goes on by its journal."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests.cli.conftest import Easq
from tests.conftest import Serve
from tests.support.process import Service
from tests.support.waiting import eventually

ROUNDS = int(os.environ.get("EASQ_KILL_ROUNDS", "20"))
SEED = int(os.environ.get("EASQ_SEED", "20240601"))
#: records that one round gets to see stored at most, before it is killed
PER_ROUND = 120


def run_under_kills(easq: Easq, service: Service, rounds: int, seed: int) -> dict[str, int]:
    """Puts all lines of a file, killed `rounds` times, and checks every promise; what was counted."""
    chance = random.Random(seed)
    lines = [f"{number}-{chance.randrange(10**9)}" for number in range(rounds * (PER_ROUND + 150))]
    (easq.home / "lines").write_text("".join(f"{line}\n" for line in lines))
    service.wanted_port = service.port
    command = (
        *("put", "-f", "lines", "-c", "16", "--resume", "journal", "-o", "json"),
        *("--url", service.url(), "--connect-timeout", "20s"),
    )
    said: dict[str, bytes] = {}
    for number in range(rounds):
        out = easq.home / f"out-{number}"
        wanted = chance.choice((0, chance.randrange(1, PER_ROUND)))
        with out.open("wb") as file, easq.start(*command, stdout=file) as process:
            eventually(
                lambda out=out, wanted=wanted, process=process: (
                    (out.read_bytes().count(b"\n") >= wanted and (easq.home / "journal").exists())
                    or process.poll() is not None
                )
            )
            if number % 3 == 2:
                service.restart()
            assert process.poll() is None, process.communicate()
            process.kill()
            process.wait()
            if number % 3 == 1:
                service.restart()
        for line in out.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                said[json.loads(line)["index"]] = line
    last = easq(*command)
    assert last.status == 0, last.err
    summary = json.loads(last.err.splitlines()[-1])["summary"]
    assert (summary["total"], summary["success"], summary["failed"], summary["remaining"]) == (
        len(lines), len(lines), 0, 0,
    )  # fmt: skip
    for line in last.out.splitlines():
        said[json.loads(line)["index"]] = line
    items = {}
    after = 0
    while found := service.stream().get(_index_=after + 1, _length_=5000):
        items.update({str(item.index): item.data.decode() for item in found})
        after = found[-1].index
    times = Counter(items.values())
    assert [line for line in lines if times[line] != 1] == []
    assert len(items) == len(lines)
    assert set(said) <= set(items)
    assert summary["possible_duplicates"] == 0
    assert easq(*command).out == b""
    return {
        "records": len(lines),
        "said to be stored": len(said),
        "possible duplicates": summary["possible_duplicates"],
        "kills": rounds,
    }


def test_every_record_is_there_once_however_often_the_client_is_killed(
    serve: Serve, easq: Easq, record_property: Callable[[str, object], None]
) -> None:
    """Also when the service is restarted in between; the summary equals the contents of the queue.

    `EASQ_SEED` and `EASQ_KILL_ROUNDS` change the course and the length.
    """
    for name, value in run_under_kills(easq, serve(), ROUNDS, SEED).items():
        record_property(name, value)


@pytest.mark.long
def test_the_same_more_often_and_on_another_course(serve: Serve, easq: Easq) -> None:
    run_under_kills(easq, serve(), 50, SEED + 1)
