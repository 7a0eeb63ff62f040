"""Secrets of the service over real sockets: the token, the identity of a model's caller, and internals."""

from __future__ import annotations

import hmac
import logging
from typing import Any

import pytest

from easq.models.open import Echo
from easq.protocol.signatures import sign
from easq.server.queue import Queue
from tests.conftest import OpenCloud
from tests.emulator.test_instance import PATH, TOKEN, MakeUpstream
from tests.models.test_models import upstream
from tests.server.conftest import Open
from tests.support.http import Headers, ask
from tests.support.waiting import eventually
from tests.support.websocket import CLOSE, TEXT, Watch

__all__ = ["upstream"]  # the fixture is used by name

#: the identity of a caller in every form that a request can have
CALLERS: list[Headers] = [
    [("Authorization", TOKEN)],
    [("Authorization", f"Bearer {TOKEN}")],
    [("X-Auth-Token", TOKEN)],
    list(
        sign(TOKEN, b"x", content_type="text/plain", date="Mon, 30 Nov 2026 00:00:00 GMT", path=PATH).items()
    ),
]


@pytest.mark.parametrize("caller", CALLERS, ids=["token", "bearer", "x-auth-token", "signature"])
@pytest.mark.parametrize("is_open", [False, True], ids=["guarded", "open"])
def test_a_model_behind_http_is_not_told_who_calls(
    cloud: OpenCloud, upstream: MakeUpstream, caller: Headers, is_open: bool
) -> None:
    """Neither an instance nor the gateway forwards the identity, since the model may belong to a third party."""
    seen: list[str] = []

    def note(request: Any) -> None:
        seen.append(str(request.headers))
        request.answer(b"x")

    made = cloud(upstream(note).url, token=TOKEN, open_instances=is_open)
    plain = [("Cookie", "canary=1"), ("Proxy-Authorization", "Basic canary"), ("X-Mine", "kept")]
    for port in (made.ports[0], made.port):
        assert ask(port, "POST", PATH, [*caller, *plain], b"x").status == 200
        with Watch(port, PATH, [*caller, *plain]) as socket:
            socket.send(TEXT, b"x")
            socket.read()
    assert len(seen) == 4
    for headers in seen:
        assert "X-Mine: kept" in headers
        for secret in (TOKEN, "canary", "EAS ", "Authorization", "Date:", "Content-MD5"):
            assert secret.lower() not in headers.lower()


@pytest.mark.parametrize("given", ["wrong", TOKEN, f"{TOKEN}x", TOKEN[:-1]])
def test_the_token_is_compared_in_the_same_time_wherever_it_differs(
    cloud: OpenCloud, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Every check of the token calls `hmac.compare_digest`."""
    compared: list[tuple[Any, Any]] = []
    real = hmac.compare_digest

    def compare(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    made = cloud(token=TOKEN)
    path = "/api/predict/q"
    signed = list(
        sign(given, b"x", content_type="text/plain", date="Mon, 30 Nov 2026 00:00:00 GMT", path=PATH).items()
    )
    doors: list[tuple[int, str, str, Headers]] = [
        (made.port, "GET", path, [("Authorization", given)]),
        (made.port, "POST", path, [("Authorization", given)]),
        (made.port, "POST", PATH, [("Authorization", given)]),
        (made.port, "POST", PATH, signed),
        (made.ports[0], "POST", PATH, [("Authorization", f"Bearer {given}")]),
        (made.ports[0], "POST", PATH, [("X-Auth-Token", given)]),
        (made.port, "GET", "/v1/p/services/model/predict/endpoints", [("X-Auth-Token", given)]),
    ]
    for port, method, target, headers in doors:
        compared.clear()
        answer = ask(port, method, target, headers, b"x" if method == "POST" else None)
        assert (answer.status == 401) == (given != TOKEN), target
        assert compared, target
        assert any(real(*pair) for pair in compared) == (given == TOKEN), target


# -- the log -----------------------------------------------------------------------------------------------------------

EVIL = "%0a2026-01-01%20error%20planted%0d%1b[31m%07%c2%9b%e2%80%ae%00"


@pytest.mark.parametrize("fails", [False, True], ids=["answered", "failed"])
def test_no_control_character_of_a_request_is_in_the_log(
    start: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    """A path takes one line of the log, and cannot control a terminal."""
    queue = start().queue
    if fails:
        monkeypatch.setattr(Queue, "put", _fails)
    with caplog.at_level(logging.INFO, "easq"):
        ask(queue.port, "POST", f"{queue.path}/{EVIL}", (), b"x")
        ask(queue.port, "GET", f"/{EVIL}")
        ask(
            queue.port,
            "GET",
            f"{queue.path}?_uid_={EVIL}&{EVIL}={EVIL}",
            [("X-EAS-QueueService-Uid", "\x1b[31m")],
        )
        eventually(lambda: len(caplog.records) >= 3 + fails)  # a line is logged after the answer was sent
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3 + fails
    for message in messages:
        assert message.isprintable(), repr(message)
    caplog.clear()  # the traceback, which pytest would show


# -- internal errors ---------------------------------------------------------------------------------------------------


def _fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("CANARY in /home/canary/secret.py")


def test_a_bug_is_500_without_internals(
    cloud: OpenCloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No traceback and no path is in an answer or a close frame. The log has both."""
    made = cloud("echo", token=TOKEN)
    for name in (
        "put",
        "get",
        "attributes",
        "search",
        "count",
        "commit",
        "negative",
        "delete",
        "truncate",
        "end",
    ):
        monkeypatch.setattr(Queue, name, _fails)
    monkeypatch.setattr(Echo, "answer", _fails)
    path = "/api/predict/q"
    caller = [("Authorization", TOKEN)]
    requests = [
        (made.port, "POST", path, b"x"),
        (made.port, "GET", path, None),
        (made.port, "GET", f"{path}?_attrs_=true", None),
        (made.port, "GET", f"{path}?_search_=true&_index_=1", None),
        (made.port, "PUT", f"{path}?_indexes_=1", None),
        (made.port, "DELETE", f"{path}?_index_=1", None),
        (made.port, "POST", PATH, b"x"),
        (made.ports[0], "POST", PATH, b"x"),
    ]
    for port, method, target, body in requests:
        answer = ask(port, method, target, caller, body)
        assert answer.status == 500, (method, target)
        _tells_nothing(answer.text + repr(answer.headers))
    for port in (made.port, made.ports[0]):
        with Watch(port, PATH, caller) as socket:
            socket.send(TEXT, b"x")
            frame = socket.read()
            assert frame.opcode == CLOSE
            _tells_nothing(repr(frame.payload))
    assert "CANARY in /home/canary/secret.py" in caplog.text
    caplog.clear()


def _tells_nothing(text: str) -> None:
    for word in ("Traceback", "CANARY", "RuntimeError", ".py", "/home", "File "):
        assert word not in text
