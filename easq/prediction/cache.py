"""The last good list of instances, on disk: `$XDG_CACHE_HOME/easq/upstreams-KEY.json`, one file a service.

A run that finds a young one there asks nobody. It is a convenience: where it cannot be read or written, the list
is asked for. What is read is held to the same rules as an answer, for it decides where tokens go.
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

#: bytes; a list of as many instances as are taken fits in it
_MAX_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """A list of instances, and when it was the answer, in Unix seconds."""

    instances: tuple[Instance, ...]
    time: float


def list_file(folder: Path, endpoint: str, service: str) -> Path:
    """The file of `service` at `endpoint`."""
    return folder / f"upstreams-{_key(endpoint, service)}.json"


def turn_file(folder: Path, endpoint: str) -> Path:
    """The file with the time when `endpoint` was last asked, about any service."""
    return folder / f"asked-{_key(endpoint)}"


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def read_list(file: Path, read: Callable[[bytes], Upstreams]) -> Kept | None:
    """What is kept in `file`, as `read` reads an answer; None for nothing, and for what others may have written."""
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
    return Kept(found.instances, float(moment))


def write_list(file: Path, answer: bytes, time: float) -> None:
    """`file` holds what `answer` says, whole and readable by nobody else; or, where it cannot, what it held."""
    with contextlib.suppress(OSError):
        files.make_private_folder(file.parent)
        kept = {"time": time, "answer": json.loads(answer)}
        files.replace(file, json.dumps(kept).encode(), sync=False, follow=False)
