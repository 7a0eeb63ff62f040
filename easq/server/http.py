"""The operations of a queue over HTTP: each calls the queue, and returns the reply. A watch is in watch.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from aiohttp import web

from easq.errors import PayloadTooLarge
from easq.model import Consumer, Frame
from easq.protocol import operations as op
from easq.protocol import replies
from easq.protocol.replies import Reply
from easq.server.connection import drain, until_lost
from easq.server.queue import Queue
from easq.server.request import read_body
from easq.server.response import SlicedResponse, acknowledge, respond

P = ParamSpec("P")
T = TypeVar("T")

#: a reply with more bytes of payload is encoded in a thread (8 MiB in JSON take 30 ms), and written in slices
LARGE_BYTES = 1024**2
#: most bytes of a body that is not a payload, such as the form of a negative
_MAX_FORM = 64 * 1024


class ServiceState:
    """State that all requests of a service share: whether it stops, and a thread that encodes large payloads."""

    def __init__(self) -> None:
        self.stopping = False
        # one thread: several would contend for the interpreter lock
        self._encoder = ThreadPoolExecutor(1, "easq-encode")

    async def in_encoder_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in the thread for large payloads, and return its result. Calls run one after the other."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoder, partial(work, *args, **kwargs))

    def close(self) -> None:
        """End the thread, once no request is in flight."""
        self._encoder.shutdown(wait=False)


@dataclass(slots=True, eq=False)
class QueueCall:
    """A request for an operation: the queue that it names, who sends it, and the HTTP request."""

    queue: Queue
    consumer: Consumer
    request: web.BaseRequest
    state: ServiceState

    def is_gone(self) -> bool:
        """Return whether the caller has disconnected, or the service stops: a long poll then ends without items."""
        transport = self.request.transport
        return self.state.stopping or transport is None or transport.is_closing()

    def until_lost(self) -> asyncio.Future[None]:
        """Return the future that is done when the caller disconnects."""
        return until_lost(self.request)


async def read_operation(request: web.BaseRequest, queue: Queue) -> bytes:
    """Return the body of an operation on `queue`. Raises PayloadTooLarge."""
    if request.method == "POST":
        return await read_body(request, queue.policy.max_payload, queue.too_large)
    return await read_body(
        request,
        _MAX_FORM,
        lambda size: PayloadTooLarge(f"the body has {size} bytes, {_MAX_FORM} are allowed here"),
    )


async def put(operation: op.Put, call: QueueCall) -> web.StreamResponse:
    """Store the item."""
    return acknowledge(replies.put_reply(await call.queue.put(operation)), call.request)


async def end(operation: op.End, call: QueueCall) -> web.StreamResponse:
    """End the stream, or reopen it."""
    await call.queue.end(operation)
    return respond(replies.ok_reply())


async def describe(operation: op.Describe, call: QueueCall) -> web.StreamResponse:
    """Return the attributes of the queue."""
    return respond(replies.attributes_reply(await call.queue.attributes(), operation.codec))


async def search(operation: op.Search, call: QueueCall) -> web.StreamResponse:
    """Return where an item stands in the caller's group."""
    return respond(replies.search_reply(await call.queue.search(call.consumer, operation.index)))


async def count(operation: op.Count, call: QueueCall) -> web.StreamResponse:
    """Return how many items match."""
    return respond(replies.count_reply(await call.queue.count(operation, is_gone=call.is_gone)))


async def commit(operation: op.Commit, call: QueueCall) -> web.StreamResponse:
    """Commit items for the caller's group."""
    changed = await call.queue.commit(call.consumer, operation.indexes)
    return acknowledge(replies.ok_reply({replies.COMMITTED_HEADER: str(changed)}), call.request)


async def negative(operation: op.Negative, call: QueueCall) -> web.StreamResponse:
    """Return items to the caller's group."""
    changed = await call.queue.negative(call.consumer, operation)
    return acknowledge(replies.ok_reply({replies.COMMITTED_HEADER: str(changed)}), call.request)


async def delete(operation: op.Delete, call: QueueCall) -> web.StreamResponse:
    """Delete items for all groups."""
    deleted = await call.queue.delete(operation.indexes)
    return respond(replies.ok_reply({replies.DELETED_HEADER: str(deleted)}))


async def truncate(operation: op.Truncate, call: QueueCall) -> web.StreamResponse:
    """Delete all items below an index for all groups."""
    deleted = await call.queue.truncate(operation.index)
    return respond(replies.ok_reply({replies.DELETED_HEADER: str(deleted)}))


async def get(operation: op.Get, call: QueueCall) -> web.StreamResponse:
    """Return the items that match. With auto-delete, send the answer here, and then remove the items."""
    frames = await call.queue.get(operation, is_gone=call.is_gone, gone=call.until_lost)
    try:
        if sum(len(frame.data) for frame in frames) > LARGE_BYTES:
            response: web.StreamResponse = SlicedResponse(
                await call.state.in_encoder_thread(_frames_reply, operation, frames)
            )
        else:
            response = respond(_frames_reply(operation, frames))
    except BaseException:
        if operation.auto_delete and frames:
            await call.queue.give_back(frames)
        raise
    if not operation.auto_delete or not frames:
        return response
    return await _send_then_settle(response, call, frames)


def _frames_reply(get: op.Get, frames: list[Frame]) -> Reply:
    if get.codec is not op.Codec.RAW:
        return replies.frames_reply(frames, get.codec)
    if not frames:
        return Reply(204)
    return replies.raw_reply(frames[0]) if get.length == 1 else replies.frames_reply(frames, op.Codec.JSON)


async def _send_then_settle(
    response: web.StreamResponse, call: QueueCall, frames: list[Frame]
) -> web.StreamResponse:
    """Send the answer. Remove the claimed items if the kernel has taken the whole answer, else give them back."""
    request, is_written = call.request, False
    try:
        transport = request.transport
        if transport is not None:
            transport.set_write_buffer_limits(high=0)
        await response.prepare(request)
        await response.write_eof()
        await drain(request)
        is_written = True
    except ConnectionError:
        pass
    finally:
        if is_written:
            await call.queue.settle(frames)
        else:
            await call.queue.give_back(frames)
    return response
