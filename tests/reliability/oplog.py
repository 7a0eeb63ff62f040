"""Logs of the clients: one line per event, appended at once, so that the log of a killed test is complete."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """One event of a history.

    `f` is put, deliver, commit, negative, delete, open, close, or a fault: kill, freeze, thaw, restart. `phase` is
    invoke before the first byte goes out, then ok (a 2xx was read), fail (certainly without effect) or info (who
    knows). `op` joins the phases of one operation. `group` stays empty where there is one group alone, and `server`
    where there is one server; `deliveries` is what the service says how often the group got the item, 0 for not asked.
    """

    t: float
    client: str
    f: str
    phase: str = "ok"
    op: int = 0
    index: int = 0
    payload: str = ""
    connection: str = ""
    window: int = 0
    indexes: tuple[int, ...] = field(default=())
    group: str = ""
    server: str = ""
    deliveries: int = 0


class Log:
    """The log of one client. Its clock is the machine's monotonic one, which all processes share."""

    def __init__(self, folder: Path, client: str) -> None:
        self.client = client
        self._handle = os.open(
            folder / f"{client}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        )

    def add(self, f: str, phase: str = "ok", **details: Any) -> None:
        line = {"t": time.monotonic(), "client": self.client, "f": f, "phase": phase, **details}
        os.write(self._handle, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        os.close(self._handle)


def read(folder: Path) -> list[Event]:
    """All events of all clients, in the order of time."""
    return sorted(_events(folder), key=lambda event: event.t)


def _events(folder: Path) -> Iterator[Event]:
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            found = json.loads(line)
            yield Event(**{**found, "indexes": tuple(found.get("indexes", ()))})
