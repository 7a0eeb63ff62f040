"""The engine that a storage URL names."""

from __future__ import annotations

from pathlib import Path

import pytest

from easq.errors import UsageError
from easq.storage.memory import MemoryStorage
from easq.storage.open import open_client, open_storage
from easq.storage.sqlite.engine import SqliteStorage


def test_the_embedded_engines(tmp_path: Path) -> None:
    assert isinstance(open_storage("memory:"), MemoryStorage)
    assert isinstance(open_storage(f"sqlite:{tmp_path}/q.db"), SqliteStorage)
    assert not list(tmp_path.iterdir()), "nothing is opened before the start"


def test_a_redis() -> None:
    pytest.importorskip("redis")
    assert type(open_storage("redis://127.0.0.1:6379")).__module__ == "easq.storage.redis.engine"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("", {}),
        ("memory", {}),
        ("memory:x", {}),
        ("sqlite:", {}),
        ("mysql://host", {}),
        ("redis://127.0.0.1", {"durability": "os"}),
        ("redis://127.0.0.1", {"recover": True}),
        ("redis://example.com", {}),
        ("memory:", {"wait_replicas": 1}),
    ],
)
def test_what_names_no_engine_is_refused(url: str, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        open_storage(url, **options)  # type: ignore[arg-type]


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(UsageError) as refused:
        open_storage("mysql://user:secret@host/db")
    assert "secret" not in f"{refused.value} {refused.value.hint}"


def test_a_redis_that_others_reach_may_be_open_if_that_is_wanted() -> None:
    pytest.importorskip("redis")
    assert open_client("redis://example.com", allow_open=True)
