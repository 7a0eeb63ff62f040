"""Dead letters at Redis: a script requests one, the server makes it, another script stores it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from easq.model import Frame
from easq.storage.base import DeadLetterPolicy, Failure
from easq.storage.redis.codec import pack_tags, unpack_tags
from easq.storage.redis.stream import RemoteStream, key_prefix

log = logging.getLogger(__name__)


async def write_dead_letter(
    ask: Callable[..., Awaitable[tuple[str, Any]]],
    remote: RemoteStream,
    policy: DeadLetterPolicy,
    group: bytes,
    index: bytes,
) -> None:
    """Store the dead letter of the item that the group has exhausted, unless none is needed any more.

    `ask` calls a script of the stream. Raises StorageError and Unavailable.
    """
    _, found = await ask(remote, "exhausted", group, index, replicated=False)
    if found is None:
        return
    tags, data, deliveries, failures, code, reason = found
    frame = Frame(int(index), unpack_tags(tags), data)
    why = Failure(
        group.decode(),
        deliveries,
        failures,
        code.decode(errors="surrogatepass"),
        reason.decode(errors="surrogatepass"),
    )
    copy = policy.rear_copy(frame, why)
    answer = policy.answer(frame, why) if policy.sink else Frame(0)
    limits = policy.rear_limits
    status, _ = await ask(
        remote,
        "dead_letter",
        group,
        index,
        key_prefix(policy.rear),
        limits.max_items,
        limits.max_bytes,
        pack_tags(copy.tags),
        copy.data,
        key_prefix(policy.sink) if policy.sink else "",
        pack_tags(answer.tags),
        answer.data,
    )
    if status == "full":
        log.warning("%s: item %d is out of failures and the rear store is full", remote.name, int(index))
