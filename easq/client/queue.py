"""A client of one stream, input or sink, of a queue service: one method for each operation of the wire."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias, TypeVar
from urllib.parse import unquote
from weakref import WeakSet

from easq.errors import (
    AnswerTooLarge,
    ConfigError,
    DeadlineExceeded,
    EasqError,
    NotAQueueService,
    ServerError,
    Unreachable,
    UsageError,
)
from easq.model import (
    DEFAULT_GROUP,
    DEFAULT_USER,
    MAX_WIRE_INDEX,
    NEWEST,
    NO_INDEX,
    REQUEST_ID,
    Ack,
    Consumer,
    Frame,
    SearchResult,
    Tags,
)
from easq.net.failures import Unanswered
from easq.net.retry import OVERTIME_S, Retry, Steps, Times, exchange, full_jitter
from easq.net.trace import hidden, secrets_of
from easq.net.url import shown, stream_url
from easq.protocol import operations, replies
from easq.protocol.bounds import MAX_FRAMES
from easq.protocol.operations import Caller, Codec, Operation
from easq.protocol.replies import Reply

if TYPE_CHECKING:
    from easq.client.async_watch import AsyncWatcher
    from easq.client.watch import Watcher
    from easq.net.http import HttpxTransport, Transport
    from easq.net.settings import NetworkSettings

T = TypeVar("T")

#: the argument of `commit`, `negative` and `delete`: one frame or index, or several
Items: TypeAlias = int | Frame | Iterable[int | Frame]

#: maximum number of indexes in one request; more indexes are sent in several requests
MAX_INDEXES_PER_REQUEST = 256
#: maximum wait in one request, in seconds: gateways cut off connections that are silent for longer
MAX_POLL_S = 20.0
#: minimum wait in one request after a gateway cut off a longer one, in seconds
_LEAST_POLL_S = 1.0
#: maximum number of items in the first answer of `pages`: 100 of 300 KiB, or 8 of 8 MiB, are within the limit
_FIRST_PAGE = 100
#: maximum number of items in one answer: the services send no more
_MOST_AT_ONCE = 10_000
#: payload wanted in one answer of `pages`, in bytes: a quarter of the limit
_PAGE_BYTES = 16 * 1024**2
_MAY_BE_MORE = "the time is over, and there may be more items"
#: an answer with this much payload, in bytes, may have been cut by a limit on its size
_FULL_BYTES = 1024**2
#: seconds to pause if the server answers a wait at once without items
_IDLE_PAUSE_S = 0.25


class _Gateway:
    """The limits of the gateway in front of a stream, as far as known; shared by all clients of the stream."""

    def __init__(self) -> None:
        self.longest_wait_s = math.inf  #: the gateway answers 504 to a request that waits longer


class _Lifetime:
    """Whether a client is closed; shared by all clients derived from it."""

    def __init__(self) -> None:
        self.is_closed = False


class QueueClient:
    """A client of one stream of a queue service: its input, or its sink.

    A context manager; usable from several threads at once. All methods raise errors of `easq.errors`: Unreachable if
    there is no connection or no answer in time, AuthFailed for a wrong token, NotFound for an unknown queue, and the
    error that the service answers, such as QueueFull. A failed request is repeated within its time limit if that is
    safe.

        with QueueClient("http://127.0.0.1:3030/api/predict/qservice") as queue:
            queue.put(b"data", tags={"type": "a"})
            for frame in queue.watch(window=10):
                queue.commit(frame)
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        group: str = DEFAULT_GROUP,
        user: str = DEFAULT_USER,
        connect_timeout_s: float = 5.0,
        request_timeout_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
        cacert: str = "",
        insecure: bool = False,
        transport: HttpxTransport | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Raises ConfigError for a malformed address, and UsageError for another wrong argument.

        Args:
            url: `http://HOST[:PORT]/api/predict/NAME`, or https; `/sink` at the end selects the sink.
            token: the token, sent with every request; empty for none.
            group: the consumer group for `commit`, `negative`, `search` and `watch`.
            user: the consumer's name in the group; only one watch at a time can use it.
            connect_timeout_s: maximum time to connect, in seconds, above 0.
            request_timeout_s: maximum time of one request with all its retries, in seconds, above 0.
            headers: additional headers of every request.
            cacert: path of a file of CA certificates; empty for those of the system.
            insecure: accept any TLS certificate.
            transport: an httpx transport that sends the requests instead, such as `httpx.MockTransport` in tests.
        """
        from easq.net.http import Transport
        from easq.net.settings import NetworkSettings

        if not isinstance(url, str) or not isinstance(token, str):
            raise UsageError("url and token are text")
        if not (connect_timeout_s > 0 and request_timeout_s > 0):
            raise UsageError("connect_timeout_s and request_timeout_s are above 0")
        settings = NetworkSettings(
            connect_timeout_s, request_timeout_s, dict(headers or {}), cacert=cacert, insecure=insecure
        )
        caller = Caller(Consumer(group, user), token)
        self._prepare(
            stream_url(url, sink=False), caller, Transport(settings, http=transport), owns_transport=True
        )

    @classmethod
    def over(cls, transport: Transport, url: str, caller: Caller) -> QueueClient:
        """Return a client of the stream at `url`, a result of `stream_url`, over connections of `transport`.

        `close` leaves the transport open.
        """
        client = cls.__new__(cls)
        client._prepare(url, caller, transport, owns_transport=False)
        return client

    def _prepare(self, url: str, caller: Caller, transport: Transport, *, owns_transport: bool) -> None:
        self.url = url
        self.caller = caller
        self._transport = transport
        self._owns_transport = owns_transport
        self._until: float | None = None
        self._gateway = _Gateway()
        self._lifetime = _Lifetime()
        self._watchers: WeakSet[Watcher] = WeakSet()

    def __enter__(self) -> QueueClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the watches and close the connections. Clients derived from this one, such as `sink`, are closed too.

        The service delivers uncommitted items again.
        """
        for watcher in list(self._watchers):
            watcher.close()
        if self._owns_transport:
            self._lifetime.is_closed = True
            self._transport.close()

    @property
    def transport(self) -> Transport:
        """The transport that sends the requests."""
        return self._transport

    @property
    def settings(self) -> NetworkSettings:
        """The settings of the connections."""
        return self._transport.settings

    @property
    def sink(self) -> QueueClient:
        """A client of the queue's sink, over the same connections."""
        client = copy(self)
        client.url = stream_url(self.url, sink=True)
        client._gateway = _Gateway()
        return client

    def bounded(self, until: float | None) -> QueueClient:
        """Return a client of the same stream whose requests and retries end at `until`, on the monotonic clock."""
        client = copy(self)
        client._until = until
        return client

    def in_group(self, group: str) -> QueueClient:
        """Return a client of the same stream for another consumer group."""
        return self.called_by(replace(self.caller.consumer, group=group))

    def called_by(self, consumer: Consumer) -> QueueClient:
        """Return a client of the same stream for another consumer."""
        client = copy(self)
        client.caller = replace(self.caller, consumer=consumer)
        return client

    def name(self) -> str:
        """Return the name of the queue, the default group of its workers.

        Raises NotAQueueService if the service does not tell the name.
        """
        return self.describe().name

    def describe(self) -> Description:
        """Return the attributes of the stream and the service's extensions of the EAS protocol."""
        return self._ask(operations.Describe(), _read_description)

    def put(
        self,
        data: bytes | str,
        *,
        tags: Tags | None = None,
        priority: int = 0,
        path: str = "",
        content_type: str = "",
        key: str = "",
    ) -> Ack:
        """Append one item, and return its index and request id after it is stored.

        Raises UsageError for arguments that cannot be sent, QueueFull at the limit of the stream, PayloadTooLarge,
        StreamEnded after `end`, and KeyReused if `key` was used before with other data.

        Args:
            data: the payload; text is sent as UTF-8.
            tags: names and values, by which `get`, `count` and `watch` filter; a name must not begin with `_`.
            priority: 0 or more; items with a higher priority are delivered first.
            path: sub-path of the model, percent-encoded as in a URL; the worker appends it to the model's URL.
            content_type: media type of the data, passed on to the model.
            key: an idempotency key, 1 to 128 visible ASCII characters. With a key, the put is repeated after any
                failure, and the item is stored once. Without a key, the put is repeated only if it certainly was not
                stored.
        """
        put = put_operation(
            as_bytes(data), tags=tags, priority=priority, path=path, content_type=content_type, key=key
        )
        return self.send(put)

    def send(self, put: operations.Put) -> Ack:
        """Append one item, as `put` does. The argument is a result of `put_operation`."""
        return self._ask(put, replies.read_put, retry=Retry.READ if put.key else Retry.WRITE)

    def get(
        self,
        index: int = NO_INDEX,
        *,
        length: int = 1,
        timeout_s: float = 0.0,
        tags: Tags | None = None,
        auto_delete: bool = False,
    ) -> list[Frame]:
        """Return up to `length` items from `index` on that have all `tags`. The items stay in the stream.

        With `timeout_s`, wait until there are `length` items. After that time, return the items that are there, if any.
        If the service answered at least once and is unreachable at the end, the items received are returned without an
        error.

        Args:
            index: the first index; 0 for the first item, `easq.NEWEST` for items that are put from now on.
            length: maximum number of items, 1 to 10,000.
            timeout_s: seconds to wait; 0 for no wait.
            tags: names and values that an item must have.
            auto_delete: delete the returned items, for all groups.
        """
        self._check_open()
        if not timeout_s >= 0:
            raise UsageError(f"timeout_s is 0 or above, and not {timeout_s}")
        return self._transport.run(
            self.getting(index, length=length, timeout_s=timeout_s, tags=tags, auto_delete=auto_delete)
        )

    def pages(
        self,
        index: int = NO_INDEX,
        *,
        length: int,
        timeout_s: float = 0.0,
        tags: Tags | None = None,
    ) -> Iterator[list[Frame]]:
        """Yield up to `length` items from `index` on that have all `tags`, in lists that are not empty.

        The number of items in a list depends on their size, so that each answer is of bounded size. Each request begins
        after the last item of the answer before. The iteration ends after `length` items, or if there are no more items
        within `timeout_s`. Raises DeadlineExceeded if the time is over and there may be more items.
        """
        end = time.monotonic() + timeout_s
        most, left, yielded = _FIRST_PAGE, length, False
        while left > 0:
            size = min(most, left)
            wait_s = max(end - time.monotonic(), 0.0)
            try:
                frames = self._transport.run(
                    self.getting(index, length=size, timeout_s=wait_s, tags=tags, until_full=True)
                )
            except AnswerTooLarge:
                if size == 1:
                    raise
                most = max(size // 4, 1)
                continue
            except (Unreachable, ServerError) as error:
                if yielded and self._is_over:
                    raise DeadlineExceeded(_MAY_BE_MORE) from error
                raise
            if yielded:  # a service that ignores the index would send the same items for ever
                frames = [frame for frame in frames if frame.index >= index]
            if not frames:
                return
            yield frames
            yielded = True
            left -= len(frames)
            index = max(frame.index for frame in frames) + 1
            if left <= 0 or not _is_full(frames, size) or index > MAX_WIRE_INDEX:
                return
            if timeout_s and time.monotonic() >= end:
                raise DeadlineExceeded(_MAY_BE_MORE)
            payload = sum(len(frame.data) for frame in frames)
            most = max(min(most * 10, _MOST_AT_ONCE, len(frames) * _PAGE_BYTES // (payload + 1)), 1)

    def getting(
        self,
        index: int = NO_INDEX,
        *,
        length: int = 1,
        timeout_s: float = 0.0,
        tags: Tags | None = None,
        auto_delete: bool = False,
        until_full: bool = False,
    ) -> Steps[list[Frame]]:
        """Run the steps of `get`. With `until_full`, stop waiting when an answer has reached its maximum size."""
        wanted, length = check_tags(tags), min(length, MAX_FRAMES)
        end = time.monotonic() + timeout_s
        if index == NEWEST and timeout_s > self._poll_s:
            # in a second request, `-1` would skip the items that were put since the first one
            attributes = yield from self.asking(operations.Describe(), _read_attributes)
            index = int(attributes.get("stream.lastEntry", "0")) + 1
        frames: list[Frame] = []
        answered, cut_off = False, 0
        while True:
            wait_s = min(max(end - time.monotonic(), 0.0), self._poll_s)
            get = operations.Get(
                index,
                length - len(frames) if auto_delete else length,
                round(wait_s, 3),
                auto_delete,
                wanted,
                Codec.PROTOBUF,
            )
            began = time.monotonic()
            try:
                poll = Retry.POLL if wait_s > _LEAST_POLL_S else Retry.READ
                retry = Retry.WRITE if auto_delete else poll
                found = yield from self.asking(get, partial(_read_list, most=get.length), retry=retry)
            except EasqError as error:
                if frames and auto_delete:
                    return frames  # they are deleted from the queue: raising here would lose them
                if self._note_cut_off(error, began, wait_s) and time.monotonic() < end:
                    cut_off += 1
                    yield full_jitter(cut_off)
                    continue
                if answered and self._is_over and isinstance(error, Unreachable | ServerError):
                    return frames
                raise
            answered = True
            frames = frames + found if auto_delete else found
            now = time.monotonic()
            if len(frames) >= length or now >= end - 0.3 or (until_full and _is_full(frames, length)):
                # services answer a little before the end of the wait; a further request would be too short
                return frames
            if now - began < wait_s / 2:
                yield min(_IDLE_PAUSE_S, max(end - now, 0.0))

    def find(
        self, request_id: str, *, timeout_s: float = 0.0, deadline_s: float | None = None
    ) -> Frame | None:
        """Return the first item with a request id; None if there was none within `timeout_s`. The item stays there.

        Only one request is sent, so the result may be None before `timeout_s` is over.

        Args:
            deadline_s: maximum time of the whole exchange, in seconds; a failed request is then not repeated.
        """
        wait_s = round(min(timeout_s, self._poll_s), 3)
        tags = check_tags({REQUEST_ID: request_id})
        get = operations.Get(NO_INDEX, 1, wait_s, False, tags, Codec.PROTOBUF)
        began = time.monotonic()
        try:
            frames = self._ask(get, partial(_read_list, most=1), deadline_s=deadline_s)
        except ServerError as error:
            self._note_cut_off(error, began, wait_s)
            raise
        return frames[0] if frames else None

    def search(self, index: int) -> SearchResult:
        """Return the state of the item `index` in the client's group. Raises NotFound if there is no such item."""
        return self._ask(operations.Search(as_index(index)), replies.read_search)

    def count(self, *, tags: Tags | None = None, priority: int | None = None) -> int:
        """Return the number of items with all `tags`, and of one `priority` unless it is None."""
        return self._ask(operations.Count(check_tags(tags), priority), replies.read_count)

    def commit(self, items: Items) -> int | None:
        """Mark items as done for the client's group: they are not delivered to the group again.

        Return the number of items that this call committed; None if the service does not tell it. An index without an
        item is ignored, and not counted.

        Args:
            items: one frame or index, or several.
        """
        return self._each(items, operations.Commit)

    def negative(
        self, items: Items, *, code: str = "", reason: str = "", delay_s: float | None = None
    ) -> int | None:
        """Mark items as failed for the client's group: they are delivered again. The result is that of `commit`.

        Raises UsageError for a malformed code.

        Args:
            items: one frame or index, or several.
            code: the reason code: words like `Engine.Error`, or a number; at most 20 characters.
            reason: the reason as text; a long text is cut.
            delay_s: seconds until the next delivery; only for the code Busy, at a service that supports it.
        """
        return self._each(
            items, lambda chunk: negative_operation(chunk, code=code, reason=reason, delay_s=delay_s)
        )

    def delete(self, items: Items) -> int | None:
        """Delete items for all groups. The argument and the result are those of `commit`."""
        return self._each(items, operations.Delete)

    def truncate(self, index: int) -> int | None:
        """Delete every item with an index below `index`, for all groups. The result is that of `commit`."""
        return self._ask(operations.Truncate(as_index(index)), replies.read_counted)

    def attributes(self, *, deadline_s: float | None = None) -> dict[str, str]:
        """Return the attributes of the stream: names and values as text, such as `stream.length`.

        Args:
            deadline_s: maximum time of the whole exchange, in seconds; a failed request is then not repeated.
        """
        return self._ask(operations.Describe(), _read_attributes, deadline_s=deadline_s)

    def end(self, *, force: bool = False, undo: bool = False) -> None:
        """End the stream: it takes no further puts, and its watches end after the last item is committed.

        With `force`, all items are dropped. `undo` reopens the stream; only easq's own service supports it.
        """
        self._ask(operations.End(force, undo), replies.read_ok)

    def watch(
        self,
        *,
        window: int = 0,
        index: int = NO_INDEX,
        tags: Tags | None = None,
        auto_commit: bool = False,
        upgrade: bool = True,
        reconnect_for_s: float = 60.0,
        on_notice: Callable[[str], None] | None = None,
    ) -> Watcher:
        """Return a watch of this stream for the client's group. Iterate over it to receive items.

        Commit each item within the loop, or call `negative`. Otherwise the item is delivered again when the watch ends,
        possibly to another consumer. The watch connects when the iteration begins, or when it is entered as a context
        manager. After a lost connection it connects again, and items may come twice. The iteration ends when the stream
        has ended, or the watch or the client is closed.

        Raises UsageError for wrong tags. The iteration raises AnotherWatcher if another watch uses the user name, and
        Unreachable if the watch could not reconnect.

        Args:
            window: maximum number of uncommitted items; 0 for the service's default.
            index: the first index; 0 for the first item, `easq.NEWEST` for items that are put from now on.
            tags: names and values that an item must have.
            auto_commit: let the service commit each item when it pushes it.
            upgrade: use WebSocket; if False, use an endless HTTP response.
            reconnect_for_s: time for which a lost connection is retried, in seconds.
            on_notice: called in a thread of the watch with a line of text for the user, for example at a reconnect.
        """
        operation = operations.Watch(index, window, auto_commit=auto_commit, tags=tags or {}, upgrade=upgrade)
        return self.watcher(operation, on_notice=on_notice, reconnect_for_s=reconnect_for_s)

    def watcher(
        self,
        operation: operations.Watch,
        *,
        on_notice: Callable[[str], None] | None = None,
        reconnect_for_s: float = 60.0,
    ) -> Watcher:
        """Return a watch with the parameters of `operation`; see `watch`."""
        from easq.client.watch import Watcher

        self._check_open()
        check_tags(operation.tags)
        settings = self._transport.settings
        watcher = Watcher(
            self.url,
            self.caller,
            operation,
            settings,
            on_notice=on_notice,
            reconnect_for_s=reconnect_for_s,
            until=self._until,
        )
        self._watchers.add(watcher)
        return watcher

    def async_watcher(
        self,
        operation: operations.Watch,
        *,
        on_frame: Callable[[Frame], None],
        on_notice: Callable[[str], None] | None = None,
        reconnect_for_s: float = 60.0,
    ) -> AsyncWatcher:
        """Return a watcher of this stream for an event loop. The caller connects it."""
        from easq.client.async_watch import AsyncWatcher

        check_tags(operation.tags)
        return AsyncWatcher(
            self.url,
            self.caller,
            operation,
            self.settings,
            on_frame=on_frame,
            on_notice=on_notice,
            reconnect_for_s=reconnect_for_s,
        )

    @property
    def _poll_s(self) -> float:
        """Maximum wait of one get, in seconds: well below the time limit of a request."""
        request_timeout_s = self._transport.settings.request_timeout_s
        longest_s = max(request_timeout_s - 2.0, request_timeout_s / 2)
        return min(MAX_POLL_S, longest_s, self._gateway.longest_wait_s)

    @property
    def _is_over(self) -> bool:
        """Whether the time of a bounded client is over, except for the last `OVERTIME_S`."""
        return self._until is not None and time.monotonic() >= self._until - OVERTIME_S

    def _note_cut_off(self, error: EasqError, began: float, wait_s: float) -> bool:
        """Return whether a gateway has cut off a wait for items with 504; if so, make the next waits shorter."""
        if error.status != 504 or not isinstance(error, ServerError) or wait_s <= _LEAST_POLL_S:
            return False
        waited_s = min(time.monotonic() - began, wait_s)
        self._gateway.longest_wait_s = max(waited_s / 2, _LEAST_POLL_S)
        return True

    def _check_open(self) -> None:
        if self._lifetime.is_closed:
            raise UsageError(f"the client of {shown(self.url)} is closed")

    def _each(self, items: Items, operation: Callable[[tuple[int, ...]], Operation]) -> int | None:
        indexes = as_indexes(items)
        total: int | None = 0
        for chunk in chunks(indexes):
            counted = self._ask(operation(chunk), replies.read_counted)
            total = None if counted is None or total is None else total + counted
        return total

    def asking(
        self,
        operation: Operation,
        read: Callable[[Reply], T],
        *,
        retry: Retry = Retry.READ,
        deadline_s: float | None = None,
        times: Times | None = None,
    ) -> Steps[T]:
        """Run the steps of one operation, and return the answer as parsed by `read`. With a deadline, do not retry."""
        try:
            reply = yield from exchange(
                self.url,
                operations.to_request(operation),
                self.caller,
                self._transport.settings,
                deadline_s=deadline_s,
                until=self._until,
                retry=retry if deadline_s is None else Retry.NEVER,
                times=times,
            )
        except Unanswered as error:
            if self._is_over:
                error.hint = "raise --timeout if it is slow"
            raise
        except AnswerTooLarge as error:
            if not isinstance(operation, operations.Get):
                raise NotAQueueService(error.message) from error
            if operation.length > 1:
                error.hint = "ask for fewer items at once"
            raise
        try:
            return read(reply)
        except EasqError as error:
            hidden(error, [self.caller.token, *secrets_of(self._transport.settings.headers)])
            raise

    def _ask(
        self,
        operation: Operation,
        read: Callable[[Reply], T],
        *,
        retry: Retry = Retry.READ,
        deadline_s: float | None = None,
    ) -> T:
        self._check_open()
        return self._transport.run(self.asking(operation, read, retry=retry, deadline_s=deadline_s))


def put_operation(
    data: bytes,
    *,
    tags: Tags | None = None,
    priority: int = 0,
    path: str = "",
    content_type: str = "",
    key: str = "",
) -> operations.Put:
    """Return the operation for the arguments of `QueueClient.put`. Raises UsageError if they cannot be sent."""
    if key and not operations.valid_key(key):
        raise UsageError(f"the idempotency key {key[:80]!a} is not 1 to 128 visible ASCII characters")
    if not isinstance(priority, int) or priority < 0:
        raise UsageError(f"the priority {priority!r:.80} is no whole number from 0")
    return operations.Put(
        data, check_tags(tags), priority, sub_path(path), content_type=content_type, key=key
    )


def as_bytes(data: bytes | bytearray | memoryview | str) -> bytes:
    """Return a payload as bytes: text in UTF-8. Raises UsageError for broken text and for any other type."""
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    if not isinstance(data, str):
        raise UsageError(f"a payload is bytes or text, and not {type(data).__name__}")
    try:
        return data.encode()
    except UnicodeEncodeError as error:
        raise UsageError("the payload is broken text: it cannot be written as UTF-8") from error


def as_index(item: int | Frame) -> int:
    """Return the index of an item. Raises UsageError for anything but a frame or an int: text is no index."""
    if isinstance(item, Frame):
        return item.index
    if not isinstance(item, int) or isinstance(item, bool):
        raise UsageError(f"an item is a Frame or an index as int, and not {type(item).__name__}")
    return item


def as_indexes(items: Items) -> tuple[int, ...]:
    """Return the indexes of one item or of several. Raises UsageError for anything else, such as text."""
    if isinstance(items, int | Frame | str | bytes) or not isinstance(items, Iterable):
        return (as_index(items),)  # type: ignore[arg-type]  # which refuses text
    return tuple(as_index(item) for item in items)


def negative_operation(
    indexes: Sequence[int], *, code: str, reason: str, delay_s: float | None
) -> operations.Negative:
    """Return the operation for the arguments of `QueueClient.negative`. Raises UsageError for a malformed code."""
    if code and not operations.valid_code(code):
        raise UsageError(
            f"the code {code[:80]!a} is not one",
            hint="a code is words like Engine.Error or a number, at most 20 characters",
        )
    cut = reason[: operations.MAX_REASON].encode(errors="replace").decode()
    return operations.Negative(tuple(indexes), code, cut, delay_s)


def _is_full(frames: Sequence[Frame], wanted: int) -> bool:
    """Return whether there may be more items: services limit an answer by number and by size."""
    return len(frames) >= min(wanted, _FIRST_PAGE) or sum(len(frame.data) for frame in frames) >= _FULL_BYTES


@dataclass(frozen=True, slots=True)
class Description:
    """The attributes of a stream, and `features`, the service's extensions of the EAS protocol."""

    attributes: Mapping[str, str]
    features: frozenset[str]

    @property
    def name(self) -> str:
        """The name of the queue, the default group of its workers. Raises NotAQueueService if it is not valid."""
        name = self.attributes.get("meta.name", "")
        if not operations.valid_name(name):
            raise NotAQueueService(f"meta.name is {name!r}, not a group", hint="give one with --group")
        return name


def _read_description(reply: Reply) -> Description:
    return Description(_read_attributes(reply), replies.read_features(reply))


def _read_list(reply: Reply, *, most: int) -> list[Frame]:
    return replies.read_frames(reply, Codec.PROTOBUF, most=most)


def _read_attributes(reply: Reply) -> dict[str, str]:
    return replies.read_attributes(reply, Codec.JSON)


@lru_cache(64)
def sub_path(path: str) -> str:
    """Return a percent-encoded sub-path, decoded. Raises UsageError for a path that leaves the stream."""
    try:
        found = unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise UsageError(f"the path {path[:80]!a} is not UTF-8") from error
    if not found.strip("/"):
        return ""
    if "?" in path or "#" in path:
        raise UsageError(
            f"the path {path[:80]!a} holds a query", hint="query parameters are tags: --tags k=v"
        )
    if not found.isprintable():
        raise UsageError(f"the path {path[:80]!a} holds a control character")
    segments = found.strip("/").split("/")
    if "." in segments or ".." in segments or segments == ["sink"]:
        raise UsageError(f"the path {path[:80]!a} leads to another stream", hint="-k puts into the sink")
    return "/" + found.lstrip("/")


def check_tags(tags: Tags | None) -> Tags:
    """Return `tags`. Raises UsageError for a tag that cannot be sent, such as a name of a protocol parameter."""
    found = tags or {}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"name and value of a tag are text: {key!r:.80} has {type(value).__name__}")
        name = ascii(key[:80])
        if not key or key.startswith("_"):
            raise UsageError(
                f"a tag cannot have the name {name}", hint="names beginning with _ are the wire's own"
            )
        if any(letter in "\0\r\n" or "\ud800" <= letter <= "\udfff" for letter in key + value):
            raise UsageError(f"the tag {name} holds a line break, a NUL or broken text")
    return found


def chunks(indexes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield parts of `indexes`, each small enough for one request."""
    for at in range(0, len(indexes), MAX_INDEXES_PER_REQUEST):
        yield indexes[at : at + MAX_INDEXES_PER_REQUEST]


def check_pair(input: QueueClient, sink: QueueClient) -> None:
    """Raise ConfigError if input and sink are the same stream."""
    if input.url == sink.url:
        raise ConfigError(
            f"the url {input.url} is a sink's: what is put there would be taken again",
            hint="give the queue's own, without /sink",
        )
