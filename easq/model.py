"""The values of all packages: frozen dataclasses without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

#: tag name -> value, as text; keys beginning with `_` are parameters of the wire and never tags
Tags: TypeAlias = Mapping[str, str]

REQUEST_ID = "requestId"  #: built-in tag: links an input item to its sink result
TS_SOURCE = "ts@source"  #: built-in tag: Unix time in ms of the put to the input
TS_SINK = "ts@sink"  #: built-in tag: Unix time in ms of the put to the sink
HEADER_PREFIX = "Header:"  #: built-in tags: captured HTTP request headers
PATH = "Path"  #: built-in tag: the path after the queue's address in the put
DELIVERY_COUNT = "deliveryCount"  #: on a redelivered frame only: the number of its deliveries to this group
LAST_CODE = "lastCode"  #: on a sink frame: the item failed, with this status
LAST_REASON = "lastReason"  #: on a sink frame: the reason of the failure

#: the consumer group and user of a call without names
DEFAULT_GROUP, DEFAULT_USER = "default_group", "default_user"

#: no index: the head of the stream in a read, "none" in attributes
NO_INDEX = 0
#: highest value of `_index_` on the wire
MAX_WIRE_INDEX = 2**64 - 1
#: `_index_=-1` on get and watch: only items that are put from now on (get without a timeout: the last item)
NEWEST = -1


@dataclass(frozen=True, slots=True)
class Frame:
    """One item: index (uint64), tags, payload, and a message for local errors."""

    index: int
    tags: Tags = field(default_factory=dict)
    data: bytes = b""
    message: str = ""

    @property
    def request_id(self) -> str:
        """The request id, empty if the server gave none."""
        return self.tags.get(REQUEST_ID, "")


@dataclass(frozen=True, slots=True)
class Consumer:
    """A consumer: a user name inside a consumer group."""

    group: str = DEFAULT_GROUP
    user: str = DEFAULT_USER

    @property
    def id(self) -> str:
        """The name in the attributes of the queue: GROUP.USER."""
        return f"{self.group}.{self.user}"


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a put: index and request id of the item; `duplicate` if its idempotency key was used before."""

    index: int
    request_id: str
    duplicate: bool = False


#: attributes of a queue: a flat map of text, numbers as decimal text
Attributes: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The state of an item for a consumer group: its consumer, whether it is pending, how many items are before it."""

    consumer_id: str
    is_pending: bool
    wait_count: int


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a service that is called directly: IP address, port, and weight."""

    ip: str
    port: int
    weight: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        """The URL of the instance."""
        return f"{self.scheme}://{self.address}"

    @property
    def address(self) -> str:
        """`IP:PORT`, as in a URL."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


def parse_index(text: str, *, lowest: int = 1) -> int:
    """Return `text` as an index. Raises ValueError for any other text."""
    if text.isascii() and text.isdigit() and len(text) <= 20 and lowest <= int(text) <= MAX_WIRE_INDEX:
        return int(text)
    head = " (0, the head, cannot be used here)" if text == "0" else ""
    raise ValueError(f"{text!r} is not an index, a whole number from {lowest} to {MAX_WIRE_INDEX}{head}")


def tag_problem(name: str, value: str | None) -> str:
    """Return what is wrong with a tag that a user gives, or an empty string. `value` None: there is no `=`."""
    if value is None:
        return "is no tag: it has no '='"
    if not name:
        return "is no tag: nothing stands before '='"
    if name.startswith("_"):
        return "is no tag: names that begin with '_' are the wire's own"
    if any(c in "\r\n\0" for c in name + value):
        return "is no tag: it holds a line break or NUL"
    if any("\ud800" <= c <= "\udfff" for c in name + value):
        return "is no tag: it is not UTF-8"
    return ""
