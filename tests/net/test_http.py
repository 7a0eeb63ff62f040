import base64
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from easq import errors
from easq.model import Consumer
from easq.net.failures import Unanswered, Unconnected
from easq.net.http import Transport
from easq.net.retry import Retry
from easq.net.settings import NetworkSettings
from easq.protocol.operations import Caller, Describe, Put, Request, to_request
from tests.client.servers import Peer, Server, answering, broken, eventually, free_port, reply, secured

TOKEN = "canary-token-canary"
CALLER = Caller(Consumer("g", "u"), TOKEN)
PUT = to_request(Put(b"payload-canary", {"a": "b c/ü"}))
GET = to_request(Describe())
QUICK = NetworkSettings(connect_timeout_s=5.0, request_timeout_s=10.0, environ={})


@pytest.fixture
def transport() -> Iterator[Transport]:
    with Transport(QUICK) as transport:
        yield transport


def test_a_request_has_exactly_these_lines(transport: Transport) -> None:
    with answering(reply(200, b"7")) as server:
        assert transport.exchange(server.url, PUT, CALLER).body == b"7"
    assert len(server.requests) == 1
    head, body = server.requests[0]
    lines = head.split("\r\n")
    assert lines[0] == "POST /api/predict/q?a=b+c%2F%C3%BC HTTP/1.1"
    assert body == b"payload-canary"
    assert set(lines[1:]) == {
        f"Host: 127.0.0.1:{server.port}",
        "Accept: */*",
        "Accept-Encoding: identity",
        "User-Agent: " + next(line for line in lines if line.startswith("User-Agent"))[12:],
        "Content-Length: 14",
        f"Authorization: {TOKEN}",
        "X-EAS-QueueService-Uid: u",
        "X-EAS-QueueService-Redis-Uid: u",
        "X-EAS-QueueService-Gid: g",
        "X-EAS-QueueService-Redis-Gid: g",
    }


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:{port}/a;b/c;d", "127.0.0.1:{port}"),
        ("http://[::ffff:127.0.0.1]:{port}/a;b/c;d", "[::ffff:127.0.0.1]:{port}"),
    ],
)
def test_an_address_gives_the_host_and_the_target(transport: Transport, url: str, host: str) -> None:
    with answering(reply(200, b"7")) as server:
        transport.exchange(url.format(port=server.port), GET, CALLER)
    lines = server.heads()[0].split("\r\n")
    assert lines[0] == "GET /a;b/c;d?_attrs_=true HTTP/1.1"
    assert f"Host: {host.format(port=server.port)}" in lines


def test_repeated_headers_are_joined_and_any_bytes_are_text(transport: Transport) -> None:
    with answering(
        lambda peer: peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: 1\r\nx-a: 2\r\nX-B: \xe4\xb8\xad\xff\r\n\r\n"
        )
    ) as server:
        found = transport.exchange(server.url, GET, CALLER)
    assert found.header("X-A") == "1, 2"
    assert found.header("x-b") == "中\ufffd"


def test_paths_and_queries_cannot_break_out_of_the_request_line(transport: Transport) -> None:
    evil = "a\r\nX-Evil: 1\r\n\r\nGET /other HTTP/1.1"
    request = Request("POST", ((evil, evil),), {}, b"", f"/v1/{evil}/%/?#")
    with answering(reply()) as server:
        transport.exchange(server.url, request, CALLER)
    assert len(server.requests) == 1
    assert "X-Evil: 1" not in server.heads()[0].split("\r\n")
    assert server.heads()[0].split(" ")[1].startswith("/api/predict/q/v1/a%0D%0AX-Evil:%201%0D%0A")
    assert "/%25/%3F%23?" in server.heads()[0].split(" ")[1]


def test_an_empty_put_has_a_content_length_of_0(transport: Transport) -> None:
    with answering(reply()) as server:
        transport.exchange(server.url, Request("PUT", (("_indexes_", "1,2"),)), CALLER)
    assert "Content-Length: 0" in server.heads()[0].split("\r\n")
    assert "_indexes_=1%2C2" in server.heads()[0]


def test_connections_are_reused(transport: Transport) -> None:
    with answering(reply()) as server:
        for _ in range(3):
            transport.exchange(server.url, GET, CALLER)
        assert server.connections == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("request_", [GET, PUT], ids=["get", "put"])
def test_a_redirect_is_named_and_not_followed(transport: Transport, status: int, request_: Request) -> None:
    with answering(reply()) as other:
        to = f"http://user:secret@127.0.0.1:{other.port}/x?token=secret"
        with answering(reply(status, b"", Location=to)) as server:
            with pytest.raises(errors.NotAQueueService) as caught:
                transport.exchange(server.url, request_, CALLER)
        assert other.connections == 0
    assert len(server.requests) == 1
    assert f"http://127.0.0.1:{other.port}/x" in caught.value.message
    assert "secret" not in caught.value.message


def test_a_netrc_and_proxies_of_the_environment_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login canary password canary\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with answering(reply()) as proxy, answering(reply()) as server:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.port}")
        with Transport(NetworkSettings()) as transport:
            transport.exchange(server.url, GET, Caller())
        assert proxy.connections == 0
    assert "authorization" not in server.heads()[0].lower()


def test_another_host_is_reached_through_its_proxy() -> None:
    with answering(reply(200, b"via")) as proxy:
        settings = NetworkSettings(environ={"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}"})
        with Transport(settings) as transport:
            assert transport.exchange("http://queue.example.test/q", GET, CALLER).body == b"via"
    assert proxy.heads()[0].startswith("GET http://queue.example.test/q?_attrs_=true HTTP/1.1\r\n")
    assert "Host: queue.example.test\r\n" in proxy.heads()[0]
    assert "proxy-authorization" not in proxy.heads()[0].lower()


def test_a_proxy_gets_the_name_and_password_of_its_address() -> None:
    with answering(reply(200, b"via")) as proxy:
        settings = NetworkSettings(
            environ={"HTTP_PROXY": f"http://us%40er:pass%C3%BC@127.0.0.1:{proxy.port}"}
        )
        with Transport(settings) as transport:
            assert transport.exchange("http://queue.example.test/q", GET, CALLER).body == b"via"
    given = base64.b64encode("us@er:passü".encode()).decode()
    assert f"Proxy-Authorization: Basic {given}\r\n" in proxy.heads()[0]


def test_tls_goes_through_a_proxy(certificate: Path) -> None:
    """The proxy is asked for a tunnel, and sees neither the request nor its headers."""
    with secured(certificate, tunnelled=True) as proxy:
        settings = NetworkSettings(insecure=True, environ={"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"})
        with Transport(settings) as transport:
            assert transport.exchange("https://queue.example.test/q", GET, CALLER).body == b"safe"
    tunnel, request = proxy.heads()
    assert tunnel.startswith("CONNECT queue.example.test:443 HTTP/1.1\r\n")
    assert TOKEN not in tunnel
    assert request.startswith("GET /q?_attrs_=true HTTP/1.1\r\n")


def test_a_proxy_is_told_an_ipv6_address_in_brackets() -> None:
    with answering(reply(200, b"via")) as proxy:
        settings = NetworkSettings(environ={"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}"})
        with Transport(settings) as transport:
            transport.exchange("http://[2001:db8::1]:8080/q", GET, CALLER)
            transport.exchange("http://[2001:db8::1]/q", GET, CALLER)
    with_port, without = proxy.heads()
    assert with_port.startswith("GET http://[2001:db8::1]:8080/q?_attrs_=true HTTP/1.1\r\n")
    assert "Host: [2001:db8::1]:8080\r\n" in with_port
    assert without.startswith("GET http://[2001:db8::1]/q?_attrs_=true HTTP/1.1\r\n")
    assert "Host: [2001:db8::1]\r\n" in without


def test_tls_with_an_ipv6_address_goes_through_a_proxy(certificate: Path) -> None:
    with secured(certificate, tunnelled=True) as proxy:
        settings = NetworkSettings(
            cacert=str(certificate), environ={"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}
        )
        with Transport(settings) as transport:
            assert transport.exchange("https://[2001:db8::1]/q", GET, CALLER).body == b"safe"
    tunnel, request = proxy.heads()
    assert tunnel.startswith("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n")
    assert "Host: [2001:db8::1]\r\n" in request


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_says_so_once(scheme: str) -> None:
    with answering(reply(407)) as proxy:
        settings = NetworkSettings(environ={"ALL_PROXY": f"http://u:secret@127.0.0.1:{proxy.port}"})
        with Transport(settings) as transport, pytest.raises(Unconnected) as caught:
            transport.exchange(f"{scheme}://queue.example.test/q", GET, CALLER)
    assert len(proxy.requests) == 1
    assert caught.value.message.startswith(
        f"the proxy http://127.0.0.1:{proxy.port} on the way to {scheme}://queue.example.test/q refused: 407 "
    )
    assert caught.value.hint == "HTTP_PROXY=http://USER:PASSWORD@HOST:PORT names a user"


def test_an_answer_of_a_proxy_does_not_show_its_password() -> None:
    told: list[str] = []

    def quote(_: Server, peer: Peer) -> None:
        head, _ = peer.read_request()
        peer.answer(403, f"geheim9 {head}".encode())

    with Server(quote) as proxy:
        settings = NetworkSettings(
            environ={"HTTP_PROXY": f"http://user:geheim9@127.0.0.1:{proxy.port}"},
            trace=lambda _, line: told.append(line),
        )
        with Transport(settings) as transport, pytest.raises(errors.Forbidden) as caught:
            transport.exchange("http://queue.example.test/q", GET, CALLER)
    given = base64.b64encode(b"user:geheim9").decode()
    assert "Proxy-Authorization: Basic ****" in caught.value.message
    for text in [caught.value.message, *told]:
        assert given not in text
        assert "geheim9" not in text


@pytest.mark.parametrize("name", ["proxy\u00fc.invalid", "no-such-proxy.invalid"])
def test_the_name_of_a_proxy_that_does_not_resolve_is_said(name: str) -> None:
    settings = NetworkSettings(environ={"HTTP_PROXY": f"http://u:secret@{name}:3128"}, connect_timeout_s=0.1)
    with Transport(settings) as transport, pytest.raises(Unconnected) as caught:
        transport.exchange("http://queue.example.test/q", GET, CALLER)
    assert caught.value.message == (
        f"the name {name} of the proxy http://{name}:3128 on the way to http://queue.example.test/q "
        "does not resolve"
    )


def test_an_answer_that_is_no_http_differs_from_a_lost_connection(transport: Transport) -> None:
    with answering(lambda peer: peer.send(b"the door is closed, disconnected\r\n\r\n")) as server:
        with pytest.raises(errors.NotAQueueService, match="does not answer in HTTP: "):
            transport.exchange(server.url, GET, CALLER)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 409, 410, 413, 422])
@pytest.mark.parametrize("retry", Retry)
def test_a_refusal_is_final(transport: Transport, status: int, retry: Retry) -> None:
    with answering(reply(status, b"why")) as server:
        with pytest.raises(
            errors.error_class(status), match=rf"^the server answered {status}: why$"
        ) as caught:
            transport.exchange(server.url, GET, CALLER, retry=retry)
        assert (caught.value.status, len(server.requests)) == (status, 1)


@pytest.mark.parametrize("status", [429, 450, 500, 502, 503, 504])
def test_a_read_is_tried_again(transport: Transport, status: int) -> None:
    with answering(reply(status), reply(status), reply(200, b"at last")) as server:
        assert transport.exchange(server.url, GET, CALLER).body == b"at last"
    assert len(server.requests) == 3


def test_a_read_is_tried_again_when_the_connection_broke(transport: Transport) -> None:
    with answering(broken, reply(200, b"at last")) as server:
        assert transport.exchange(server.url, GET, CALLER).body == b"at last"
    assert len(server.requests) == 2


def test_a_put_is_tried_again_only_when_certainly_not_stored(transport: Transport) -> None:
    with answering(reply(503, X_Easq_Stored="no"), reply(429), reply(200, b"1")) as server:
        assert transport.exchange(server.url, PUT, CALLER, retry=Retry.WRITE).body == b"1"
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_put_that_may_be_stored_is_not_sent_again(transport: Transport, status: int) -> None:
    with answering(reply(status)) as server:
        with pytest.raises(errors.ServerError):
            transport.exchange(server.url, PUT, CALLER, retry=Retry.WRITE)
    assert len(server.requests) == 1


def test_a_put_is_not_sent_again_after_the_connection_broke(transport: Transport) -> None:
    with answering(broken) as server:
        with pytest.raises(errors.Unreachable, match="lost before the answer was complete"):
            transport.exchange(server.url, PUT, CALLER, retry=Retry.WRITE)
    assert len(server.requests) == 1


@pytest.mark.parametrize("retry", [Retry.READ, Retry.WRITE])
def test_a_full_queue_is_asked_three_times(transport: Transport, retry: Retry) -> None:
    with answering(reply(429, b"full")) as server:
        with pytest.raises(errors.QueueFull, match=r"^the server answered 429: full$"):
            transport.exchange(server.url, PUT, CALLER, retry=retry)
    assert len(server.requests) == 3


def test_without_retries_a_request_is_sent_once(transport: Transport) -> None:
    with answering(reply(503, X_Easq_Stored="no")) as server:
        with pytest.raises(errors.Unavailable):
            transport.exchange(server.url, GET, CALLER, retry=Retry.NEVER)
    assert len(server.requests) == 1


@pytest.mark.parametrize("retry", [Retry.READ, Retry.WRITE])
def test_a_refused_connection_is_tried_until_the_server_is_up(transport: Transport, retry: Retry) -> None:
    server = answering(reply(200, b"up"))
    server.port = free_port()
    found: list[bytes] = []
    asking = threading.Thread(
        target=lambda: found.append(
            transport.exchange(server.url, PUT, CALLER, deadline_s=20, retry=retry).body
        )
    )
    asking.start()
    with server:
        asking.join()
    assert found == [b"up"]
    assert len(server.requests) == 1


def test_a_refused_connection_is_named_with_its_address() -> None:
    port = free_port()
    with Transport(NetworkSettings(connect_timeout_s=1.0, environ={})) as transport:
        with pytest.raises(Unconnected) as caught:
            transport.exchange(f"http://127.0.0.1:{port}/q", PUT, CALLER)
    assert caught.value.message == f"connection to http://127.0.0.1:{port}/q refused"
    assert caught.value.hint


def test_a_name_that_does_not_resolve_is_not_tried_again(transport: Transport) -> None:
    with pytest.raises(errors.Unreachable, match=r"the name no-such-host\.invalid of .* does not resolve"):
        transport.exchange("http://no-such-host.invalid/q", GET, CALLER)


def drip(data: bytes) -> Callable[[Peer], None]:
    """Sends `data` a byte at a time, and then goes on with blanks, until the server stops."""

    def send(peer: Peer) -> None:
        for at in range(10_000):
            if peer.stop.wait(0.05):
                return
            peer.send(data[at : at + 1] or b" ")

    return send


@pytest.mark.parametrize(
    "dripped",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 5000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["nothing sensible", "headers", "body", "endless body"],
)
def test_a_dripped_answer_ends_by_the_deadline(transport: Transport, dripped: bytes) -> None:
    began = time.monotonic()
    with answering(drip(dripped)) as server:
        with pytest.raises(errors.EasqError) as caught:
            transport.exchange(server.url, GET, CALLER, deadline_s=1.0)
    assert caught.value.exit in (errors.Exit.UNREACHABLE, errors.Exit.SERVER)
    assert time.monotonic() - began < 8


def silent(peer: Peer) -> None:
    peer.stop.wait()


def test_silence_ends_by_the_deadline_and_says_so(transport: Transport) -> None:
    with answering(silent) as server:
        with pytest.raises(
            errors.Unreachable, match=r"^no complete answer from http://127\.0\.0\.1:\d+/api/predict/q within"
        ):
            transport.exchange(server.url, PUT, CALLER, deadline_s=0.5, retry=Retry.WRITE)
        server.stop.set()
    assert len(server.requests) == 1


def test_a_server_that_does_not_read_ends_by_the_deadline(transport: Transport) -> None:
    def never_read(server: Server, _: Peer) -> None:
        server.stop.wait()

    big = Request("POST", (), {}, bytes(64 * 1024 * 1024))
    with Server(never_read) as server:
        with pytest.raises(errors.Unreachable):
            transport.exchange(server.url, big, CALLER, deadline_s=1.0, retry=Retry.WRITE)
        server.stop.set()


def test_an_answer_above_the_bound_is_given_up() -> None:
    def endless(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        peer.flood()

    with Transport(NetworkSettings(max_answer_bytes=1_000_000, environ={})) as transport:
        with answering(endless) as server:
            with pytest.raises(errors.ServerError, match="above the limit of 1000000 bytes"):
                transport.exchange(server.url, GET, CALLER)
        with answering(reply(200, bytes(1_000_000))) as server:
            assert len(transport.exchange(server.url, GET, CALLER).body) == 1_000_000


def test_headers_above_the_bound_are_refused(transport: Transport) -> None:
    with answering(reply(200, b"", X_Big="x" * 70_000)) as server:
        with pytest.raises(errors.NotAQueueService, match="headers"):
            transport.exchange(server.url, GET, CALLER)


def test_compressed_bytes_are_not_expanded(transport: Transport) -> None:
    with answering(reply(200, b"\x1f\x8b\x08 not gzip", Content_Encoding="gzip")) as server:
        assert transport.exchange(server.url, GET, CALLER).body == b"\x1f\x8b\x08 not gzip"


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"HTTP/9 hello\r\n\r\n"]
)
def test_an_answer_that_is_no_http_is_named(transport: Transport, said: bytes) -> None:
    def speak(_: Server, peer: Peer) -> None:
        peer.read_request()
        peer.send(said)

    with Server(speak) as server:
        with pytest.raises(errors.EasqError) as caught:
            transport.exchange(server.url, GET, CALLER, deadline_s=0.5)
    assert type(caught.value) in (errors.NotAQueueService, errors.Unreachable)
    assert server.url in caught.value.message


def test_half_an_answer_is_a_lost_connection(transport: Transport) -> None:
    def half(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        peer.socket.close()

    with answering(half) as server:
        with pytest.raises(errors.Unreachable, match="lost before the answer was complete"):
            transport.exchange(server.url, PUT, CALLER, retry=Retry.WRITE)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (httpx.ConnectTimeout("x"), Unconnected),
        (httpx.ConnectError("x"), Unconnected),
        (httpx.PoolTimeout("x"), Unconnected),
        (httpx.ProxyError("x"), Unconnected),
        (httpx.ReadTimeout("x"), Unanswered),
        (httpx.WriteTimeout("x"), Unanswered),
        (httpx.ReadError("x"), errors.Unreachable),
        (httpx.WriteError("x"), errors.Unreachable),
        (httpx.RemoteProtocolError("illegal status line"), errors.NotAQueueService),
        (httpx.LocalProtocolError("x"), errors.UsageError),
        (httpx.UnsupportedProtocol("x"), errors.ConfigError),
        (UnicodeError("label too long"), errors.ConfigError),
    ],
)
def test_every_failure_of_httpx_is_one_of_ours(raised: Exception, kind: type[errors.EasqError]) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise raised

    with Transport(QUICK, http=httpx.MockTransport(fail)) as transport:
        with pytest.raises(kind) as caught:
            transport.exchange("http://h/q", PUT, CALLER, retry=Retry.NEVER)
    assert type(caught.value) is kind
    assert caught.value.__cause__ is raised
    assert "http://h/q" in caught.value.message


def test_a_trace_shows_all_but_the_secrets() -> None:
    lines: list[tuple[int, str]] = []
    settings = NetworkSettings(
        headers={"X-Api-Key": "key-canary-1234"},
        trace=lambda level, line: lines.append((level, line)),
        environ={},
    )
    with answering(reply(401, f"bad token {TOKEN}".encode(), Set_Cookie="cookie-canary-1")) as server:
        with Transport(settings) as transport, pytest.raises(errors.AuthFailed):
            transport.exchange(server.url, to_request(Put(b"body", {"token": TOKEN})), CALLER)
    text = "\n".join(line for _, line in lines)
    assert TOKEN not in text
    assert "key-canary-1234" not in text
    assert "cookie-canary-1" not in text
    assert lines[0] == (1, f"> POST {server.url}?token=****")
    assert any(level == 1 and line.startswith("< 401, ") for level, line in lines)
    assert (3, "> body") in lines
    assert (2, "> Authorization: ****") in lines


def test_an_error_does_not_quote_the_token(transport: Transport) -> None:
    body = f"bad token: {TOKEN}".encode() + b"x" * 600
    with answering(reply(401, body)) as server:
        with pytest.raises(errors.AuthFailed, match=r"^bad token: \*\*\*\*xxx"):
            transport.exchange(server.url, GET, CALLER)


def test_a_trace_shows_failures_too() -> None:
    lines: list[str] = []
    settings = NetworkSettings(connect_timeout_s=0.1, trace=lambda _, line: lines.append(line), environ={})
    with Transport(settings) as transport, pytest.raises(errors.Unreachable):
        transport.exchange(f"http://127.0.0.1:{free_port()}/q", GET, CALLER)
    assert any("refused in" in line for line in lines)


def test_settings_do_not_print_secrets() -> None:
    settings = NetworkSettings(headers={"X-Api-Key": "canary"}, environ={"HTTP_PROXY": "http://u:canary@p"})
    assert "canary" not in repr(settings)


def test_an_endless_answer_is_read_as_it_comes_and_can_be_cut(transport: Transport) -> None:
    def endless(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        peer.stop.wait()

    with answering(endless) as server:
        stream = transport.open(server.url, GET, CALLER)
        assert stream.read() == b"first"
        ended: list[object] = []

        def read_on() -> None:
            try:
                ended.append(stream.read())
            except errors.Unreachable as error:
                ended.append(error)

        reading = threading.Thread(target=read_on)
        reading.start()
        stream.abort()
        assert eventually(lambda: bool(ended))
        reading.join()
        stream.close()
        server.stop.set()


def test_an_endless_answer_that_is_refused_is_an_error(transport: Transport) -> None:
    with answering(reply(409, b"taken")) as server:
        with pytest.raises(errors.AnotherWatcher, match=r"^the server answered 409: taken$"):
            transport.open(server.url, GET, CALLER)


def test_an_untrusted_certificate_is_refused_with_the_reason(certificate: Path) -> None:
    with secured(certificate) as server, Transport(QUICK) as transport:
        with pytest.raises(errors.Unreachable, match=r"^TLS with https://.* failed: self.signed certificate"):
            transport.exchange(server.url.replace("http", "https", 1), GET, CALLER)
    assert server.requests == []


def test_a_given_ca_or_insecure_accepts_the_certificate(certificate: Path) -> None:
    for settings in (
        NetworkSettings(cacert=str(certificate), environ={}),
        NetworkSettings(insecure=True, environ={}),
    ):
        with secured(certificate) as server, Transport(settings) as transport:
            assert transport.exchange(server.url.replace("http", "https", 1), GET, CALLER).body == b"safe"


def test_a_wrong_name_in_the_certificate_is_refused(certificate: Path) -> None:
    settings = NetworkSettings(cacert=str(certificate), environ={})
    with secured(certificate) as server, Transport(settings) as transport:
        with pytest.raises(errors.Unreachable, match=r"^TLS with https://localhost.* failed: .*localhost"):
            transport.exchange(f"https://localhost:{server.port}/q", GET, CALLER)


def test_https_to_a_plain_port_is_said_to_be(transport: Transport) -> None:
    def speak_plainly(_: Server, peer: Peer) -> None:
        peer.answer(400, b"The plain HTTP request was sent to HTTPS port")

    with Server(speak_plainly) as server:
        with pytest.raises(errors.Unreachable, match=r"^TLS with https://"):
            transport.exchange(server.url.replace("http", "https", 1), GET, CALLER, deadline_s=2)
        server.stop.set()


def test_an_invalid_ca_file_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing\n")
    for path in (empty, tmp_path / "missing.pem"):
        with Transport(NetworkSettings(cacert=str(path), environ={})) as transport:
            with pytest.raises(errors.ConfigError, match="CA file"):
                transport.exchange("https://127.0.0.1:1/q", GET, CALLER)
