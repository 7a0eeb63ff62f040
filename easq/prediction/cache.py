"""The last good list of instances, on disk: `$XDG_CACHE_HOME/easq/upstreams-KEY.json`, one file per service.

With a recent list in the file, no look-up is needed. If the file cannot be read or written, a look-up is made each
time. The content is checked like an answer, because it decides where tokens are sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from easq.model import Instance
from easq.net import files
from easq.protocol.discovery import Upstreams

#: maximum size of the file in bytes; the longest accepted list fits
_MAX_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CachedList:
    """A list of instances, and the time of its answer, in Unix seconds."""

    instances: tuple[Instance, ...]
    time: float


def list_file(folder: Path, endpoint: str, service: str) -> Path:
    """Return the file for the list of `service` at `endpoint`."""
    return folder / f"upstreams-{_key(endpoint, service)}.json"


def limiter_file(folder: Path, endpoint: str) -> Path:
    """Return the file for the time of the last look-up at `endpoint`, whatever the service."""
    return folder / f"asked-{_key(endpoint)}"


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def read_list(file: Path, read: Callable[[bytes], Upstreams]) -> CachedList | None:
    """Return the list in `file`, parsed by `read`; None without a valid list, or if other users can write the file."""
    try:
        data, status = files.read_regular(file, _MAX_BYTES, follow=False)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return None
        document = json.loads(data)
        moment, body = document["time"], json.dumps(document["answer"]).encode()
        found = read(body)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(moment) not in (int, float) or not found.instances:
        return None
    return CachedList(found.instances, float(moment))


def write_list(file: Path, answer: bytes, time: float) -> None:
    """Write `answer` to `file` atomically, readable only by its owner. If writing fails, the file is unchanged."""
    with contextlib.suppress(OSError):
        files.make_private_folder(file.parent)
        cached = {"time": time, "answer": json.loads(answer)}
        files.replace(file, json.dumps(cached).encode(), sync=False, follow=False)
