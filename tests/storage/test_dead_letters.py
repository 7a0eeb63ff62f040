"""Items that fail too often: alone first, then to the rear store and, for a waiting client, an answer in the sink."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from easq.errors import QueueFull
from easq.model import Frame
from easq.protocol.operations import Negative
from easq.server.dead_letters import answer, rear_copy
from easq.storage.base import DeadLetterPolicy, Failure, Limits, Location, Selection, Timing
from easq.storage.sqlite.engine import SqliteStorage
from tests.storage.conftest import TIMING, Engine

AT_ONCE = Timing(leave_grace_s=0.02, backoff_s=(0.0,))
REAR_LIMITS = Limits(max_items=3)


class DeadLetterEngine(Engine):
    """An engine whose stream `q` has a rear store and a sink."""

    max_failures = 2

    async def start(self) -> None:
        await self.storage.start(self.failures.append)
        await self.storage.open("q#rear")
        await self.storage.open("q/sink")
        dead_letters = DeadLetterPolicy(
            self.max_failures,
            "q#rear",
            REAR_LIMITS,
            rear_copy,
            "q/sink",
            lambda frame, why: answer(frame, why, 7),
        )
        await self.storage.open("q", dead_letters)

    async def all_of(self, stream: str) -> list[tuple[dict[str, str], bytes]]:
        frames = await self.storage.read(stream, Selection(0, length=100))
        return [(dict(frame.tags), frame.data) for frame in frames]

    async def fail(
        self, session: int, index: int, times: int, *, group: str = "g", code: str = "", reason: str = ""
    ) -> None:
        for _ in range(times):
            assert index in await self.leased(session)
            await self.storage.negative("q", group, Negative((index,), code, reason), now=self.now)

    async def dead(self, count: int) -> None:
        """Wait until the rear store has `count` items."""
        async with asyncio.timeout(10):
            while len(await self.all_of("q#rear")) < count:
                await asyncio.sleep(0.01)
        assert len(await self.all_of("q#rear")) == count


@pytest.fixture
def run_with_rear(engine_url: str) -> Callable[[Callable[[DeadLetterEngine], Awaitable[Any]]], Any]:
    return lambda body: run_dead_letters(engine_url, body, AT_ONCE)


def run_dead_letters(
    url: str,
    body: Callable[[DeadLetterEngine], Awaitable[Any]],
    timing: Timing = TIMING,
    max_failures: int = 2,
) -> Any:
    async def main() -> Any:
        engine = DeadLetterEngine(url, timing)
        engine.max_failures = max_failures
        await engine.start()
        try:
            return await body(engine)
        finally:
            await engine.storage.close()
            assert engine.failures == []

    return asyncio.run(main())


def test_an_item_out_of_failures_is_in_the_rear_store_and_answered(run_with_rear: Any) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        await engine.put(b"poison", requestId="r", task="t")
        session = await engine.attach()
        await engine.fail(session, 1, 2, code="EngineError", reason="out of memory")
        assert await engine.length() == 0
        assert await engine.has_nothing_for(session)
        tags = {"requestId": "r", "task": "t", "lastCode": "EngineError", "lastReason": "out of memory"}
        why = {"rear@index": "1", "rear@group": "g", "rear@deliveries": "2", "rear@failures": "2"}
        assert await engine.all_of("q#rear") == [({**tags, **why}, b"poison")]
        told = {"lastCode": "500", "lastReason": "EngineError", "ts@sink": "7"}
        assert await engine.all_of("q/sink") == [
            (
                {"requestId": "r", "task": "t", "Header:Content-Type": "text/plain; charset=utf-8", **told},
                b"out of memory",
            )
        ]
        await engine.restart()
        assert await engine.length() == 0
        assert len(await engine.all_of("q#rear")) == (0 if engine.url == "memory:" else 1)

    run_with_rear(body)


def test_a_numeric_code_is_the_answers_code(run_with_rear: Any) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        session = await engine.attach()
        await engine.fail(session, 1, 2, code="422", reason="no such image")
        ((tags, data),) = await engine.all_of("q/sink")
        assert (tags["lastCode"], tags["lastReason"], data) == ("422", "no such image", b"no such image")

    run_with_rear(body)


def test_lost_connections_count_and_closed_ones_do_not(run_with_rear: Any) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        for _ in range(5):
            session = await engine.attach()
            await engine.leased(session)
            await engine.detach(session)
        for process in "ab":
            session = await engine.attach(process=process)
            await engine.leased(session)
            await engine.detach(session, lost=True)
        await engine.dead(1)
        ((tags, data),) = await engine.all_of("q/sink")
        assert (tags["lastCode"], data) == ("500", b"the connection was lost")
        ((rear, _),) = await engine.all_of("q#rear")
        assert (rear["rear@deliveries"], rear["rear@failures"]) == ("7", "2")

    run_with_rear(body)


def test_a_loss_counts_when_the_process_is_not_back_in_time(engine_url: str) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        session = await engine.attach(process="p")
        await engine.leased(session)
        await engine.detach(session, lost=True)
        await engine.dead(1)

    run_dead_letters(engine_url, body, AT_ONCE, max_failures=1)


def test_a_loss_counts_when_another_process_is_there_in_its_place(engine_url: str) -> None:
    """The item killed the worker, which was then started again."""

    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        session = await engine.attach(process="p")
        await engine.leased(session)
        await engine.detach(session, lost=True)
        assert await engine.length() == 1
        await engine.attach(process="q")
        await engine.dead(1)

    run_dead_letters(engine_url, body, TIMING, max_failures=1)


def test_the_eleventh_loss_of_an_unknown_process_counts(engine_url: str) -> None:
    """Also where the service was started again in between."""

    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        for turn in range(11):
            if turn == 5 and engine.url != "memory:":
                await engine.restart()
            session = await engine.attach()
            await engine.leased(session)
            assert await engine.length() == 1
            await engine.detach(session, lost=True)
        await engine.dead(1)

    run_dead_letters(engine_url, body, AT_ONCE, max_failures=1)


def test_an_item_that_was_busy_for_too_long_has_failed(engine_url: str) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        session = await engine.attach()
        for _ in range(3):
            assert await engine.leased(session) == [1]
            # the third is cut to what is left of the limit, of which the time at the consumer is a part
            await engine.negative(1, code="Busy", delay_s=0.2)
        assert await engine.leased(session) == [1]
        assert await engine.all_of("q#rear") == []
        await engine.negative(1, code="Busy", delay_s=0.2)
        await engine.dead(1)
        ((tags, _),) = await engine.all_of("q/sink")
        assert tags["lastCode"] == "503"

    run_dead_letters(engine_url, body, Timing(busy_limit_s=0.5), max_failures=1)


def test_shutdown_never_counts(run_with_rear: Any) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        for n in range(5):
            session = await engine.attach(f"u{n}")
            await engine.fail(session, 1, 1, code="Shutdown")
            await engine.detach(session)
        assert await engine.length() == 1
        assert await engine.all_of("q#rear") == []

    run_with_rear(body)


def test_zero_means_never(engine_url: str) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        session = await engine.attach()
        await engine.fail(session, 1, 20)
        assert await engine.length() == 1

    run_dead_letters(engine_url, body, AT_ONCE, max_failures=0)


def test_each_group_gives_up_for_itself_and_one_commit_is_an_answer_enough(run_with_rear: Any) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        bad, good = await engine.attach(group="bad"), await engine.attach(group="good")
        await engine.fail(bad, 1, 2, group="bad")
        assert await engine.length() == 1
        assert [tags["rear@group"] for tags, _ in await engine.all_of("q#rear")] == ["bad"]
        assert await engine.leased(good) == [1]
        await engine.commit(1, group="good")
        assert await engine.length() == 0
        assert await engine.all_of("q/sink") == []

    run_with_rear(body)


def test_the_last_group_to_give_up_answers(run_with_rear: Any) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        one, two = await engine.attach(group="one"), await engine.attach(group="two")
        await engine.fail(one, 1, 2, group="one", reason="first")
        if engine.url != "memory:":
            await engine.restart()
            one, two = await engine.attach(group="one"), await engine.attach(group="two")
            assert await engine.has_nothing_for(one)
        assert await engine.all_of("q/sink") == []
        await engine.fail(two, 1, 2, group="two", reason="second")
        assert await engine.length() == 0
        assert [data for _, data in await engine.all_of("q/sink")] == [b"second"]
        assert len(await engine.all_of("q#rear")) == 2

    run_with_rear(body)


def test_a_full_stream_that_lets_go_of_what_was_given_up_answers_it(run_with_rear: Any) -> None:
    """An absent group held the item; a put needs its place."""

    async def body(engine: DeadLetterEngine) -> None:
        await engine.put(b"poison", requestId="r")
        await engine.put()
        session = await engine.attach()
        await engine.detach(await engine.attach("other", group="absent"))
        await engine.fail(session, 1, 2, code="422", reason="no such image")
        assert await engine.all_of("q/sink") == []
        assert await engine.put(limits=Limits(max_items=2)) == 3
        assert await engine.indexes() == [2, 3]
        ((tags, data),) = await engine.all_of("q/sink")
        assert (tags["requestId"], tags["lastCode"], data) == ("r", "422", b"no such image")
        await engine.restart()
        assert len(await engine.all_of("q/sink")) == (0 if engine.url == "memory:" else 1)

    run_with_rear(body)


def test_a_late_commit_of_what_was_given_up_counts(run_with_rear: Any) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        one, two = await engine.attach(group="one"), await engine.attach(group="two")
        await engine.fail(one, 1, 2, group="one")
        assert await engine.commit(1, group="one") == 1
        await engine.fail(two, 1, 2, group="two")
        assert await engine.length() == 0
        assert await engine.all_of("q/sink") == []

    run_with_rear(body)


def test_a_full_rear_store_leaves_the_item_where_it_is(run_with_rear: Any) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        for n in range(4):
            await engine.put(str(n).encode())
        session = await engine.attach(window=1)
        for index in (1, 2, 3):
            await engine.fail(session, index, 2)
        assert len(await engine.all_of("q#rear")) == 3
        await engine.fail(session, 4, 6)
        assert await engine.length() == 1
        await engine.storage.truncate("q#rear", 100)
        await engine.fail(session, 4, 1)
        assert await engine.length() == 0
        assert [data for _, data in await engine.all_of("q#rear")] == [b"3"]

    run_with_rear(body)


def test_items_that_are_given_up_together_fill_the_rear_store_and_no_more(engine_url: str) -> None:
    """A connection is lost with six, and there is room for three."""

    async def body(engine: DeadLetterEngine) -> None:
        for _ in range(6):
            await engine.put()
        session = await engine.attach(process="p")
        await engine.leased(session, 6)
        await engine.detach(session, lost=True)
        await engine.dead(3)
        await engine.settle()
        assert await engine.indexes() == [4, 5, 6]

    run_dead_letters(engine_url, body, AT_ONCE, max_failures=1)


@pytest.mark.parametrize("held", [False, True])
def test_an_item_whose_dead_letter_found_no_disk_is_where_it_was(tmp_path: Path, held: bool) -> None:
    """The disk is full at the very moment when an item is given up, `held` by another group or not."""

    async def body(engine: DeadLetterEngine) -> None:
        assert isinstance(engine.storage, SqliteStorage)
        await engine.put(b"before")
        await engine.put(b"x" * 50_000, requestId="r")
        await engine.put(b"after")
        session = await engine.attach(window=1)
        await engine.leased(session)
        await engine.commit(1)
        if held:
            await engine.attach(group="other", window=1)
        await engine.fail(session, 2, 1)
        assert await engine.leased(session) == [2]
        disk = engine.storage._open_writer._connection
        (pages,) = disk.execute("PRAGMA page_count").fetchone()
        disk.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(QueueFull):
            await engine.negative(2, code="422")
        assert await engine.indexes() == [2, 3]
        assert await engine.all_of("q#rear") == await engine.all_of("q/sink") == []

        disk.execute(f"PRAGMA max_page_count = {pages * 10}")
        assert await engine.put(b"there is room again") == 4
        assert await engine.leased(session) == [3]
        await engine.commit(3)
        assert await engine.leased(session) == [2]
        assert await engine.storage.locate("q", "g", 4) == Location(None, 0)
        await engine.negative(2, code="422")
        assert await engine.indexes() == ([2, 3, 4] if held else [4])
        assert len(await engine.all_of("q#rear")) == 1
        assert len(await engine.all_of("q/sink")) == (0 if held else 1)
        await engine.restart()
        assert await engine.indexes() == ([2, 3, 4] if held else [4])

    run_dead_letters(f"sqlite:{tmp_path / 'q.db'}", body, AT_ONCE)


class FullDisk:
    """The disk of a durable engine has no room for an item of 50 kB, until the block ends; some for what is small."""

    def __init__(self, engine: DeadLetterEngine) -> None:
        assert isinstance(engine.storage, SqliteStorage)
        self._disk = engine.storage._open_writer._connection

    def __enter__(self) -> None:
        (self._pages,) = self._disk.execute("PRAGMA page_count").fetchone()
        self._disk.execute(f"PRAGMA max_page_count = {self._pages + 5}")

    def __exit__(self, *_: object) -> None:
        self._disk.execute(f"PRAGMA max_page_count = {self._pages * 10}")


async def given_up_and_held(engine: DeadLetterEngine) -> tuple[int, int]:
    """Sessions of a group that gave item 1 up, and of another that holds that back. Its answer is large."""
    await engine.put(note="x" * 50_000)
    session, other = await engine.attach(), await engine.attach(group="other")
    await engine.fail(session, 1, 2)
    assert await engine.indexes() == [1]
    return session, other


def test_an_answer_that_found_no_disk_when_an_absent_group_let_go_is_told_once_there_is_some(
    tmp_path: Path,
) -> None:
    """The item stays until then, and operations that need no room continue."""

    async def body(engine: DeadLetterEngine) -> None:
        _, other = await given_up_and_held(engine)
        with FullDisk(engine):
            await engine.detach(other)
            await asyncio.sleep(1.0)
            assert await engine.all_of("q/sink") == []
            assert await engine.indexes() == [1]
        async with asyncio.timeout(10):
            while not await engine.all_of("q/sink"):
                await asyncio.sleep(0.05)
        assert await engine.indexes() == []
        await engine.restart()
        assert await engine.indexes() == []
        assert len(await engine.all_of("q/sink")) == len(await engine.all_of("q#rear")) == 1

    timing = Timing(backoff_s=(0.0, 0.2), group_retention_s=0.5)
    run_dead_letters(f"sqlite:{tmp_path / 'q.db'}", body, timing)


def test_once_the_disk_has_room_again_dead_letters_are_written_though_nobody_puts(tmp_path: Path) -> None:
    """That it was full is known of a put that was refused; none comes any more."""

    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        session = await engine.attach()
        with FullDisk(engine), pytest.raises(QueueFull):
            await engine.put(b"x" * 50_000)
        async with asyncio.timeout(10):
            while await engine.length():
                await engine.leased(session)
                await engine.negative(1)
        assert len(await engine.all_of("q#rear")) == 1

    run_dead_letters(f"sqlite:{tmp_path / 'q.db'}", body, Timing(backoff_s=(0.0, 0.2)))


def test_a_watch_begins_whether_the_disk_has_room_for_an_answer_or_not(tmp_path: Path) -> None:
    """Nobody holds an item that its group had given up, and it cannot leave; meanwhile the group comes back."""

    async def body(engine: DeadLetterEngine) -> None:
        session, other = await given_up_and_held(engine)
        with FullDisk(engine):
            await engine.detach(session, after_s=-9.0)
            await engine.detach(other, after_s=-9.0)
            await asyncio.sleep(0.1)
            again = await engine.attach()
            assert await engine.has_nothing_for(again)
            assert await engine.indexes() == [1]
        async with asyncio.timeout(10):
            while not await engine.all_of("q/sink"):
                await asyncio.sleep(0.05)

    timing = Timing(backoff_s=(0.0, 0.2), group_retention_s=0.5)
    run_dead_letters(f"sqlite:{tmp_path / 'q.db'}", body, timing)


def test_what_was_evicted_for_a_put_that_found_no_disk_is_gone_for_good(tmp_path: Path) -> None:
    """The item is not restored at the next start, and its space is free for the next put."""

    async def body(engine: DeadLetterEngine) -> None:
        few = Limits(max_items=2, evict=True)
        for _ in range(2):
            await engine.put(b"x" * 50_000, limits=few)
        with FullDisk(engine):
            with pytest.raises(QueueFull):
                await engine.put(b"y" * 500_000, limits=few)
            assert await engine.indexes() == [2]
            later = await engine.put(b"x" * 10_000, limits=few)
        await engine.restart()
        assert await engine.indexes() == [2, later]

    run_dead_letters(f"sqlite:{tmp_path / 'q.db'}", body)


def test_streams_that_were_ended_take_copies_and_answers(run_with_rear: Any) -> None:
    """The sink and the rear store have ended: the answer for this item is still stored."""

    async def body(engine: DeadLetterEngine) -> None:
        await engine.put()
        session = await engine.attach()
        for stream in ("q/sink", "q#rear"):
            await engine.storage.end(stream, ended=True)
        await engine.fail(session, 1, 2)
        assert await engine.length() == 0
        assert len(await engine.all_of("q/sink")) == len(await engine.all_of("q#rear")) == 1

    run_with_rear(body)


def test_an_answer_is_exempt_from_the_sinks_limits(run_with_rear: Any) -> None:
    """The answer for this item is stored even if the sink is full."""

    async def body(engine: DeadLetterEngine) -> None:
        for n in range(3):
            await engine.storage.append(
                "q/sink", Frame(0, {"requestId": str(n)}, b""), priority=0, limits=Limits(3)
            )
        await engine.put()
        session = await engine.attach()
        await engine.fail(session, 1, 2)
        assert len(await engine.all_of("q/sink")) == 4

    run_with_rear(body)


# -- alone -------------------------------------------------------------------------------------------------------------


def test_after_two_failures_an_item_is_handed_out_alone(engine_url: str) -> None:
    """The item waits until the connection is empty, and is delivered alone; later items follow."""

    async def body(engine: DeadLetterEngine) -> None:
        for _ in range(4):
            await engine.put()
        session = await engine.attach(window=3)
        assert await engine.leased(session, 3) == [1, 2, 3]
        await engine.negative(1)
        assert await engine.leased(session) == [1]
        await engine.negative(1)
        await engine.put()
        assert await engine.has_nothing_for(session)
        await engine.commit(2)
        assert await engine.has_nothing_for(session)
        await engine.commit(3)
        assert await engine.leased(session) == [1]
        assert await engine.has_nothing_for(session)
        await engine.commit(1)
        assert await engine.leased(session, 2) == [4, 5]

    run_dead_letters(engine_url, body, AT_ONCE, max_failures=9)


def test_others_go_on_while_one_empties_itself(engine_url: str) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        for _ in range(6):
            await engine.put()
        few, many = await engine.attach("few", window=2), await engine.attach("many", window=4)
        held = {few: await engine.leased(few, 2), many: await engine.leased(many, 4)}
        poison, *others = held[many]
        await engine.negative(poison)
        await engine.commit(held[few][0])
        assert await engine.leased(few) == [poison]
        await engine.negative(poison)
        for _ in range(4):
            await engine.put()
        await engine.commit(held[few][1])
        assert await engine.leased(few, 2) == [7, 8]
        assert await engine.has_nothing_for(many)
        await engine.commit(*others)
        assert await engine.leased(many) == [poison]

    run_dead_letters(engine_url, body, AT_ONCE, max_failures=9)


def test_one_poison_item_drags_nobody_to_the_rear(engine_url: str) -> None:
    """A consumer that dies of item 3 with all it holds: only item 3 ends in the rear store."""

    async def body(engine: DeadLetterEngine) -> None:
        for _ in range(8):
            await engine.put()
        done: list[int] = []
        for _ in range(30):
            session = await engine.attach(window=4)
            taken = await engine.leased(session) if await engine.length() else []
            if 3 in taken:
                await engine.detach(session, lost=True)
                continue
            await engine.commit(*taken)
            done += taken
            await engine.detach(session)
            if not await engine.length():
                break
        assert [tags["rear@index"] for tags, _ in await engine.all_of("q#rear")] == ["3"]
        assert sorted(done) == [1, 2, 4, 5, 6, 7, 8]

    run_dead_letters(engine_url, body, AT_ONCE, max_failures=4)


def test_a_reserved_consumer_that_leaves_frees_the_item(engine_url: str) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        for _ in range(4):
            await engine.put()
        first = await engine.attach("first", window=2)
        assert await engine.leased(first, 2) == [1, 2]
        second = await engine.attach("second", window=2)
        assert await engine.leased(second, 2) == [3, 4]
        await engine.negative(3)
        await engine.commit(1)
        assert await engine.leased(first) == [3]
        await engine.negative(3)
        assert await engine.has_nothing_for(second)
        await engine.detach(second)
        assert await engine.has_nothing_for(first)
        await engine.commit(2)
        assert await engine.leased(first) == [3]
        await engine.commit(3)
        assert await engine.leased(first) == [4]

    run_dead_letters(engine_url, body, AT_ONCE, max_failures=9)


def test_deleting_what_a_consumer_waits_for_lets_it_go_on(engine_url: str) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        for _ in range(3):
            await engine.put()
        session = await engine.attach(window=2)
        await engine.leased(session, 2)
        await engine.negative(1)
        assert await engine.leased(session) == [1]
        await engine.negative(1)
        assert await engine.has_nothing_for(session)
        await engine.storage.delete("q", [1])
        assert await engine.leased(session) == [3]

    run_dead_letters(engine_url, body, AT_ONCE, max_failures=9)


def test_failures_make_an_item_go_alone_after_a_restart_too(tmp_path: Any) -> None:
    async def body(engine: DeadLetterEngine) -> None:
        for _ in range(3):
            await engine.put()
        session = await engine.attach(window=1)
        await engine.fail(session, 1, 2)
        await engine.restart()
        again = await engine.attach(window=3)
        assert await engine.leased(again) == [1]
        assert await engine.has_nothing_for(again)
        await engine.commit(1)
        assert await engine.leased(again, 2) == [2, 3]

    run_dead_letters(f"sqlite:{tmp_path / 'q.db'}", body, AT_ONCE, max_failures=9)


def test_an_answer_without_a_reason_has_the_code_alone() -> None:
    told = answer(Frame(4, {"requestId": "r", "deliveryCount": "3"}, b"x"), Failure("g", 2, 2, "", ""), 9)
    assert told.data == b""
    assert dict(told.tags) == {
        "requestId": "r",
        "ts@sink": "9",
        "lastCode": "500",
        "Header:Content-Type": "text/plain; charset=utf-8",
    }
