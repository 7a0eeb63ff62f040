"""One instance at its own address: HTTP and WebSocket in front of a real model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest

from easq.protocol.signatures import sign
from tests.conftest import OpenCloud
from tests.models.test_models import Reply, Upstream, upstream
from tests.support.http import Connection, Headers, ask
from tests.support.waiting import PATIENCE_S, eventually
from tests.support.websocket import BINARY, CLOSE, TEXT, Refused, Watch

__all__ = ["upstream"]  # the fixture is used by name

MakeUpstream: TypeAlias = Callable[[Reply], Upstream]

PATH = "/api/predict/model"
TOKEN = "dG9rZW4="


def test_a_post_is_answered_by_the_model(cloud: OpenCloud) -> None:
    """Bytes and type come back unchanged, and a header names the instance."""
    instance = cloud().instances[0]
    body = os.urandom(100_000)
    answer = ask(instance.port, "POST", PATH, [("Content-Type", "image/png")], body)
    assert (answer.status, answer.body) == (200, body)
    assert answer.header("Content-Type") == "image/png"
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("X-Easq-Instance") == instance.address


def test_types_that_a_browser_executes_become_plain_bytes(cloud: OpenCloud) -> None:
    """A model that repeats its request must not serve a web page from this address."""
    port = cloud().ports[0]
    for kind in ("text/html", "image/svg+xml", "application/xhtml+xml"):
        answer = ask(port, "POST", PATH, [("Content-Type", kind)], b"<script>x</script>")
        assert answer.header("Content-Type") == "application/octet-stream"


def test_a_model_cannot_override_security_headers(cloud: OpenCloud, upstream: MakeUpstream) -> None:
    """Its headers cannot make an nginx before the service send a file either."""
    headers = [
        ("x-content-type-options", "off"),
        ("X-Accel-Redirect", "/etc/passwd"),
        ("X-Sendfile", "/etc/passwd"),
        ("X-Model", "m"),
    ]
    made = cloud(upstream(lambda request: request.answer(b"x", *headers)).url)
    for port in (made.ports[0], made.port):
        answer = ask(port, "POST", PATH, body=b"")
        assert (answer.body, answer.header("X-Content-Type-Options")) == (b"x", "nosniff")
        assert (answer.header("X-Model"), answer.all("X-Accel-Redirect"), answer.all("X-Sendfile")) == (
            "m",
            [],
            [],
        )


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (PATH, "", ""),
        (f"{PATH}/v1/x%2Fy?a=b%20c&a=d", "/v1/x%2Fy", "a=b+c&a=d"),
        ("/api/predict/mo%64el/p", "/p", ""),
        ("/", "", ""),
        ("/invocations?x=1", "/invocations", "x=1"),
    ],
)
def test_the_model_gets_the_path_after_the_services_name(
    cloud: OpenCloud, tmp_path: Path, target: str, path: str, query: str
) -> None:
    """A path without the service's name, as with ModelArts, is passed whole."""
    model = tmp_path / "model.py"
    model.write_text(
        "import os; print(os.environ.get('EASQ_PATH', '') + '?' + os.environ.get('EASQ_QUERY', ''))"
    )
    port = cloud(f"exec:{sys.executable} -I {model}").ports[0]
    assert ask(port, "POST", target, body=b"").text == f"{path}?{query}\n"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_405(cloud: OpenCloud, method: str) -> None:
    answer = ask(cloud().ports[0], method, PATH, body=b"")
    assert (answer.status, answer.text) == (405, "a model is called with POST, or over a WebSocket")


def test_health_is_answered_to_everyone(cloud: OpenCloud) -> None:
    """It needs no token, and does not count as a call."""
    instance = cloud(token=TOKEN).instances[0]
    assert ask(instance.port, "GET", "/healthz").text == "ok\n"
    assert instance.requests == 0


def test_another_services_path_is_404(cloud: OpenCloud) -> None:
    """A caller with the path of another service has used the wrong address."""
    answer = ask(cloud().ports[0], "POST", "/api/predict/other", body=b"")
    assert (answer.status, answer.text) == (404, "this is an instance of model")


def signed(token: str, target: str, **changed: str) -> list[tuple[str, str]]:
    headers = sign(
        token,
        b"[{}]",
        content_type="application/octet-stream",
        date="Mon, 02 Jan 2006 15:04:05 GMT",
        path=target,
    )
    return list((headers | {name.replace("_", "-"): value for name, value in changed.items()}).items())


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("Authorization", TOKEN)], id="the token"),
        pytest.param([("Authorization", f"Bearer {TOKEN}")], id="Bearer"),
        pytest.param([("authorization", f"bearer  {TOKEN} ")], id="bearer, loosely"),
        pytest.param([("X-Auth-Token", TOKEN)], id="X-Auth-Token, as with ModelArts"),
        pytest.param([("Authorization", ""), ("X-Auth-Token", TOKEN)], id="the same beside nothing"),
        pytest.param(signed(TOKEN, f"{PATH}/v%31"), id="a signature, years old, as Python and Go send it"),
        pytest.param(signed(TOKEN, f"{PATH}/v%31?a=1"), id="of the query too, as Java"),
        pytest.param(signed(TOKEN, f"{PATH}/v1"), id="of the path before its encoding"),
    ],
)
def test_who_has_the_token_is_let_in(cloud: OpenCloud, headers: Headers) -> None:
    answer = ask(cloud(token=TOKEN).ports[0], "POST", f"{PATH}/v%31?a=1", headers, b"[{}]")
    assert (answer.status, answer.body) == (200, b"[{}]")


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "a token is needed"),
        ([("Authorization", "")], "a token is needed"),
        ([("Authorization", "wrong")], "the token is wrong"),
        ([("Authorization", "Bearer wrong")], "the token is wrong"),
        ([("Authorization", "EAS ")], "the token is wrong"),
        ([("X-Auth-Token", "wrong")], "the token is wrong"),
        ([("Authorization", "wrong"), ("X-Auth-Token", TOKEN)], "the token is wrong"),
        ([("Authorization", "EAS x")], "the signature is wrong"),
        ([("Authorization", "EAS \u00fc")], "the signature is wrong"),
        (signed("other", PATH), "the signature is wrong"),
        (signed(TOKEN, "/api/predict/other"), "the signature is wrong"),
        (signed(TOKEN, PATH, Date="Mon, 02 Jan 2006 15:04:06 GMT"), "the signature is wrong"),
        (signed(TOKEN, PATH, Content_MD5="x"), "the signature is wrong"),
    ],
)
@pytest.mark.parametrize("path", [PATH, "/"])
def test_a_call_without_the_token_is_401(cloud: OpenCloud, path: str, headers: Headers, reason: str) -> None:
    """The path does not matter, at the instance and at the gateway."""
    made = cloud(token=TOKEN)
    answer = ask(made.ports[0], "POST", path, headers, b"[{}]")
    assert (answer.status, answer.text) == (401, reason)
    if path == PATH:
        assert ask(made.port, "POST", path, headers, b"[{}]").status == 401


def test_open_instances_ask_for_no_token(cloud: OpenCloud) -> None:
    """ModelArts has such instances. The gateway still requires the token."""
    made = cloud(token=TOKEN, open_instances=True)
    assert ask(made.ports[0], "POST", "/", body=b"x").body == b"x"
    assert ask(made.port, "POST", PATH, body=b"x").status == 401
    assert ask(made.port, "POST", PATH, [("Authorization", TOKEN)], b"x").body == b"x"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Host", "evil.test")], 421),
        ([("Host", "localhost"), ("Host", "localhost")], 400),
        ([("Origin", "http://evil.test")], 403),
        ([("Origin", "null")], 403),
        ([("Sec-Fetch-Site", "cross-site")], 403),
    ],
)
def test_pages_of_other_origins_are_refused_everywhere(
    cloud: OpenCloud, headers: Headers, status: int
) -> None:
    """Instance, gateway, discovery and look-up refuse web pages of other sites, for each method and handshake."""
    made = cloud()
    doors = [
        (made.ports[0], PATH),
        (made.ports[0], "/healthz"),
        (made.port, PATH),
        (made.port, "/exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams/model"),
        (made.port, "/api/v1/servicediscovery/upstreams/model"),
        (made.port, "/v1/p/services/model/predict/endpoints?type=host_endpoints"),
    ]
    for port, path in doors:
        for method in ("GET", "POST"):
            assert ask(port, method, path, headers, b"").status == status
    for port, path in ((made.ports[0], PATH), (made.port, PATH)):
        with pytest.raises(Refused) as caught:
            Watch(port, path, headers)
        assert caught.value.answer.status == status
    assert made.counts() == [0]


def test_a_call_above_the_limit_is_413(cloud: OpenCloud) -> None:
    """It is refused before its body is read, at instance and gateway."""
    made = cloud(max_payload=10)
    for port in (made.ports[0], made.port):
        assert ask(port, "POST", PATH, body=b"x" * 10).status == 200
        answer = ask(port, "POST", PATH, body=b"x" * 11)
        assert (answer.status, answer.text) == (413, "the request has 11 bytes, 10 are allowed")


@pytest.mark.parametrize(
    ("model", "status", "text"),
    [
        ("exec:sh -c 'echo no such picture >&2; exit 1'", 500, "no such picture"),
        ("exec:sleep 1000", 504, "no answer within"),
        ("http://127.0.0.1:1/", 502, "the model cannot be reached"),
    ],
)
def test_failures_are_reported_in_one_line(cloud: OpenCloud, model: str, status: int, text: str) -> None:
    """The status distinguishes a failed model from a missing one and from a timeout."""
    made = cloud(model, timeout_s=0.3 if "sleep" in model else 30)
    for port in (made.ports[0], made.port):
        answer = ask(port, "POST", PATH, body=b"")
        assert answer.status == status
        assert text in answer.text
        assert answer.header("Content-Type") == "text/plain; charset=utf-8"


def test_a_missing_command_is_500_and_not_described(cloud: OpenCloud, tmp_path: Path) -> None:
    """The answer does not name the path of the command."""
    command = tmp_path / "model"
    command.write_text("#!/bin/sh\ncat\n")
    command.chmod(0o755)
    made = cloud(f"exec:{command}")
    assert ask(made.ports[0], "POST", PATH, body=b"x").body == b"x"
    command.unlink()
    answer = ask(made.ports[0], "POST", PATH, body=b"x")
    assert (answer.status, answer.text) == (500, "the model cannot be started")


def test_a_slow_model_holds_up_nobody_else(cloud: OpenCloud, tmp_path: Path) -> None:
    """An instance answers other calls while one call waits for the model."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    made = cloud(f"exec:sh -c 'read line; [ $line = wait ] && cat {gate}; echo done'")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, made.ports[0], "POST", PATH, (), b"wait\n")
        eventually(lambda: made.counts() == [1])
        assert ask(made.ports[0], "POST", PATH, body=b"go\n").body == b"done\n"
        assert not waiting.done()
        gate.write_text("")
        assert waiting.result(PATIENCE_S).body == b"done\n"


def messages(socket: Watch, *sent: tuple[int, bytes]) -> list[tuple[int, bytes]]:
    for kind, data in sent:
        socket.send(kind, data)
    got = [socket.read() for _ in sent]
    return [(frame.opcode, frame.payload) for frame in got]


@pytest.mark.parametrize("model", ["echo", "exec:cat"])
@pytest.mark.parametrize("gateway", [False, True])
def test_a_message_is_answered_by_a_message_of_its_kind(cloud: OpenCloud, model: str, gateway: bool) -> None:
    """Text is answered with text and bytes with bytes, in order, at the instance and through the gateway."""
    made = cloud(model)
    socket = Watch(made.port if gateway else made.ports[0], f"{PATH}/chat?x=1")
    sent = [(TEXT, "grüße".encode()), (BINARY, bytes(range(256))), (TEXT, b""), (BINARY, b"")]
    assert messages(socket, *sent) == sent
    socket.send(CLOSE, b"\x03\xe8")
    closed = socket.read()
    assert (closed.opcode, closed.payload[:2]) == (CLOSE, b"\x03\xe8")
    socket.connection.close()


def test_an_answer_that_is_no_text_is_binary(cloud: OpenCloud) -> None:
    """A text message must be UTF-8."""
    socket = Watch(cloud("exec:printf '\\377'").ports[0], PATH)
    assert messages(socket, (TEXT, b"x")) == [(BINARY, b"\xff")]
    socket.connection.close()


@pytest.mark.parametrize("gateway", [False, True])
def test_a_failure_ends_the_socket_with_its_reason(cloud: OpenCloud, gateway: bool) -> None:
    """The close frame has 1011 and the model's message, cut to the length of a close frame."""
    made = cloud("exec:sh -c 'printf \"ü%.0s\" $(seq 100) >&2; exit 1'")
    socket = Watch(made.port if gateway else made.ports[0], PATH)
    ((kind, payload),) = messages(socket, (TEXT, b"x"))
    assert (kind, payload[:2]) == (CLOSE, b"\x03\xf3")
    if not gateway:
        assert payload[2:].decode() == "ü" * 61
    socket.connection.close()


def test_a_socket_needs_the_token(cloud: OpenCloud) -> None:
    """It is checked before the upgrade, at instance and gateway."""
    made = cloud(token=TOKEN)
    for port in (made.ports[0], made.port):
        with pytest.raises(Refused) as caught:
            Watch(port, PATH)
        assert caught.value.answer.status == 401
        socket = Watch(port, PATH, [("Authorization", TOKEN)])
        assert messages(socket, (TEXT, b"x")) == [(TEXT, b"x")]
        socket.connection.close()


def test_a_message_above_the_limit_ends_the_socket(cloud: OpenCloud) -> None:
    """The close code is 1009."""
    socket = Watch(cloud(max_payload=10).ports[0], PATH)
    ((kind, payload),) = messages(socket, (BINARY, b"x" * 1000))
    assert (kind, payload[:2]) == (CLOSE, b"\x03\xf1")
    socket.connection.close()


def test_sockets_are_closed_in_order_when_the_service_stops(cloud: OpenCloud) -> None:
    """The close code is 1001, at the instance and through the gateway."""
    made = cloud()
    sockets = [Watch(made.ports[0], PATH), Watch(made.port, PATH)]
    made.request_stop()
    for socket in sockets:
        frame = socket.read()
        assert (frame.opcode, frame.payload[:2]) == (CLOSE, b"\x03\xe9")
        socket.send(CLOSE, b"\x03\xe9")
        socket.connection.close()


def test_a_killed_instance_restarts_at_the_same_port(cloud: OpenCloud) -> None:
    """Its connections are reset and new ones refused until it listens again."""
    made = cloud()
    port = made.ports[0]
    with Connection(port) as connection:
        assert connection.ask("POST", PATH, body=b"x").body == b"x"
        made.kill(0)
        with pytest.raises(ConnectionResetError):
            connection.read(1)
    with pytest.raises(ConnectionRefusedError):
        Connection(port)
    made.back(0)
    assert made.ports == [port]
    assert ask(port, "POST", PATH, body=b"y").body == b"y"
