"""Every operation of the queue service's wire: its value, and its HTTP form.

The client turns an operation into a `Request` with `to_request`; the service turns the request back with `parse`. All
operations share one URL. The method and the parameters with underscores determine the operation:

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

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias
from urllib.parse import parse_qsl, urlencode

from easq.errors import BadRequest, MethodNotAllowed, NotAcceptable
from easq.model import MAX_WIRE_INDEX, NEWEST, NO_INDEX, REQUEST_ID, Consumer, Tags
from easq.protocol.durations import format_duration, parse_duration


class Codec(Enum):
    """Encodings of frames and attributes; the value is the media type. RAW is the payload in its own type."""

    RAW = ""
    JSON = "application/json"
    PROTOBUF = "application/vnd.google.protobuf"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request without address and identity. `query` is decoded, header names are in any case.

    `path` follows the stream's address: `""` or `/v1/x`.
    """

    method: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Put:
    """Append one item. The service stores `content_type` and `content_encoding` as `Header:*` tags."""

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

    `index` may be NEWEST. With `auto_delete` the returned items are removed for all groups. `codec` RAW asks for the
    bytes of one item; the service answers a RAW get of more than one with JSON.
    """

    index: int = NO_INDEX
    length: int = 1
    timeout_s: float = 0.0
    auto_delete: bool = True
    tags: Tags = field(default_factory=dict)
    codec: Codec = Codec.RAW


@dataclass(frozen=True, slots=True)
class Describe:
    """Read the attributes of the stream."""

    codec: Codec = Codec.JSON


@dataclass(frozen=True, slots=True)
class Search:
    """Find the state of the item `index` in the caller's group."""

    index: int


@dataclass(frozen=True, slots=True)
class Count:
    """Count the items of one priority class (None: all) that carry all of `tags`."""

    tags: Tags = field(default_factory=dict)
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit the items for the caller's group."""

    indexes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Negative:
    """Return the items to the group. This counts as a failure unless `code` is Shutdown or Busy.

    `delay_s` is the wait of busy items, in seconds. Busy and the delay are extensions of easq.
    """

    indexes: tuple[int, ...]
    code: str = ""
    reason: str = ""
    delay_s: float | None = None


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
    """Subscribe to the items from `index` (or NEWEST) on, at most `window` uncommitted (0: the service's default).

    `process` names the watching process, so that the service recognizes it after a lost connection: an extension of
    easq.
    """

    index: int = NO_INDEX
    window: int = 0
    index_only: bool = False
    auto_commit: bool = False
    tags: Tags = field(default_factory=dict)
    codec: Codec = Codec.PROTOBUF
    upgrade: bool = True  # WebSocket; False: the endless HTTP answer
    process: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """End the stream: once all is delivered, or at once with `force`. `undo`, an extension of easq, reopens it."""

    force: bool = False
    undo: bool = False


Operation: TypeAlias = (
    Put | Get | Describe | Search | Count | Commit | Negative | Delete | Truncate | Watch | End
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of an operation: identity and token (`""`: none). `rear` addresses the queue's rear store."""

    consumer: Consumer = field(default_factory=Consumer)
    token: str = ""
    rear: bool = False


#: code of a negative: the consumer stops. Its items are returned without counting a failure, and it gets no more items
SHUTDOWN = "Shutdown"
#: code of a negative, an extension of easq: the model is busy. The items wait without counting a failure
BUSY = "Busy"
#: most indexes in one commit, negative or delete
MAX_INDEXES = 4000
#: limit of all tags of one request, keys and values, in UTF-8 bytes
MAX_TAG_BYTES = 16 * 1024
#: longest code and longest reason of a negative, in characters
MAX_CODE, MAX_REASON = 20, 4096
#: longest wait of a get, in seconds; longer ones are reduced to it
MAX_TIMEOUT_S = 24 * 3600.0
#: largest count and priority; larger ones are reduced to it
MAX_INT32 = 2**31 - 1

#: the rule of the SDKs for codes, except that their unescaped dot matches any character
_CODE = r"[A-Z][A-Za-z]*(?:\.[A-Z][A-Za-z]*)*|[0-9]+"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_DIGITS = re.compile(r"[0-9]{1,20}")
_INTEGER = re.compile(r"-?[0-9]{1,40}")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
#: longest list of indexes that is parsed, in characters; 4,000 indexes of 20 digits are below it
_MAX_INDEXES_TEXT = 128 * 1024
#: longest form of a negative, in bytes. The longest reason is shorter, even if every character is percent-encoded
_MAX_FORM_BYTES = 64 * 1024
#: longest media type, in characters
_MAX_MEDIA_TYPE = 1024
#: longest path after the queue's address, in bytes
_MAX_PATH = 4096
#: longest request id, in characters: answers carry it in a header, and many clients refuse headers above 8 KiB
_MAX_REQUEST_ID = 512

#: the methods that each parameter is valid with. A request with another method is refused: otherwise the service would
#: do another operation than the intended one, for instance a get, which deletes items. Old clients send `_delete_` with
#: commits, where it is ignored. Unknown parameters with underscores are ignored too
_METHODS_OF: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("_attrs_", "_count_", "_search_", "_watch_"), ("GET",)),
    **dict.fromkeys(("_auto_delete_", "_length_", "_raw_", "_timeout_"), ("GET",)),
    **dict.fromkeys(("_auto_commit_", "_index_only_", "_window_"), ("GET",)),
    **dict.fromkeys(("_code_", "_delay_", "_negative_", "_reason_"), ("PUT",)),
    **dict.fromkeys(("_eos_", "_force_"), ("POST",)),
    "_trunc_": ("DELETE",),
    "_delete_": ("DELETE", "PUT"),
    "_indexes_": ("PUT", "DELETE"),
    "_index_": ("GET", "DELETE"),
    "_priority_": ("POST", "GET"),
}
#: method -> the parameters that are invalid with it
_FOREIGN = {
    method: frozenset(name for name, methods in _METHODS_OF.items() if method not in methods)
    for method in ("POST", "GET", "PUT", "DELETE")
}

#: headers of identity, in both spellings of EAS, and of a put or watch
_USER_HEADERS = ("X-EAS-QueueService-Uid", "X-EAS-QueueService-Redis-Uid")
_GROUP_HEADERS = ("X-EAS-QueueService-Gid", "X-EAS-QueueService-Redis-Gid")
_PRIORITY_HEADER = "X-EAS-QueueService-Priority"
_REAR_HEADER = "X-EAS-QueueService-Access-Rear"
_SESSION_HEADER = "X-Easq-Session"
#: asks for the endless HTTP answer. Proxies that speak HTTP/1.0 upstream buffer such an answer, so over HTTP/1.0 it is
#: sent only with this header
TRANSPORT_HEADER, TRANSPORT_HTTP = "X-Easq-Transport", "http"
#: an idempotency key, and its headers
_KEY_TEXT = re.compile(r"[!-~]{1,128}")
_KEY_HEADERS = ("Idempotency-Key", "X-Easq-Idempotency-Key")
#: the names in lower case, for look-ups
_USER, _GROUP, _KEY = (
    tuple(name.lower() for name in names) for names in (_USER_HEADERS, _GROUP_HEADERS, _KEY_HEADERS)
)
_PRIORITY, _REAR, _SESSION = _PRIORITY_HEADER.lower(), _REAR_HEADER.lower(), _SESSION_HEADER.lower()
_NOBODY = Caller()
_FORM = "application/x-www-form-urlencoded"


def to_request(operation: Operation) -> Request:
    """Return the HTTP form of `operation`, without address and identity."""
    match operation:
        case Put():
            return _put_request(operation)
        case Get():
            return _get_request(operation)
        case Describe(codec):
            return Request("GET", (("_attrs_", "true"),), {"Accept": codec.value})
        case Search(index):
            return Request("GET", (("_search_", "true"), ("_index_", str(index))))
        case Count(tags, priority):
            classes = () if priority is None else (("_priority_", str(priority)),)
            return Request("GET", (("_count_", "true"), *classes, *tags.items()))
        case Commit(indexes):
            return Request("PUT", (("_indexes_", _join(indexes)),))
        case Negative(indexes, code, reason, delay_s):
            delay = {} if delay_s is None else {"_delay_": format_duration(delay_s)}
            form = urlencode({"_code_": code, "_reason_": reason, **delay}).encode("ascii")
            query = (("_indexes_", _join(indexes)), ("_negative_", "true"))
            return Request("PUT", query, {"Content-Type": _FORM}, form)
        case Delete(indexes):
            return Request("DELETE", (("_indexes_", _join(indexes)),))
        case Truncate(index):
            return Request("DELETE", (("_index_", str(index)), ("_trunc_", "true")))
        case Watch():
            return _watch_request(operation)
        case End(force, undo):
            forced = (("_force_", "true"),) if force else ()
            return Request("POST", (("_eos_", _bool_text(not undo)), *forced))


def parse(request: Request) -> Operation:
    """Return the operation of `request`. Raises BadRequest, MethodNotAllowed, NotAcceptable."""
    given = _Given(request)
    given.check_method(request.method)
    match request.method:
        case "POST":
            if given.has("_eos_"):
                return End(
                    force=given.boolean("_force_", default=False),
                    undo=not given.boolean("_eos_", default=True),
                )
            given.refuse_without("_eos_", ("_force_",))
            return _parse_put(request, given)
        case "GET":
            # checked before the plain get, which shares parameters with them
            if given.boolean("_watch_", default=False):
                return _parse_watch(given)
            if given.boolean("_attrs_", default=False):
                return Describe(given.codec())
            if given.boolean("_search_", default=False):
                return Search(given.index("_index_"))
            if given.boolean("_count_", default=False):
                return Count(given.tags(), given.priority() if given.has("_priority_") else None)
            given.refuse_without("_watch_", ("_auto_commit_", "_index_only_", "_window_"))
            return _parse_get(given)
        case "PUT":
            indexes = given.indexes()
            if not given.boolean("_negative_", default=False):
                return Commit(indexes)
            return _parse_negative(indexes, request.body)
        case "DELETE":
            if given.has("_indexes_") and given.has("_index_"):
                raise BadRequest("_index_ and _indexes_ exclude each other")
            if given.boolean("_trunc_", default=False):
                return Truncate(given.index("_index_"))
            if not given.has("_index_"):
                return Delete(given.indexes())
            return Delete((given.index("_index_"),))
    raise MethodNotAllowed(
        f"method {_shown(request.method)} is not supported: use POST, GET, PUT or DELETE",
        allow="POST, GET, PUT, DELETE",
    )


def caller_headers(caller: Caller) -> dict[str, str]:
    """Return the headers of a caller: authorization, identity in both spellings, and rear access."""
    headers = {"Authorization": caller.token} if caller.token else {}
    headers |= dict.fromkeys(_USER_HEADERS, caller.consumer.user)
    headers |= dict.fromkeys(_GROUP_HEADERS, caller.consumer.group)
    if caller.rear:
        headers[_REAR_HEADER] = "true"
    return headers


class LowerCase(dict[str, str]):
    """Headers whose names are in lower case."""


def lower_case(headers: Mapping[str, str]) -> LowerCase:
    """Return `headers` with names in lower case. The last of duplicate names is used."""
    if isinstance(headers, LowerCase):
        return headers
    return LowerCase({name.lower(): value for name, value in headers.items()})


def parse_caller(headers: Mapping[str, str]) -> Caller:
    """Return the caller of a request by its `headers`, names in any case. Raises BadRequest for an invalid name."""
    lower = lower_case(headers)
    group, user = _name(lower, _GROUP, "group"), _name(lower, _USER, "user")
    token, rear = lower.get("authorization", ""), lower.get(_REAR, "")
    if not (group or user or token or rear):
        return _NOBODY
    consumer = Consumer(group or _NOBODY.consumer.group, user or _NOBODY.consumer.user)
    token = token.strip()
    scheme, _, rest = token.partition(" ")
    if scheme.lower() == "bearer":
        token = rest.strip()
    return Caller(consumer, token, rear.strip().lower() == "true")


def valid_code(code: str) -> bool:
    """Return whether a negative may carry `code`: `Shutdown`, `Engine.Error`, `500`; at most 20 characters."""
    return len(code) <= MAX_CODE and re.fullmatch(_CODE, code) is not None


def valid_name(name: str) -> bool:
    """Return whether `name` may be a user or group: 1 to 128 of letters, digits, `.`, `_` and `-`."""
    return len(name) <= 128 and _NAME.fullmatch(name) is not None


def valid_key(key: str) -> bool:
    """Return whether `key` may be an idempotency key: 1 to 128 visible ASCII characters."""
    return _KEY_TEXT.fullmatch(key) is not None


class _Given:
    """The parameters and headers of one request. The methods raise BadRequest for an invalid value, and quote it."""

    def __init__(self, request: Request) -> None:
        self._query = request.query
        self._last = dict(request.query)  # of duplicates the last
        self.headers = lower_case(request.headers)

    def has(self, name: str) -> bool:
        return name in self._last

    def text(self, name: str) -> str | None:
        """Return the value of a parameter. Raises BadRequest for two different values."""
        text = self._last.get(name)
        if len(self._last) < len(self._query) and any(
            key == name and value != text for key, value in self._query
        ):
            raise BadRequest(f"parameter {name} is given more than once, with different values")
        return text

    def boolean(self, name: str, *, default: bool) -> bool:
        text = self.text(name)
        if text is None:
            return default
        if len(text) > 5 or text.lower() not in _BOOLEANS:
            raise BadRequest(f"parameter {name} is not true or false: {_shown(text)}")
        return _BOOLEANS[text.lower()]

    def check_method(self, method: str) -> None:
        """Raise BadRequest for a parameter that is invalid with this method."""
        foreign = _FOREIGN.get(method)
        if foreign is None or foreign.isdisjoint(self._last):
            return
        name = next(name for name in self._last if name in foreign)
        raise BadRequest(f"parameter {name} needs {' or '.join(_METHODS_OF[name])}, this is a {method}")

    def refuse_without(self, word: str, names: tuple[str, ...]) -> None:
        """Raise BadRequest for one of `names`, which are valid only together with `word`."""
        for name in names:
            if name in self._last:
                raise BadRequest(f"parameter {name} needs {word}=true")

    def index(self, name: str, default: int | None = None, *, newest: bool = False) -> int:
        text = self.text(name)
        if text is None:
            if default is None:
                raise BadRequest(f"parameter {name} is missing")
            return default
        if newest and text == "-1":
            return NEWEST
        return _unsigned(name, text)

    def indexes(self) -> tuple[int, ...]:
        text = self.text("_indexes_")
        if text is None:
            raise BadRequest("parameter _indexes_ is missing")
        if len(text) > _MAX_INDEXES_TEXT or text.count(",") >= MAX_INDEXES:
            raise BadRequest(f"parameter _indexes_ holds more than {MAX_INDEXES} indexes")
        return tuple(_unsigned("_indexes_", item.strip(" \t")) for item in text.split(","))

    def duration(self, name: str) -> float:
        text = self.text(name)
        if text is None:
            return 0.0
        try:
            return min(parse_duration(text), MAX_TIMEOUT_S)
        except ValueError as error:
            raise BadRequest(f"parameter {name}: {error}") from error

    def priority(self) -> int:
        """Return the priority from the query, else from its header: 0 or above."""
        name, text = "_priority_", self.text("_priority_")
        if text is None:
            name, text = _PRIORITY_HEADER, self.headers.get(_PRIORITY, "").strip()
            if not text:
                return 0
        if not _INTEGER.fullmatch(text):
            raise BadRequest(f"parameter {name} is not a number: {_shown(text)}")
        return min(max(int(text), 0), MAX_INT32)

    def tags(self) -> dict[str, str]:
        """Return the parameters without a leading underscore. The last of duplicates is used."""
        tags = {key: value for key, value in self._last.items() if not key.startswith("_")}
        size = 0
        for key, value in tags.items():
            size += _tag_bytes(key) + _tag_bytes(value)
        if size > MAX_TAG_BYTES:
            raise BadRequest(f"the tags are {size} bytes together, above the limit of {MAX_TAG_BYTES}")
        return tags

    def codec(self) -> Codec:
        """Return the encoding that the caller accepts: protobuf if it is named, else JSON."""
        accept = self.headers.get("accept", "").lower()
        if "protobuf" in accept:
            return Codec.PROTOBUF
        if "x-flatbuffers" in accept and "json" not in accept and "*/*" not in accept:
            raise NotAcceptable("flatbuffers are not spoken here: accept protobuf or JSON")
        return Codec.JSON

    def key(self) -> str:
        """Return the idempotency key from the first of its headers that is present; empty for none."""
        for name in _KEY:
            key = self.headers.get(name)
            if key is not None:
                key = key.strip()
                if not valid_key(key):
                    raise BadRequest(
                        f"an idempotency key is 1 to 128 visible ASCII characters, not {_shown(key)}"
                    )
                return key
        return ""

    def media_type(self, name: str) -> str:
        """Return a header that is stored with an item. Raises BadRequest unless it is printable ASCII."""
        value = self.headers.get(name.lower(), "").strip()
        if not value:
            return ""
        if len(value) > _MAX_MEDIA_TYPE or not (value.isascii() and value.replace("\t", " ").isprintable()):
            raise BadRequest(f"header {name} holds characters that are not allowed, or is too long")
        return value


def _put_request(put: Put) -> Request:
    priority = (("_priority_", str(put.priority)),) if put.priority else ()
    headers = {
        "Content-Type": put.content_type,
        "Content-Encoding": put.content_encoding,
        _KEY_HEADERS[0]: put.key,
    }
    sent = {name: value for name, value in headers.items() if value}
    return Request("POST", (*put.tags.items(), *priority), sent, put.data, put.path)


def _parse_put(request: Request, given: _Given) -> Put:
    tags = given.tags()
    request_id = tags.get(REQUEST_ID, "")
    if request_id and (
        len(request_id) > _MAX_REQUEST_ID or not request_id.isprintable() or request_id != request_id.strip()
    ):
        raise BadRequest(f"tag {REQUEST_ID} cannot stand in a header: {_shown(request_id)}")
    if request.path and (len(request.path) > _MAX_PATH or _tag_bytes(request.path) > _MAX_PATH):
        raise BadRequest(f"the path behind the queue is longer than {_MAX_PATH} bytes")
    return Put(
        request.body,
        tags,
        given.priority(),
        request.path,
        given.media_type("Content-Type"),
        given.media_type("Content-Encoding"),
        given.key(),
    )


def _get_request(get: Get) -> Request:
    query = [
        ("_index_", str(get.index)),
        ("_length_", str(get.length)),
        ("_timeout_", format_duration(get.timeout_s)),
        ("_auto_delete_", _bool_text(get.auto_delete)),
    ]
    headers = {}
    if get.codec is not Codec.RAW:
        query.append(("_raw_", "false"))
        headers["Accept"] = get.codec.value
    return Request("GET", (*query, *get.tags.items()), headers)


def _parse_get(given: _Given) -> Get:
    length = min(given.index("_length_", 1), MAX_INT32)
    if length < 1:
        raise BadRequest("parameter _length_ is at least 1, not '0'")
    codec = given.codec()
    accept = given.headers.get("accept", "").lower()
    raw = given.boolean("_raw_", default="json" not in accept or "*/*" in accept)
    if codec is Codec.JSON and raw and length == 1:
        codec = Codec.RAW
    return Get(
        given.index("_index_", NO_INDEX, newest=True),
        length,
        given.duration("_timeout_"),
        auto_delete=given.boolean("_auto_delete_", default=True),
        tags=given.tags(),
        codec=codec,
    )


def _watch_request(watch: Watch) -> Request:
    window = (("_window_", str(watch.window)),) if watch.window else ()
    query = (
        ("_watch_", "true"),
        ("_index_", str(watch.index)),
        *window,
        ("_index_only_", _bool_text(watch.index_only)),
        ("_auto_commit_", _bool_text(watch.auto_commit)),
        *watch.tags.items(),
    )
    transport = {"Upgrade": "websocket"} if watch.upgrade else {TRANSPORT_HEADER: TRANSPORT_HTTP}
    process = {_SESSION_HEADER: watch.process} if watch.process else {}
    return Request("GET", query, {"Accept": watch.codec.value, **transport, **process})


def _parse_watch(given: _Given) -> Watch:
    # JSON only if Accept names it. Without Accept, or with `*/*`, the default is protobuf, which every SDK uses
    codec = given.codec()
    if "json" not in given.headers.get("accept", "").lower():
        codec = Codec.PROTOBUF
    return Watch(
        given.index("_index_", NO_INDEX, newest=True),
        given.index("_window_", 0),
        index_only=given.boolean("_index_only_", default=False),
        auto_commit=given.boolean("_auto_commit_", default=False),
        tags=given.tags(),
        codec=codec,
        upgrade="websocket" in given.headers.get("upgrade", "").lower(),
        process=_name(given.headers, (_SESSION,), "session"),
    )


def _parse_negative(indexes: tuple[int, ...], body: bytes) -> Negative:
    if len(body) > _MAX_FORM_BYTES:
        raise BadRequest(f"the form of a negative is above {_MAX_FORM_BYTES} bytes")
    try:
        form = dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict"))
    except ValueError as error:
        raise BadRequest("the form of a negative is not UTF-8 text") from error
    code, reason = form.get("_code_", ""), form.get("_reason_", "")
    if code and not valid_code(code):
        raise BadRequest(
            f"_code_ is words like Engine.Error or a number, at most {MAX_CODE} long: {_shown(code)}"
        )
    if len(reason) > MAX_REASON:
        raise BadRequest(f"_reason_ is longer than {MAX_REASON} characters")
    try:
        delay_s = min(parse_duration(form["_delay_"]), MAX_TIMEOUT_S) if "_delay_" in form else None
    except ValueError as error:
        raise BadRequest(f"parameter _delay_: {error}") from error
    # a reason becomes a tag, which has no line breaks; a reason may be a traceback with line breaks
    return Negative(indexes, code, reason.translate({0: " ", 10: " ", 13: " "}), delay_s)


def _unsigned(name: str, text: str) -> int:
    if not _DIGITS.fullmatch(text) or int(text) > MAX_WIRE_INDEX:
        raise BadRequest(f"parameter {name} is not an unsigned 64-bit number: {_shown(text)}")
    return int(text)


def _tag_bytes(text: str) -> int:
    """Return the UTF-8 length of a tag's key or value. Raises BadRequest for characters that a tag cannot have."""
    if "\0" in text or "\r" in text or "\n" in text:
        raise BadRequest(f"a tag or path holds a line break or NUL: {_shown(text)}")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise BadRequest(f"a tag or path is not Unicode text: {_shown(text)}") from error


def _name(lower: Mapping[str, str], headers: tuple[str, ...], what: str) -> str:
    for name in headers:
        text = lower.get(name, "").strip()
        if text and not valid_name(text):
            raise BadRequest(f"a {what} is 1 to 128 of letters, digits, '.', '_' and '-', not {_shown(text)}")
        if text:
            return text
    return ""


def _shown(text: str) -> str:
    """Return `text` for an error message: at most 80 characters, quoted, in ASCII."""
    return ascii(text[:80])


def _bool_text(value: bool) -> str:
    return "true" if value else "false"


def _join(indexes: tuple[int, ...]) -> str:
    return ",".join(map(str, indexes))
