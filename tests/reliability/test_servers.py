"""Several `easq serve` on one Redis, under load, while servers and Redis are killed and held."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.reliability.fleet import Fleet, Nemesis, Outcome, run

SEED = int(os.environ.get("EASQ_SEED", "20240601"))


def check(outcome: Outcome, fleet: Fleet, folder: Path, record: Callable[[str, object], None]) -> None:
    """Nothing was broken, a good deal was done, and nothing is left."""
    for name, value in outcome.figures.items():
        record(name, value)
    found = outcome.violations
    shown = f"{len(found)} violations, logs in {folder}: {found[:5]}\n{outcome.figures}\n{fleet.logs()}"
    assert found == [], shown
    assert set(outcome.left) == {0}, shown
    assert outcome.figures["puts acknowledged"] > 200, shown


@pytest.mark.long
def test_one_server_on_a_file_keeps_the_same_promises(
    serve: Serve, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The clients and the rules of a fleet hold for what is known to be right."""

    def course(nemesis: Nemesis) -> None:
        nemesis.peace()
        nemesis.hold_a_server(3.0)
        nemesis.peace()

    fleet = Fleet([serve()])
    check(run(fleet, tmp_path / "oplog", course, SEED), fleet, tmp_path, record_property)
