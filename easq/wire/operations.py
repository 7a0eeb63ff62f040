"""Every operation of the queue service's wire, as a value, and its HTTP form: one description, two readers.

The client turns an operation into a `Request` with `to_request`; the service turns the request back with `parse`.
All operations share one URL; method and underscore parameters decide.

    POST                                   Put
    POST   _eos_                           End
    GET    _attrs_                         Describe
    GET    _watch_                         Watch
    GET    _search_ _index_                Search
    GET    _count_                         Count
    GET                                    Get
    PUT    _indexes_                       Commit
    PUT    _indexes_ _negative_            Negative
    DELETE _indexes_ | _index_             Delete
    DELETE _index_ _trunc_                 Truncate

Source: Alibaba's "Access a queue service" page, and the official Go, Java and Python SDKs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from easq.model import NO_INDEX, Consumer, Tags


class Codec(Enum):
    """How frames and attributes are encoded: the value is the media type (RAW: the payload's own type)."""

    RAW = ""
    JSON = "application/json"
    PROTOBUF = "application/vnd.google.protobuf"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request without address and identity: `query` in order and decoded, header names in any case.

    `path` is what follows the stream's address, `""` or `/v1/x`.
    """

    method: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Put:
    """Append one item. `headers` holds what the service may capture as `Header:*` tags (Content-Type ...)."""

    data: bytes
    tags: Tags = field(default_factory=dict)
    priority: int = 0
    path: str = ""
    content_type: str = ""
    content_encoding: str = ""
    key: str = ""  # idempotency key, 1-128 visible ASCII characters, empty for none


@dataclass(frozen=True, slots=True)
class Get:
    """Read up to `length` items with index >= `index` that carry all of `tags`.

    `index` may be NEWEST. With `auto_delete` what is returned is removed for everybody. `codec` RAW asks for the bytes
    of one item; the service answers a RAW get of more than one with JSON.
    """

    index: int = NO_INDEX
    length: int = 1
    timeout_s: float = 0.0
    auto_delete: bool = True
    tags: Tags = field(default_factory=dict)
    codec: Codec = Codec.RAW


@dataclass(frozen=True, slots=True)
class Describe:
    """The attributes of the stream."""

    codec: Codec = Codec.JSON


@dataclass(frozen=True, slots=True)
class Search:
    """Where the item `index` stands in the caller's group."""

    index: int


@dataclass(frozen=True, slots=True)
class Count:
    """How many items are present, of one priority class (None: all) and with all of `tags`."""

    tags: Tags = field(default_factory=dict)
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """The items are done for the caller's group."""

    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Negative:
    """The items are not done: they return to the group, and the failure counts (unless `code` is Shutdown)."""

    indexes: tuple[int, ...]
    code: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the items for all groups."""

    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Truncate:
    """Remove every item with an index strictly lower than `index`, for all groups."""

    index: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Be pushed items from `index` (or NEWEST) on, at most `window` of them uncommitted (0: the service's default)."""

    index: int = NO_INDEX
    window: int = 0
    index_only: bool = False
    auto_commit: bool = False
    tags: Tags = field(default_factory=dict)
    codec: Codec = Codec.PROTOBUF
    upgrade: bool = True  # WebSocket; False: the endless HTTP answer


@dataclass(frozen=True, slots=True)
class End:
    """End the stream: once all is delivered, at once with `force`; `undo` reopens it (`_eos_=false`, easq's own)."""

    force: bool = False
    undo: bool = False


Operation: TypeAlias = (
    Put | Get | Describe | Search | Count | Commit | Negative | Delete | Truncate | Watch | End
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends an operation: identity, token (`""`: none), and whether the rear store is meant."""

    consumer: Consumer = Consumer()
    token: str = ""
    rear: bool = False


def to_request(operation: Operation) -> Request:
    """The HTTP form of `operation`, without address and identity."""
    raise NotImplementedError


def parse(request: Request) -> Operation:
    """The operation that `request` stands for. Raises BadRequest, MethodNotAllowed, NotAcceptable."""
    raise NotImplementedError


def caller_headers(caller: Caller) -> dict[str, str]:
    """Authorization, identity in both spellings at once, and rear access."""
    raise NotImplementedError


def parse_caller(headers: Mapping[str, str]) -> Caller:
    """Who sends a request with `headers` (names in any case). Raises BadRequest for a name that is not allowed."""
    raise NotImplementedError
