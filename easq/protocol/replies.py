"""Every answer of the queue service's wire: written by the service, read by the client.

A writer (`put_reply`) turns a value into a `Reply`; its reader (`read_put`) returns the value. For a status other than
2xx a reader raises the error of `read_error`. For an answer that no queue service sends it raises NotAQueueService.

Source: Alibaba's "Access a queue service" page, and the official Go, Java and Python SDKs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from easq.errors import (
    AuthFailed,
    EasqError,
    MethodNotAllowed,
    NotAQueueService,
    NotFound,
    Unavailable,
    UpgradeRequired,
    error_class,
)
from easq.model import HEADER_PREFIX, MAX_WIRE_INDEX, Ack, Frame, SearchResult, Tags
from easq.protocol.bounds import MAX_FRAMES, load_json
from easq.protocol.media_type import sniff
from easq.protocol.operations import Codec

#: header of a put's answer and of a raw get: the item's request id
REQUEST_ID_HEADER = "X-Eas-Queueservice-Request-Id"
#: `1` on the answer to a put whose idempotency key was seen before
DUPLICATE_HEADER = "X-Easq-Duplicate"
#: how many items a commit or negative changed, and how many items were deleted; the status is 200 in any case
COMMITTED_HEADER, DELETED_HEADER = "X-Easq-Committed", "X-Easq-Deleted"
#: `no` on a 503: the service guarantees that nothing was stored
STORED_HEADER = "X-Easq-Stored"
#: on the attributes of easq's own service: its extensions of EAS's protocol, separated by commas
FEATURES_HEADER = "X-Easq-Features"
#: the service accepts negatives with the code Busy and a `_delay_`
BUSY_FEATURE = "busy"
FEATURES = frozenset((BUSY_FEATURE,))
#: body of the 404 that answers a search for an item that is gone
NO_DATA_IN_STREAM = "no data in stream"

#: longest text of an error that is written or shown, in characters
_MAX_ERROR_TEXT = 500
#: longest Retry-After, in seconds; longer ones are reduced to it, since the system's timers have a limit
_MAX_RETRY_AFTER_S = 86_400.0
_PLAIN = "text/plain; charset=utf-8"
_MEDIA_TYPE = r"(?a)[\w!#$%&'*+.^`|~-]+/[\w!#$%&'*+.^`|~-]+(?:[ \t]*;[\x20-\x7e\t]*)?"
#: types that a browser executes, or renders as a page or in a built-in viewer; served as plain bytes instead. Firefox
#: renders every multipart type except form-data
_ACTIVE = (
    r"multipart/(?!form-data).*|message/.*|.*/(?:hta|x-component|cache-manifest|.*css)"
    r"|.*(?:html|xml|xsl|svg|pdf|mimearchive|javascript|ecmascript|jscript|livescript|vbscript|typescript"
    r"|wasm|java-|flash|futuresplash|signed-exchange|webbundle).*"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer; header names are in any case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def header(self, name: str) -> str:
        """Return the value of the header `name` in any case; empty if it is missing."""
        wanted = name.lower()
        return next((value for key, value in self.headers.items() if key.lower() == wanted), "")


def put_reply(ack: Ack) -> Reply:
    """Return the answer to a stored put: the digits of the index, without a newline, which the Go SDK cannot parse."""
    headers = {REQUEST_ID_HEADER: ack.request_id}
    if ack.duplicate:
        headers[DUPLICATE_HEADER] = "1"
    return _reply(str(ack.index).encode("ascii"), _PLAIN, headers)


def read_put(reply: Reply) -> Ack:
    """Read the answer to a put; the request id is empty if the server sent none."""
    index = _read_number(reply, "put", "an index", MAX_WIRE_INDEX)
    return Ack(index, reply.header(REQUEST_ID_HEADER), reply.header(DUPLICATE_HEADER) == "1")


def ok_reply(headers: Mapping[str, str] | None = None) -> Reply:
    """Return the answer to commit, negative, delete, truncate and end: 200 `OK`, as the Go SDK requires."""
    return _reply(b"OK", _PLAIN, headers)


def read_ok(reply: Reply) -> None:
    """Raise an error unless `reply` is a success: any 2xx, with an empty or short text body."""
    _expect(reply, "this operation")


def read_counted(reply: Reply) -> int | None:
    """Return how many items a commit, negative, delete or truncate changed; None if the service does not say."""
    read_ok(reply)
    count = reply.header(COMMITTED_HEADER) or reply.header(DELETED_HEADER)
    return int(count) if count.isascii() and count.isdigit() and len(count) < 20 else None


def frames_reply(frames: Sequence[Frame], codec: Codec) -> Reply:
    """Return the answer to a get that is not raw: the list, or 204 without a body if nothing matched."""
    if not frames:
        return Reply(204)
    from easq.protocol.frames import encode_frames  # protobuf, which a put does without

    return _reply(encode_frames(frames, codec), codec.value)


def raw_reply(frame: Frame) -> Reply:
    """Return the answer to a raw get: the payload with its own type, and the request id.

    A missing or malformed type is guessed. So is the type of forms, since `curl -d` sends it with any data. Types that
    a browser would execute are replaced by application/octet-stream: a stored page must not use the service's origin.
    """
    stored = frame.tags.get(HEADER_PREFIX + "Content-Type", "")
    media_type = stored.partition(";")[0].strip().lower()
    if not re.fullmatch(_MEDIA_TYPE, stored) or media_type == "application/x-www-form-urlencoded":
        stored = sniff(frame.data)
        media_type = stored.partition(";")[0]
    if re.fullmatch(_ACTIVE, media_type):
        stored = "application/octet-stream"
    request_id = _one_line(frame.request_id)
    return _reply(frame.data, stored, {REQUEST_ID_HEADER: request_id} if request_id else {})


def read_frames(reply: Reply, codec: Codec, *, most: int = MAX_FRAMES) -> list[Frame]:
    """Return the frames of a get that asked for `codec` and at most `most` frames.

    The list is empty for a 204 or an empty body. If the Content-Type names another codec, that codec is used.
    """
    _expect(reply, "get")
    if reply.status == 204 or not reply.body:
        return []
    from easq.protocol.frames import decode_frames  # protobuf, which a put does without

    try:
        return decode_frames(reply.body, _codec_of(reply, codec), most=most)
    except ValueError as error:
        raise NotAQueueService(f"the answer to a get is not a list of frames: {error}") from error


def attributes_reply(attributes: Mapping[str, str], codec: Codec) -> Reply:
    """Return the answer with a queue's attributes, and with this service's extensions in a header."""
    from easq.protocol.frames import encode_attributes  # protobuf, which a put does without

    return _reply(
        encode_attributes(attributes, codec), codec.value, {FEATURES_HEADER: ", ".join(sorted(FEATURES))}
    )


def read_features(reply: Reply) -> frozenset[str]:
    """Return the extensions that an attributes answer names; none from EAS itself."""
    return frozenset(filter(None, map(str.strip, reply.header(FEATURES_HEADER).split(","))))


def read_attributes(reply: Reply, codec: Codec) -> dict[str, str]:
    """Read the attributes of a queue. Every version of the service sends names that begin with `stream.` or `meta.`."""
    _expect(reply, "attributes")
    from easq.protocol.frames import decode_attributes  # protobuf, which a put does without

    try:
        attributes = decode_attributes(reply.body, _codec_of(reply, codec))
    except ValueError as error:
        raise NotAQueueService(f"the answer holds no attributes of a queue: {error}") from error
    if not any(key.startswith(("stream.", "meta.")) for key in attributes):
        raise NotAQueueService("the answer holds no attributes of a queue", hint="check the url")
    return attributes


def search_reply(result: SearchResult) -> Reply:
    """Return the answer to a search."""
    found = {"ConsumerId": result.consumer_id, "IsPending": result.is_pending, "WaitCount": result.wait_count}
    return _reply(json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode(), Codec.JSON.value)


def read_search(reply: Reply) -> SearchResult:
    """Read the answer to a search; older services omit the consumer."""
    _expect(reply, "search")
    try:
        found = load_json(reply.body)
    except ValueError as error:
        raise NotAQueueService(f"the answer to a search is not JSON: {_quoted(reply.body)}") from error
    if not isinstance(found, dict):
        raise NotAQueueService(f"the answer to a search is not an object: {_quoted(reply.body)}")
    consumer, pending, waiting = found.get("ConsumerId", ""), found.get("IsPending"), found.get("WaitCount")
    if not isinstance(consumer, str) or not isinstance(pending, bool) or type(waiting) is not int:
        raise NotAQueueService("the answer to a search lacks ConsumerId, IsPending or WaitCount")
    return SearchResult(consumer, is_pending=pending, wait_count=waiting)


def count_reply(count: int) -> Reply:
    """Return the answer to a count: its digits."""
    return _reply(str(count).encode("ascii"), _PLAIN)


def read_count(reply: Reply) -> int:
    """Read the answer to a count."""
    return _read_number(reply, "count", "a number", MAX_WIRE_INDEX)


def error_reply(error: EasqError) -> Reply:
    """Return the answer for an error: its message as plain text, with its status."""
    text = _one_line(error.message[: 2 * _MAX_ERROR_TEXT])[:_MAX_ERROR_TEXT]
    headers = {STORED_HEADER: "no"} if isinstance(error, Unavailable) else {}
    if isinstance(error, UpgradeRequired):
        # RFC 9110, section 15.5.22, and RFC 6455, section 4.4
        headers |= {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    if isinstance(error, MethodNotAllowed) and error.allow:
        headers["Allow"] = error.allow
    if error.status < 400:
        return Reply(error.status, headers)
    return _reply(text.encode(errors="replace"), _PLAIN, headers, status=error.status)


def read_error(reply: Reply) -> EasqError:
    """Return the error of an answer that is not 2xx: its class by the status, its message from the body.

    If the body is one word, the message also has the status. For JSON of Huawei's gateway or management API, the
    message consists of error_msg and error_code.
    """
    if 300 <= reply.status < 400:
        return _redirect(reply)
    if _is_html(reply):
        text = f"the server answered {reply.status} with an HTML page"
    else:
        from easq.protocol.modelarts import error_text  # the client's errors alone need it

        said = error_text(reply.body) or reply.body[: 4 * _MAX_ERROR_TEXT].decode(errors="replace")
        text = _one_line(said[: 4 * _MAX_ERROR_TEXT])[:_MAX_ERROR_TEXT]
        if text and " " not in text:  # one word; easq and EAS answer with sentences
            text = f"the server answered {reply.status}: {text}"[:_MAX_ERROR_TEXT]
    kind = error_class(reply.status)
    hint = ""
    if issubclass(kind, AuthFailed):
        hint = "check the token"
    elif kind is NotFound and text != NO_DATA_IN_STREAM:
        hint = "check the url and the name of the queue or service"
    error = kind(
        text or f"the server answered {reply.status} without a reason", hint=hint, status=reply.status
    )
    error.retry_after_s = retry_after_s(reply)
    return error


def retry_after_s(reply: Reply) -> float | None:
    """Return the seconds of a Retry-After header, at most a day; None without a valid one.

    A date is compared with the answer's own Date, since clocks differ.
    """
    text = reply.header("Retry-After").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _MAX_RETRY_AFTER_S)
    if not text:
        return None
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(text)
        sent = reply.header("Date")
        now = parsedate_to_datetime(sent) if sent else datetime.now(UTC)
        return min(max((moment - now).total_seconds(), 0.0), _MAX_RETRY_AFTER_S)
    except (TypeError, ValueError, OverflowError):  # not a date, or (TypeError) one without a time zone
        return None


def format_tags(tags: Tags) -> str:
    """Return `tags[k=v k2=v2]`, keys in byte order, as the Go SDK and eascmd."""
    pairs = sorted(tags.items(), key=lambda pair: pair[0].encode(errors="surrogatepass"))
    return f"tags[{' '.join(f'{key}={value}' for key, value in pairs)}]"


def _reply(
    body: bytes, media_type: str, headers: Mapping[str, str] | None = None, *, status: int = 200
) -> Reply:
    all_headers = {"Content-Type": media_type, "X-Content-Type-Options": "nosniff", **(headers or {})}
    return Reply(status, all_headers, body)


def _expect(reply: Reply, what: str) -> None:
    """Raise the error of a status other than 2xx, and NotAQueueService for a web page: portals send one with 200."""
    if not 200 <= reply.status < 300:
        raise read_error(reply)
    if _is_html(reply):
        raise NotAQueueService(
            f"the answer to {what} is an HTML page, not a queue service's",
            hint="check the url: it ends in /api/predict/NAME, or a proxy answers in the service's place",
        )


def _is_html(reply: Reply) -> bool:
    if "html" in reply.header("Content-Type").lower():
        return True
    return reply.body[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))


def _codec_of(reply: Reply, asked: Codec) -> Codec:
    media_type = reply.header("Content-Type").lower()
    if "protobuf" in media_type:
        return Codec.PROTOBUF
    return Codec.JSON if "json" in media_type else asked


def _read_number(reply: Reply, operation: str, what: str, limit: int) -> int:
    _expect(reply, operation)
    text = reply.body[:100].strip()
    if not text.isdigit() or int(text) > limit:
        raise NotAQueueService(f"the answer to a {operation} is not {what}: {_quoted(reply.body)}")
    return int(text)


def _redirect(reply: Reply) -> EasqError:
    # user, password, query and fragment are removed, since they may be secret
    location = re.sub(
        r"^([a-zA-Z][a-zA-Z0-9+.-]*:)?//[^/?#]*@", r"\1//", _one_line(reply.header("Location")[:2000])
    )
    location = re.split(r"[?#]", location)[0][:_MAX_ERROR_TEXT]
    where = f" to {location}" if location else ""
    return NotAQueueService(
        f"the server answered {reply.status}, a redirect{where}, which is not followed",
        hint="if that is the right address, use it as the url",
        status=reply.status,
    )


def _one_line(text: str) -> str:
    """Return `text` without characters that are not printable: line breaks, controls, bidirectional marks."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _quoted(body: bytes) -> str:
    return ascii(body[:80].decode(errors="replace")) if body else "it is empty"
