"""Groups after a restart of the real service: forgotten groups stay forgotten, and groups with consumers at the stop
still retain items.
"""

from __future__ import annotations

import time

import pytest

from tests.conftest import Serve
from tests.support.websocket import watch


@pytest.mark.long
@pytest.mark.parametrize("killed", [True, False])
def test_a_forgotten_group_holds_nothing_back_after_a_restart(serve: Serve, killed: bool) -> None:
    service = serve("--group-retention", "4s")
    old = service.stream().as_consumer("u", "old")
    with watch(old) as watching:
        assert old.put() == 1
        assert watching.indexes(1) == [1]
        old.commit(1)
    time.sleep(5.5)
    (service.kill if killed else service.terminate)()
    service.start()
    newer = service.stream().as_consumer("u", "newer")
    with watch(newer) as watching:
        indexes = [newer.put() for _ in range(3)]
        assert watching.indexes(3) == indexes
        newer.commit(*indexes)
        assert newer.length() == 0


@pytest.mark.parametrize("killed", [True, False])
def test_a_group_that_was_there_until_the_end_holds_its_items_after_it(serve: Serve, killed: bool) -> None:
    """Whoever comes first."""
    service = serve()
    slow = service.stream().as_consumer("u", "slow")
    with watch(slow) as watching:
        assert slow.put() == 1
        assert watching.indexes(1) == [1]
        (service.kill if killed else service.terminate)()
    service.start()
    slow, quick = (service.stream().as_consumer("u", group) for group in ("slow", "quick"))
    quick.commit(1)
    assert quick.length() == 1
    with watch(slow) as watching:
        assert watching.indexes(1) == [1]
        slow.commit(1)
    assert slow.length() == 0
