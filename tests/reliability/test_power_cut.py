"""Power cuts at any moment: acknowledged data is stored, and the file can be read."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from easq.storage.base import Selection
from easq.storage.sqlite.engine import SqliteStorage
from tests.conftest import Serve
from tests.reliability.powercut import STRACE, Event, Image, Send, Sync, Truncate, Write, images, read_trace
from tests.support.http import Connection
from tests.support.process import Service
from tests.support.tools import find_tool
from tests.support.waiting import eventually

PUTTERS, PUTS, BURSTS = 6, 14, 3
IMAGES = int(os.environ.get("EASQ_IMAGES", "300"))
SEED = int(os.environ.get("EASQ_SEED", "20240601"))


@dataclass(frozen=True)
class Traced:
    """A run under load: its events, the files before it, what each index held, and the commits in order."""

    events: list[Event]
    before: dict[str, bytes]
    payloads: dict[int, bytes]
    commits: list[int]


def load(service: Service, payloads: dict[int, bytes], commits: list[int]) -> None:
    """Bursts of puts on several connections, and one client that commits, one index a request, in the order put."""
    stream = service.stream()
    lock = threading.Lock()

    def put(name: str) -> None:
        with Connection(service.port) as connection:
            for number in range(PUTS):
                data = f"{name}-{number}-".encode() * (1 + number * 17)
                answer = connection.ask("POST", stream.path, (), data)
                assert answer.status == 200
                with lock:
                    payloads[int(answer.body)] = data

    wal = Path(service.storage.removeprefix("sqlite:") + "-wal")
    for burst in range(BURSTS):
        threads = [threading.Thread(target=put, args=(f"{burst}.{n}",)) for n in range(PUTTERS)]
        for thread in threads:
            thread.start()
        with Connection(service.port) as connection:
            for _ in range(PUTTERS * PUTS // 2):
                index = eventually(lambda: min(set(payloads) - set(commits), default=0))
                commits.append(index)
                answer = connection.ask("PUT", stream.target(_indexes_=index), stream.headers, b"")
                assert answer.status == 200
        for thread in threads:
            thread.join()
        # the log is copied back and cut when nothing has been written for a while
        eventually(lambda: wal.stat().st_size == 0)


def traced_run(serve: Serve, *options: str, program: tuple[str, ...] = ("easq",)) -> Traced:
    """A service under strace and load, from its second start on: the first one made the file."""
    find_tool(STRACE[0])
    service = serve(*options, program=program)
    assert service.terminate() == 0
    database = Path(service.storage.removeprefix("sqlite:"))
    trace = service.folder / "trace"
    service.under = (*STRACE, "-o", str(trace))
    before = {str(database): database.read_bytes()}
    service.start()
    payloads: dict[int, bytes] = {}
    commits: list[int] = []
    load(service, payloads, commits)
    pid = service.pid
    assert service.terminate() == 0, service.log.read_text()
    eventually(lambda: re.search(rf"^{pid} +\+\+\+ exited", trace.read_text()[-4000:], re.MULTILINE))
    return Traced(read_trace(trace, (database.name, f"{database.name}-wal")), before, payloads, commits)


def acknowledged(run: Traced, image: Image) -> tuple[set[int], int]:
    """The indexes of puts that were answered when the power went, and how many commits were."""
    puts: set[int] = set()
    commits = 0
    for event in run.events[: image.events]:
        if isinstance(event, Send) and event.data.startswith(b"HTTP/1.1 200"):
            head, _, body = event.data.partition(b"\r\n\r\n")
            if b"x-easq-committed" in head.lower():
                commits += 1
            elif body.isdigit():
                puts.add(int(body))
    return puts, commits


def restored(image: Image, folder: Path) -> tuple[dict[int, bytes], int]:
    """Return the items of a service that starts on the image, and the index of its next put."""
    folder.mkdir()
    for name, content in image.files.items():
        (folder / Path(name).name).write_bytes(content)

    async def look() -> tuple[dict[int, bytes], int]:
        storage = SqliteStorage(folder / "easq.db", durability="os")  # an image needs no syncs
        await storage.start(lambda _: None)
        await storage.open("qservice")
        frames = await storage.read("qservice", Selection(0, length=10_000))
        stats = await storage.attributes("qservice", now=0.0)
        await storage.close()
        return {frame.index: frame.data for frame in frames}, stats.next

    found = asyncio.run(look())
    with sqlite3.connect(folder / "easq.db") as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    connection.close()
    shutil.rmtree(folder)
    return found


def complaints(run: Traced, image: Image, folder: Path) -> list[str]:
    """Return the acknowledged data that the image lacks, and the data that it must not have."""
    puts, commits = acknowledged(run, image)
    try:
        found, following = restored(image, folder)
    except Exception as error:
        return [f"unreadable: {error}"]
    done, maybe = set(run.commits[:commits]), set(run.commits[: commits + 1])
    lost = sorted(index for index in puts - maybe if found.get(index) != run.payloads[index])
    back = sorted(done & set(found))
    torn = sorted(index for index, data in found.items() if run.payloads.get(index, data) != data)
    reused = [] if following > max(puts, default=0) else [following]
    named = {"lost": lost, "back after its commit": back, "torn": torn, "reused": reused}
    return [f"{what}: {indexes}" for what, indexes in named.items() if indexes]


def judge(run: Traced, folder: Path, count: int, seed: int = SEED) -> list[str]:
    """The complaints about all images, each with the number of the event that the cut followed."""
    first = next(
        n for n, event in enumerate(run.events) if isinstance(event, Send) and b"HTTP/1.1 200" in event.data
    )
    return [
        f"after event {image.events} (seed {seed}): {complaint}"
        for number, image in enumerate(images(run.events, run.before, count, seed, first))
        for complaint in complaints(run, image, folder / str(number))
    ]


def test_a_power_cut_loses_nothing_that_was_acknowledged(
    serve: Serve, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """No acknowledged put is lost, no acknowledged commit is back, no file is unreadable, no index is used twice."""
    run = traced_run(serve)
    kinds = {
        kind.__name__: sum(isinstance(event, kind) for event in run.events)
        for kind in (Write, Truncate, Sync, Send)
    }
    assert len(run.payloads) == PUTTERS * PUTS * BURSTS
    assert any(isinstance(event, Write) and event.file.endswith("easq.db") for event in run.events), (
        "no checkpoint"
    )
    found = judge(run, tmp_path, IMAGES)
    counted = {
        "images": IMAGES,
        "bad": len(found),
        "puts": len(run.payloads),
        "commits": len(run.commits),
        **kinds,
    }
    for name, value in counted.items():
        record_property(name, value)
    print(counted)
    assert found == []


@pytest.mark.long
def test_a_service_that_does_not_sync_is_caught(serve: Serve, tmp_path: Path) -> None:
    """With durability `os` the same method finds acknowledged puts missing: it can see a loss."""
    run = traced_run(serve, "--durability", "os")
    found = judge(run, tmp_path, 60)
    assert any("lost" in complaint for complaint in found)
    assert not any("unreadable" in complaint for complaint in found)


@pytest.mark.long
def test_a_service_that_answers_before_it_stores_is_caught(serve: Serve, tmp_path: Path) -> None:
    run = traced_run(serve, program=("tests.reliability.planted", "acknowledged-before-stored"))
    assert any("lost" in complaint for complaint in judge(run, tmp_path, 150))


def test_images_keep_what_was_synced_and_drop_sectors_of_the_rest() -> None:
    """The method itself: synced bytes are in every image, the others in some."""
    one, two = b"a" * 1024, b"b" * 1024
    events: list[Event] = [Write("f", 0, one), Sync("f", 1), Write("f", 1024, two), Truncate("g", 0)]
    made = list(images(events, {"g": b"old"}, 200, seed=1, first=3))
    assert all(image.files["f"][:1024] == one for image in made)
    tails = {image.files["f"][1024:].rstrip(b"\0").lstrip(b"\0") for image in made if image.events >= 3}
    assert {b"", b"b" * 512, two} <= tails
    assert {image.files["g"] for image in made if image.events == 4} == {b"old", b""}


def test_a_write_that_begins_during_a_sync_is_not_covered_by_it() -> None:
    events: list[Event] = [Write("f", 0, b"1"), Write("f", 1, b"2"), Sync("f", 1)]
    assert {image.files["f"] for image in images(events, {}, 100, seed=2, first=3)} == {b"1", b"12"}


def test_a_trace_is_read_with_calls_that_were_interrupted(tmp_path: Path) -> None:
    def hexed(text: str) -> str:
        return "".join(f"\\x{byte:02x}" for byte in text.encode())

    wal, socket = hexed("/d/easq.db-wal"), hexed("socket:[1]")
    trace = tmp_path / "trace"
    trace.write_text(
        f'7 pwrite64(3<{wal}>, "{hexed("abc")}", 3, 96) = 3\n'
        f"7 fdatasync(3<{wal}> <unfinished ...>\n"
        f'9 sendto(5<{socket}>, "{hexed("HTTP/1.1 200 OK")}", 15, 0, NULL, 0 <unfinished ...>\n'
        f"7 <... fdatasync resumed>) = 0\n"
        f"9 <... sendto resumed>) = 15\n"
        f"7 ftruncate(3<{wal}>, 0) = 0\n"
        f'7 pwrite64(4<{hexed("/d/other")}>, "{hexed("x")}", 1, 0) = 1\n'
        "7 +++ exited with 0 +++\n"
    )
    name = "/d/easq.db-wal"
    assert read_trace(trace, ("easq.db", "easq.db-wal")) == [
        Write(name, 96, b"abc"),
        Send(b"HTTP/1.1 200 OK"),
        Sync(name, 1),
        Truncate(name, 0),
    ]
