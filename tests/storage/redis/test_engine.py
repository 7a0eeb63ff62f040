"""The engine on Redis, beyond the contract: several servers on one Redis, and a Redis that loses data."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
import redis

from easq.errors import StorageError, StreamEnded, Unavailable
from easq.model import Ack, Consumer, Frame
from easq.protocol.operations import Negative
from easq.storage.base import DeadLetterPolicy, Limits, Selection
from easq.storage.redis import stream as remote
from tests.conftest import MakeRedis
from tests.storage.conftest import NO_LIMITS, TIMING
from tests.storage.servers import LEASE_S, Moment, Server, lapse, run, servers
from tests.support.cluster import SLOTS, join
from tests.support.redis import text_of

# -- several servers ---------------------------------------------------------------------------------------------------


def test_an_item_put_at_one_server_is_delivered_at_another(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            session = await other.attach()
            waiting = asyncio.ensure_future(other.leased(session))
            assert await one.put(b"x") == 1
            assert await waiting == [1]
            assert await one.commit(1) == 1
            assert await other.length() == 0

    run(body())


def test_indexes_and_connection_numbers_are_the_queues(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url, 3) as all_of:
            assert [await server.put() for server in all_of * 2] == [1, 2, 3, 4, 5, 6]
            assert [await server.attach(f"u{n}") for n, server in enumerate(all_of)] == [1, 2, 3]

    run(body())


def test_windows_hold_over_all_servers_and_free_slots_are_filled_from_any(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            for _ in range(6):
                await one.put()
            small, large = await one.attach("small", window=1), await other.attach("large", window=3)
            assert await one.leased(small) == [1]
            assert await other.leased(large, 3) == [2, 3, 4]
            assert await one.redis_storage.fetch("q", small, index_only=True) == []
            assert await one.commit(2) == 1
            assert await other.leased(large) == [5]

    run(body())


def test_a_second_connection_of_a_name_replaces_the_first_at_another_server(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            await one.put()
            first = await one.attach()
            assert await one.leased(first) == [1]
            waiting = asyncio.ensure_future(one.storage.lease("q", first, index_only=False))
            second = await other.attach()
            assert await waiting == []
            assert await other.leased(second) == [1]
            await one.detach(first, lost=True)
            assert await one.storage.sessions("q") == {Consumer("g", "u"): second}

    run(body())


def test_a_sign_of_life_is_known_at_every_server(redis_url: str) -> None:
    clock = Moment()
    consumer = Consumer("g", "u")

    async def body() -> None:
        async with servers(redis_url, 2, clock) as (one, other):
            assert await other.storage.idle("q", consumer, now=0.0) is None
            session = await one.attach()
            clock.now += 7.0
            assert await other.storage.idle("q", consumer, now=0.0) == 7.0
            await one.storage.active("q", session, now=clock.now)
            assert await other.storage.idle("q", consumer, now=0.0) == 0.0
            await one.detach(session)
            assert await other.storage.idle("q", consumer, now=0.0) is None

    run(body())


def test_a_long_poll_ends_when_another_server_puts_what_it_waits_for(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            red = {"color": "red"}
            assert await other.indexes(tags=red) == []
            waiting = asyncio.ensure_future(
                other.storage.wait("q", Selection(0, red), taking=False, timeout_s=30)
            )
            await asyncio.sleep(0)
            await other.redis_storage.check("q")
            await one.put(color="red")
            await waiting
            assert await other.indexes(tags=red) == [1]

    run(body())


def test_what_came_between_a_read_and_the_wait_after_it_is_not_missed(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            assert await other.indexes() == []
            await one.put()
            await other.storage.wait("q", Selection(0), taking=False, timeout_s=30)
            assert await other.indexes() == [1]

    run(body())


def test_a_claim_is_its_servers_alone(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            await one.put()
            assert len(await one.storage.take("q", Selection(0), minimum=1)) == 1
            await other.storage.release("q", [1])
            assert await other.indexes() == []
            await one.storage.release("q", [1])
            assert await other.indexes() == [1]

    run(body())


def test_what_became_of_claims_while_redis_was_away_is_done_when_it_is_back(make_redis: MakeRedis) -> None:
    """An answer that was written, and one that was not: neither item stays hidden."""
    server = make_redis()

    async def body() -> None:
        async with servers(server.url) as (one, other):
            for _ in range(3):
                await one.put()
            assert len(await one.storage.take("q", Selection(0, length=2), minimum=2)) == 2
            await asyncio.to_thread(server.kill)
            await one.storage.settle("q", [1])
            await one.storage.release("q", [2])
            await asyncio.to_thread(server.start)
            while not (one.redis.is_up() and other.redis.is_up()):
                await asyncio.sleep(0.01)
            await one.redis_storage.check("q")
            assert await other.indexes() == [2, 3]
            assert await other.length() == 2

    run(body())


def test_only_what_is_still_claimed_is_gone_when_it_is_settled(redis_url: str) -> None:
    """A server whose lease has expired does not remove items that others have now."""
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, clock=clock) as (one, other):
            await one.put()
            assert len(await one.storage.take("q", Selection(0), minimum=1)) == 1
            await lapse(clock, other)
            assert await other.indexes() == [1]
            await one.storage.settle("q", [1])
            assert await other.indexes() == [1]
            await one.storage.delete("q", [1])
            assert await other.length() == 0

    run(body())


def test_what_another_call_has_stored_is_not_confirmed_without_writing(make_redis: MakeRedis) -> None:
    """WAIT counts from the last write of a connection, so each answer that confirms something follows one: a put that
    was stored before, an item that was committed or deleted before.
    """
    server = make_redis()
    make_redis(replicaof=f"127.0.0.1 {server.port}")

    def offset() -> int:
        with server.client() as client:
            return int(client.info("replication")["master_repl_offset"])

    async def body() -> None:
        async with servers(server.url, 1) as (one,):
            await one.put(key="k")
            assert await one.commit(1) == 1
            confirming = (
                lambda: one.put(key="k"),
                lambda: one.commit(1),
                lambda: one.storage.negative("q", "g", Negative((1,)), now=0.0),
                lambda: one.storage.delete("q", [1]),
                lambda: one.storage.truncate("q", 2),
            )
            for confirm in confirming:
                before = offset()
                await confirm()
                assert offset() > before
            before = offset()
            await one.indexes()
            assert offset() == before

    run(body())


def test_an_idempotency_key_stores_one_item_whichever_server_is_asked(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url) as both:
            answers = await asyncio.gather(
                *(
                    server.storage.append(
                        "q", Frame(0, {"requestId": "r"}, b"x"), priority=0, limits=NO_LIMITS, key="k"
                    )
                    for server in both * 10
                )
            )
            assert sum(answer.duplicate for answer in answers) == 19
            assert {answer.index for answer in answers} == {1}

    run(body())


def test_old_idempotency_keys_are_forgotten_once_there_are_newer_ones_enough(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "REMEMBER_KEYS", 2)
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 1, clock) as (server,):

            async def put(key: str) -> Ack:
                frame = Frame(0, {"requestId": "r"}, b"x")
                return await server.storage.append("q", frame, priority=0, limits=NO_LIMITS, key=key)

            for key in ("a", "b", "c"):
                assert not (await put(key)).duplicate
            assert (await put("a")).duplicate
            clock.now += remote.REMEMBER_S
            assert not (await put("d")).duplicate
            assert [(await put(key)).duplicate for key in ("c", "d", "a")] == [True, True, False]

    run(body())


# -- a server that is gone ---------------------------------------------------------------------------------------------


def test_what_a_dead_server_had_goes_to_others_as_from_a_lost_connection(redis_url: str) -> None:
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 2, clock) as (dead, alive):
            for _ in range(3):
                await dead.put()
            assert await dead.leased(await dead.attach("first", window=2), 2) == [1, 2]
            taken = await dead.storage.take("q", Selection(3), minimum=1)
            assert [frame.index for frame in taken] == [3]
            await dead.die()
            heir = await alive.attach("heir")
            await alive.redis_storage.check("q")
            assert await alive.redis_storage.fetch("q", heir, index_only=True) == []
            await lapse(clock, alive)
            assert await alive.leased(heir) == [3]
            assert await alive.storage.sessions("q") == {Consumer("g", "heir"): heir}
            clock.now += TIMING.leave_grace_s
            assert await alive.leased(heir, 2) == [1, 2]

    run(body())


def test_a_server_that_was_taken_for_gone_hands_out_nothing_more(redis_url: str) -> None:
    """Its connections end, its calls for them are ignored, and their numbers are not used again."""
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 2, clock) as (asleep, awake):
            await awake.put()
            old = await asleep.attach("old")
            assert await asleep.leased(old) == [1]
            waiting = asyncio.ensure_future(asleep.storage.lease("q", old, index_only=False))
            await lapse(clock, awake)
            await awake.put()
            assert await waiting == []
            await asleep.detach(old, lost=True)
            new = await awake.attach("new")
            assert new == 2
            clock.now += TIMING.leave_grace_s
            assert sorted(await awake.leased(new, 2)) == [1, 2]
            assert await asleep.commit(1, 2) == 2

    run(body())


def test_items_that_were_fetched_before_a_long_sleep_reach_nobody_after_it(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was in the socket while the server stood still and its lease expired."""
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 2, clock) as (asleep, awake):
            await awake.put()
            session = await asleep.attach("old")
            heard = asleep.redis.call

            async def late(script: str, *args: Any, **kwargs: Any) -> Any:
                reply = await heard(script, *args, **kwargs)
                if script == "fetch":
                    monkeypatch.setattr(asleep.redis, "call", heard)
                    await lapse(clock, awake)
                    loop = asyncio.get_running_loop()
                    woken_at = loop.time() + LEASE_S
                    monkeypatch.setattr(loop, "time", lambda: woken_at)
                return reply

            monkeypatch.setattr(asleep.redis, "call", late)
            assert await asleep.storage.lease("q", session, index_only=False) == []
            monkeypatch.undo()

    asyncio.run(body())


def test_after_an_absence_of_redis_nobody_is_taken_for_gone(redis_url: str) -> None:
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 2, clock) as (one, other):
            await one.put()
            session = await one.attach()
            assert await one.leased(session) == [1]
            clock.now += 10 * LEASE_S
            await other.redis_storage.check("q")
            assert await other.storage.sessions("q") == {Consumer("g", "u"): session}

    run(body())


def test_a_clock_of_redis_that_is_put_back_keeps_nothing_waiting(redis_url: str) -> None:
    """Also that of a replica that was promoted: a back-off and the time of a dead server end when they would have."""
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 2, clock) as (dead, alive):
            await alive.put()
            await alive.put()
            session = await alive.attach(window=1)
            for _ in range(2):
                assert await alive.leased(session) == [1]
                assert await alive.negative(1) == 1
            assert await alive.leased(session) == [2]
            assert await alive.commit(2) == 1
            other = await dead.attach("dead", window=2, tags={"for": "dead"})  # not what failed at the first
            assert await dead.put(**{"for": "dead"}) == 3
            assert await dead.leased(other) == [3]
            await dead.die()
            await alive.redis_storage.check("q")
            clock.now -= 900.0
            await alive.redis_storage.check("q")
            clock.now += TIMING.backoff_s[1]
            assert await alive.leased(session) == [1]
            assert await alive.commit(1) == 1
            await lapse(clock, alive)
            clock.now += TIMING.leave_grace_s
            assert await alive.leased(session) == [3]

    run(body())


def test_a_server_that_is_gone_costs_its_items_no_failure(redis_url: str) -> None:
    """Nor a loss: they are as before, and go to others after the grace."""
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 2, clock) as (dead, alive):
            await alive.put()
            session = await dead.attach("theirs", process="p")
            assert await dead.leased(session) == [1]
            await dead.die()
            heir = await alive.attach("ours")
            await lapse(clock, alive)
            clock.now += TIMING.leave_grace_s
            await alive.redis_storage.check("q")
            assert await alive.leased(heir) == [1]
            await alive.put()
            assert await alive.leased(heir) == [2]  # beside it: what was lost would be alone
            await alive.negative(1)
            assert await alive.leased(heir) == [1]  # its first failure, with no delay after it

    run(body())


def test_servers_that_stood_still_give_who_comes_back_its_time(redis_url: str) -> None:
    """No server called for longer than the grace period: items of a lost consumer are held for it once more."""
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 1, clock) as (only,):
            await only.put()
            await only.redis_storage.check("q")
            mine = await only.attach("mine", process="p")
            other = await only.attach("other")
            assert await only.leased(mine) == [1]
            await only.detach(mine, lost=True)
            clock.now += 0.6 * LEASE_S
            await only.redis_storage.check("q")
            assert await only.redis_storage.fetch("q", other, index_only=False) == []
            assert await only.leased(await only.attach("mine", process="p")) == [1]
            assert (await only.redis_storage.attributes("q", now=0.0)).length == 1

    run(body())


def test_a_server_that_stops_gives_up_what_it_has(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            for _ in range(3):
                await one.put()
            assert await one.leased(await one.attach("first", window=2), 2) == [1, 2]
            await one.storage.take("q", Selection(3), minimum=1)
            heir = await other.attach("heir")
            await one.storage.close()
            assert sorted(await other.leased(heir, 3)) == [1, 2, 3]

    run(body())


def test_a_fetch_whose_answer_was_lost_is_answered_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The items are neither withheld from the consumer nor counted twice."""

    async def body() -> None:
        async with servers(redis_url, 1) as (server,):
            for _ in range(2):
                await server.put()
            session = await server.attach()
            heard = server.redis.call

            async def deaf(script: str, *args: Any, **kwargs: Any) -> Any:
                await heard(script, *args, **kwargs)
                if script == "fetch":
                    monkeypatch.setattr(server.redis, "call", heard)
                    raise StorageError("the connection broke")

            monkeypatch.setattr(server.redis, "call", deaf)
            leases = await server.storage.lease("q", session, index_only=False)
            assert [(lease.frame.index, lease.deliveries) for lease in leases] == [(1, 1), (2, 1)]

    run(body())


def test_a_fetch_that_is_answered_again_leaves_out_what_was_handed_out_once_more(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            await one.put()
            await one.put()
            session = await one.attach()
            heard = one.redis.call

            async def deaf(*args: Any, **kwargs: Any) -> Any:
                await heard(*args, **kwargs)
                raise StorageError("the connection broke")

            monkeypatch.setattr(one.redis, "call", deaf)
            with pytest.raises(StorageError):
                await one.redis_storage.fetch("q", session, index_only=True)
            monkeypatch.undo()
            assert await other.negative(1) == 1
            assert await one.leased(session, 2) == [2, 1]
            assert await one.redis_storage.fetch("q", session, index_only=True) == []

    run(body())


def test_an_attach_and_a_claim_whose_answers_were_lost_hold_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            await one.put()
            await one.put()
            heard = one.redis.call

            async def deaf(*args: Any, **kwargs: Any) -> Any:
                await heard(*args, **kwargs)
                raise StorageError("the connection broke")

            monkeypatch.setattr(one.redis, "call", deaf)
            with pytest.raises(StorageError):
                await one.storage.take("q", Selection(2), minimum=1)
            with pytest.raises(StorageError):
                await one.attach("lost")
            monkeypatch.undo()
            assert await other.indexes() == [1]
            heir = await other.attach("heir")
            assert await other.redis_storage.fetch("q", heir, index_only=True) == []
            await one.redis_storage.check("q")
            assert sorted(await other.leased(heir, 2)) == [1, 2]

    run(body())


def test_an_item_whose_dead_letter_was_cut_off_gets_one_from_the_next_server(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No consumer gets the item meanwhile. It is in the rear store once, and is answered once."""
    clock = Moment()
    dead_letters = DeadLetterPolicy(
        1,
        "q#rear",
        Limits(),
        lambda frame, _: Frame(0, frame.tags, frame.data),
        "q/sink",
        lambda frame, _: frame,
    )

    async def body() -> None:
        async with servers(redis_url, 0) as _:
            both = [Server(redis_url, clock) for _ in range(2)]
            for server in both:
                await server.storage.start(server.failures.append)
                for name, one in (("q#rear", None), ("q/sink", None), ("q", dead_letters)):
                    await server.storage.open(name, one)
            dead, alive = both
            await dead.put(b"poison")
            session = await dead.attach()
            assert await dead.leased(session) == [1]
            heard = dead.redis.call

            async def dies(script: str, *args: Any, **kwargs: Any) -> Any:
                if script == "dead_letter":
                    raise Unavailable("the server was killed")
                return await heard(script, *args, **kwargs)

            monkeypatch.setattr(dead.redis, "call", dies)
            assert await dead.negative(1) == 1
            heir = await alive.attach("heir")
            assert await alive.redis_storage.fetch("q", heir, index_only=True) == []
            clock.now += 5.0
            await alive.redis_storage.check("q")
            while await alive.length() > 0:
                await asyncio.sleep(0.01)
            for name in ("q#rear", "q/sink"):
                assert len(await alive.storage.read(name, Selection(0, length=9))) == 1
            for server in both:
                await server.storage.close()

    run(body())


# -- a Redis that forgets ----------------------------------------------------------------------------------------------


def test_a_flush_is_reported_and_no_index_is_given_twice(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            for _ in range(3):
                await one.put()
            session = await one.attach()
            assert await one.leased(session, 3) == [1, 2, 3]
            with redis.Redis.from_url(redis_url) as client:
                client.flushall()
            with caplog.at_level(logging.WARNING):
                assert await one.put() == 3 + remote.RAISE + 1
                assert await other.put() == 3 + remote.RAISE + 2
            assert "acknowledged items may have been lost" in caplog.text
            assert (await other.storage.attributes("q", now=0.0)).epoch == 1
            assert await one.storage.lease("q", session, index_only=False) == []
            assert await one.attach() > session

    run(body())


def test_each_flush_is_another_epoch(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url) as (one, other):
            assert await one.put() == 1
            for epoch in (1, 2, 3):
                with redis.Redis.from_url(redis_url) as client:
                    client.flushall()
                await one.put()
                last = await other.put()
                assert last == 1 + epoch * (remote.RAISE + 2)
                for engine in (one, other):
                    assert (await engine.storage.attributes("q", now=0.0)).epoch == epoch

    run(body())


def test_a_new_server_after_a_flush_cannot_make_an_old_one_give_indexes_again(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url, 1) as (old,):
            for _ in range(3):
                await old.put()
            with redis.Redis.from_url(redis_url) as client:
                client.flushall()
            async with servers(redis_url, 1) as (new,):
                assert await new.put() == 1
                assert await old.put() > 3
                assert await new.put() > 3

    run(body())


def test_another_run_of_redis_is_another_epoch_once_for_all_servers(make_redis: MakeRedis) -> None:
    server = make_redis()

    async def body() -> None:
        async with servers(server.url) as both:
            one, other = both
            await one.put()
            await asyncio.to_thread(server.restart)
            for engine in both:
                while not engine.redis.is_up():
                    await asyncio.sleep(0.01)
            assert await one.put() == 1 + remote.RAISE + 1
            assert await other.put() == 1 + remote.RAISE + 2
            assert (await one.storage.attributes("q", now=0.0)).epoch == 1
            assert await other.length() == 3

    run(body())


def test_a_watch_goes_on_after_an_absence_of_redis(make_redis: MakeRedis) -> None:
    """No item that was pushed is delivered again, and later items are delivered."""
    server = make_redis()

    async def body() -> None:
        async with servers(server.url, 1) as (engine,):
            await engine.put()
            session = await engine.attach()
            assert await engine.leased(session) == [1]
            waiting = asyncio.ensure_future(engine.storage.lease("q", session, index_only=False))
            await asyncio.to_thread(server.restart)
            while True:
                try:
                    index = await engine.put()
                    break
                except (Unavailable, StorageError):
                    await asyncio.sleep(0.05)
            assert [lease.frame.index for lease in await waiting][-1:] == [index]

    run(body())


def test_a_stream_of_another_schema_is_refused(redis_url: str) -> None:
    async def body() -> None:
        async with servers(redis_url, 1) as (server,):
            await server.put()
            with redis.Redis.from_url(redis_url) as client:
                client.hset("easq:{q}:meta", "schema", "99")
            late = Server(redis_url, None)
            with pytest.raises(StorageError, match="has schema '99', this easq knows 2"):
                await late.start()
            await late.die()

    run(body())


def test_a_call_is_not_begun_while_its_slot_moves(make_redis: MakeRedis) -> None:
    """A script fails at the first key that is not there, as it may be at the other node; half of its work would stay
    done: an item that is pending nowhere and ready for nobody, a slot of a window that is never free again.
    """
    source, target = make_redis(cluster_enabled="yes"), make_redis(cluster_enabled="yes")
    join(source, target, boundary=SLOTS)
    slot = source.ask("CLUSTER", "KEYSLOT", "{q}")

    def set_slot(*what: str) -> None:
        source.ask("CLUSTER", "SETSLOT", str(slot), *what)

    async def body() -> None:
        async with servers(f"redis+cluster://127.0.0.1:{source.port}", 1) as (server,):
            await server.put()
            await server.put()
            await server.detach(await server.attach(group="absent"))
            session = await server.attach(window=1)
            assert await server.leased(session) == [1]
            set_slot("MIGRATING", text_of(target.ask("CLUSTER", "MYID")))
            with pytest.raises(Unavailable, match="the queue moves"):
                await server.negative(1)
            set_slot("STABLE")
            assert await server.negative(1) == 1
            assert await server.leased(session) == [1]

    run(body())


def test_a_connection_that_is_made_while_a_slot_moves_is_there_for_the_other_queues(
    make_redis: MakeRedis,
) -> None:
    source, target = make_redis(cluster_enabled="yes"), make_redis(cluster_enabled="yes")
    join(source, target, boundary=SLOTS)
    slot = source.ask("CLUSTER", "KEYSLOT", "{q}")

    async def body() -> None:
        async with servers(f"redis+cluster://127.0.0.1:{source.port}", 1) as (server,):
            await server.put()
            await server.storage.open("other")
            source.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", text_of(target.ask("CLUSTER", "MYID")))
            source.ask("CLIENT", "KILL", "TYPE", "normal")
            await asyncio.sleep(0.05)
            ack = await server.storage.append(
                "other", Frame(0, {"requestId": "r"}, b"x"), priority=0, limits=NO_LIMITS
            )
            assert ack.index == 1
            with pytest.raises(Unavailable, match="the queue moves"):
                await server.put()
            source.ask("CLUSTER", "SETSLOT", str(slot), "STABLE")
            assert await server.put() == 2

    run(body())


# -- many consumers ----------------------------------------------------------------------------------------------------


def test_signs_of_life_and_fetches_do_not_read_all_connections(redis_url: str) -> None:
    """Each watcher makes one a second: together they would cost as much as the square of their number."""

    def read_whole() -> int:
        """How often a whole hash was read, as that of a group's connections is."""
        with redis.Redis.from_url(redis_url) as client:
            return int(client.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"])

    async def body() -> None:
        async with servers(redis_url, 1) as (server,):
            sessions = [await server.attach(f"u{n}") for n in range(3)]
            await server.put()
            before = read_whole()
            for session in sessions:
                await server.storage.active("q", session, now=0.0)
                await server.redis_storage.fetch("q", session, index_only=True)
            assert read_whole() == before
            await server.commit(1)
            assert read_whole() > before

    run(body())


# -- long backlogs -----------------------------------------------------------------------------------------------------


def test_what_one_call_may_not_do_is_done_by_more(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans, dispatches and removals of more entries than one script examines."""
    monkeypatch.setattr(remote, "BUDGET", 5)

    async def body() -> None:
        async with servers(redis_url, 1) as (server,):
            for n in range(23):
                await server.put(str(n).encode(), color="red" if n == 20 else "blue")
            assert await server.indexes() == list(range(1, 24))
            assert await server.indexes(tags={"color": "red"}) == [21]
            assert await server.storage.count("q", tags={"color": "blue"}, priority=0) == 22
            red = await server.attach("red", group="r", tags={"color": "red"})
            assert await server.leased(red) == [21]
            taken = await server.storage.take("q", Selection(2, length=12), minimum=12)
            assert [frame.index for frame in taken] == list(range(2, 14))
            await server.storage.release("q", range(2, 14))
            wide = await server.attach("wide", window=23)
            assert await server.leased(wide, 23) == list(range(1, 24))
            assert await server.storage.truncate("q", 20) == 19
            await server.storage.end("q", ended=True)
            await server.commit(20, 21, 22, 23)
            await server.commit(20, 21, 22, 23, group="r")
            with pytest.raises(StreamEnded):
                await server.leased(wide)

    run(body())


def test_many_items_of_one_request_id_are_looked_at_in_several_calls(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BUDGET", 5)
    same = {"requestId": "same"}

    async def body() -> None:
        async with servers(redis_url, 1) as (server,):
            for _ in range(23):
                await server.put(**same)
            await server.put(requestId="other")
            scripts: list[str] = []
            ask = server.redis_storage._heartbeat.ask

            async def counted(stream: remote.RemoteStream, script: str, *args: Any, **options: Any) -> Any:
                scripts.append(script)
                return await ask(stream, script, *args, **options)

            monkeypatch.setattr(server.redis_storage._heartbeat, "ask", counted)
            assert await server.storage.count("q", tags=same, priority=None) == 23
            assert await server.indexes(tags=same) == list(range(1, 24))
            taken = await server.storage.take("q", Selection(3, same, 12), minimum=12)
            assert [frame.index for frame in taken] == list(range(3, 15))
            assert await server.storage.count("q", tags=same, priority=None) == 11
            assert scripts.count("count") >= 2 * 23 // 6
            assert scripts.count("read") >= 23 // 6
            assert scripts.count("take") >= 12 // 6

    run(body())


def test_more_filters_than_one_call_looks_at_hold_nothing_up(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BUDGET", 5)
    many = range(1, 13)

    async def body() -> None:
        async with servers(redis_url, 1) as (server,):
            sessions = [await server.attach(f"u{n}", tags={"n": str(n)}) for n in many]
            assert [await server.put(n=str(n)) for n in many] == [*many]
            assert [await server.leased(session) for session in sessions] == [[n] for n in many]

    run(body())


def test_a_long_absent_groups_many_items_leave_in_several_calls(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BUDGET", 5)
    clock = Moment()

    async def body() -> None:
        async with servers(redis_url, 1, clock) as (server,):
            for _ in range(23):
                await server.put()
            gone, stays = await server.attach(group="gone"), await server.attach(group="stays", window=23)
            await server.leased(stays, 23)
            await server.detach(gone)
            await server.commit(*range(1, 23), group="stays")
            assert await server.length() == 23
            clock.now += TIMING.group_retention_s
            while await server.length() > 1:
                await server.redis_storage.check("q")
            assert await server.indexes() == [23]

    run(body())
