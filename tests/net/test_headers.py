import pytest

from easq import __version__
from easq.errors import ConfigError, UsageError
from easq.model import Consumer
from easq.net.headers import request_headers
from easq.protocol.operations import Caller, Request

PUT = Request("POST", headers={"Content-Type": "text/plain"})


def test_headers_are_easqs_the_callers_and_the_users() -> None:
    headers = request_headers(PUT, Caller(Consumer("g", "u"), "TOK"), {"content-type": "a/b", "X-A": "1"})
    assert headers == {
        "User-Agent": f"easq/{__version__}",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Authorization": "TOK",
        "X-EAS-QueueService-Uid": "u",
        "X-EAS-QueueService-Redis-Uid": "u",
        "X-EAS-QueueService-Gid": "g",
        "X-EAS-QueueService-Redis-Gid": "g",
        "content-type": "a/b",
        "X-A": "1",
    }


def test_without_a_caller_no_identity_is_sent() -> None:
    assert set(request_headers(PUT, None, {})) == {"User-Agent", "Accept", "Accept-Encoding", "Content-Type"}


BAD_VALUES = ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0b", "a\x7fb", "ü", "\u2028", "a "]


@pytest.mark.parametrize("value", BAD_VALUES)
def test_an_invalid_header_value_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="X-A"):
        request_headers(PUT, None, {"X-A": value})
    with pytest.raises(UsageError, match="Content-Type"):
        request_headers(Request("POST", headers={"Content-Type": value}), None, {})
    with pytest.raises(ConfigError, match="token") as caught:
        request_headers(PUT, Caller(token=f"canary{value}"), {})
    assert "canary" not in caught.value.message


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "ü", "a\0", "(a)"])
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        request_headers(PUT, None, {name: "1"})


@pytest.mark.parametrize(
    "name", ["Content-Length", "transfer-encoding", "Connection", "Host", "Sec-WebSocket-Key"]
)
def test_a_header_that_frames_the_message_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^the header {name} cannot be set$"):
        request_headers(PUT, None, {name: "1"})


@pytest.mark.parametrize("name", ["", "a b", "a\r\nb", "ü", "a/b", "x" * 129])
def test_a_user_or_group_is_a_name(name: str) -> None:
    for caller in (Caller(Consumer(group=name)), Caller(Consumer(user=name))):
        with pytest.raises(UsageError, match="is not a name"):
            request_headers(PUT, caller, {})
