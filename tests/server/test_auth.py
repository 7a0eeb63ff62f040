"""Access rules: token, signature, Host, Origin, Sec-Fetch-Site, and names of consumers."""

from __future__ import annotations

import pytest

from easq.errors import UsageError
from easq.protocol.signatures import sign
from easq.server.server import Server, ServerSettings
from tests.server.conftest import Open
from tests.support.http import Connection, Stream
from tests.support.local import Local
from tests.support.websocket import Refused, watch

BASE = "/api/predict"


# -- token -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["dG9rZW4=", "Bearer dG9rZW4=", "bearer dG9rZW4=", "  dG9rZW4="])
def test_the_token_is_taken_raw_or_as_bearer(start: Open, given: str) -> None:
    service = start(token="dG9rZW4=")
    assert service.stream(headers=[("Authorization", given)]).put() == 1


@pytest.mark.parametrize(
    "given",
    [None, "", "wrong", "Bearer", "Bearer wrong", "dG9rZW4", "DG9RZW4=", "dG9rZW4= ", "Basic dG9rZW4="],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_without_the_token_everything_is_401(start: Open, given: str | None, method: str) -> None:
    """A request without the token changes nothing. Unknown queues answer 401 too, so names cannot be guessed."""
    service = start(token="dG9rZW4=x")
    headers = [] if given is None else [("Authorization", given)]
    mine = service.stream(headers=[("Authorization", "dG9rZW4=x")])
    mine.put()
    for path in (f"{BASE}/q", f"{BASE}/q/sink", f"{BASE}/unknown", "/", "/sink"):
        body = b"" if method in {"POST", "PUT"} else None
        answer = service.stream(path, headers).ask(method, (), body, _indexes_=1)
        assert answer.status == 401
        assert answer.text in {"a token is needed", "the token is wrong"}
    assert mine.length() == 1


def signed(service: Local, path: str, *, token: str = "t", body: bytes = b"x") -> Stream:
    """Sign each request on a path as a POST of `body`."""
    headers = sign(
        token, body, content_type="application/octet-stream", date="Mon, 02 Jan 2006 15:04:05 GMT", path=path
    )
    return service.stream(path, list(headers.items()))


@pytest.mark.parametrize("path", [f"{BASE}/q", f"{BASE}/q/sink", f"{BASE}/q/v1/x", "/", "/v1/x"])
def test_a_signed_put_is_accepted(start: Open, path: str) -> None:
    """The SDKs' predict clients sign their requests, also when they address a queue. They do not sign the query."""
    service = start(token="t")
    assert signed(service, path).ask("POST", (), b"x", k="v").status == 200
    answer = signed(service, path, token="wrong").ask("POST", (), b"x")
    assert (answer.status, answer.text) == (401, "the signature is wrong")


@pytest.mark.parametrize(
    ("method", "query"),
    [
        ("GET", {}),
        ("GET", {"_watch_": "true"}),
        ("PUT", {"_indexes_": 1}),
        ("DELETE", {"_indexes_": 1}),
        ("DELETE", {"_index_": 9, "_trunc_": "true"}),
        ("POST", {"_eos_": "true", "_force_": "true"}),
    ],
)
def test_a_signature_is_accepted_only_for_a_put(start: Open, method: str, query: dict[str, object]) -> None:
    """A signature does not cover the operation: somebody who recorded one could empty the queue."""
    service = start(token="t")
    assert signed(service, f"{BASE}/q").put(b"x") == 1
    answer = signed(service, f"{BASE}/q").ask(
        method, (), b"x" if method in {"POST", "PUT"} else None, **query
    )
    assert (answer.status, answer.text) == (401, "only a put can be signed: send the token instead")
    mine = service.stream(headers=[("Authorization", "t")])
    assert (mine.length(), mine.attributes()["meta.state"]) == (1, "Normal")


def test_a_signed_request_for_an_unknown_name_is_404(start: Open) -> None:
    """Only a valid signature gets the 404. Without one the answer is 401, so names cannot be guessed."""
    service = start(token="t")
    assert signed(service, f"{BASE}/unknown").ask("POST", (), b"x").status == 404
    assert signed(service, f"{BASE}/unknown", token="wrong").ask("POST", (), b"x").status == 401


def test_a_watch_without_the_token_is_refused_before_the_upgrade(start: Open) -> None:
    service = start(token="t")
    with pytest.raises(Refused) as refused:
        watch(service.queue)
    assert refused.value.answer.status == 401


def test_a_service_without_a_token_accepts_any_token(start: Open) -> None:
    """The SDKs always send the header, possibly empty."""
    service = start()
    for given in ("", "anything", "Bearer x", "EAS abc="):
        assert service.stream(headers=[("Authorization", given)]).put() > 0


def test_a_service_for_other_machines_needs_a_token() -> None:
    """The exception is `allow_open`."""
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(UsageError, match="no token"):
            Server(ServerSettings(host=host))
        Server(ServerSettings(host=host, token="t"))
        Server(ServerSettings(host=host, allow_open=True))


# -- Host --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:{port}",
        "localhost",
        "localhost:{port}",
        "LOCALHOST:1",
        "localhost.",
        "[::1]",
        "[::1]:1",
    ],
)
def test_loopback_names_are_served(start: Open, host: str) -> None:
    service = start()
    name = host.format(port=service.port)
    assert service.stream(headers=[("Host", name)]).put() == 1


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:{port}",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "evil.test:80@127.0.0.1",
        "127.0.0.1, evil.test",
        "192.0.2.1",
        "[::2]",
        "",
        "[127.0.0.1]evil.test",
        "[127.0.0.1]",
        "[::1]evil.test",
        "[::1]evil.test:{port}",
        "[localhost]",
        "localhost]",
        "[127.0.0.1",
        "127.0.0.1]",
        "127.0.0.1:evil",
        "127.0.0.1:1:2",
        "x@127.0.0.1",
        "127.0.0.1/",
        "::1",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_host_is_421_before_anything_else(start: Open, host: str, method: str) -> None:
    """A page whose name was rebound to this address (DNS rebinding) sends its own Host. It can neither read nor put."""
    service = start(token="t")
    headers = [("Host", host.format(port=service.port)), ("Authorization", "t")]
    answer = service.stream(headers=headers).ask(method, (), b"x" if method == "POST" else None)
    assert answer.status == 421
    assert "Access-Control-Allow-Origin" not in dict(answer.headers)
    assert service.stream(headers=headers[1:]).length() == 0


def test_no_host_and_two_hosts_are_refused(start: Open) -> None:
    service = start()
    for hosts in ("", "Host: 127.0.0.1\r\nHost: evil.test\r\n", "Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n"):
        with Connection(service.port) as connection:
            connection.send(f"POST {BASE}/q HTTP/1.1\r\n{hosts}Content-Length: 1\r\n\r\nx".encode())
            assert connection.read_head()[0] in {400, 421}
    assert service.queue.length() == 0


def test_a_target_that_names_another_host_is_421(start: Open) -> None:
    """A proxy uses the authority of the target instead of Host."""
    service = start()
    for name, status in (("evil.test", 421), ("x@127.0.0.1", 421), ("192.0.2.1", 421), ("LOCALHOST:1", 200)):
        target = f"HTTP://{name}{BASE}/q"
        assert service.stream(target, [("Host", "127.0.0.1")]).ask("POST", (), b"x").status == status
    assert service.queue.length() == 1


def test_allowed_hosts_are_served(start: Open) -> None:
    service = start(allowed_hosts=("queue.example", "Other.Example"))
    for host in ("queue.example", "queue.example:3030", "QUEUE.EXAMPLE.", "other.example"):
        assert service.stream(headers=[("Host", host)]).put() > 0
    assert service.stream(headers=[("Host", "evil.test")]).ask("POST", (), b"x").status == 421


def test_any_host_is_served_where_that_is_asked_for(start: Open) -> None:
    service = start(allowed_hosts=("*",))
    assert service.stream(headers=[("Host", "anything.test:1")]).put() == 1


# -- Origin and Sec-Fetch-Site -----------------------------------------------------------------------------------------


def _origins(service: Local) -> list[str]:
    """Return the Origin of two SDKs: scheme and host from Python, the whole address from Go."""
    return [f"http://127.0.0.1:{service.port}", f"http://127.0.0.1:{service.port}{BASE}/q"]


def test_the_sdks_origins_pass(start: Open) -> None:
    service = start()
    for origin in _origins(service):
        with watch(service.queue, [("Origin", origin)]):
            pass
        assert service.queue.ask("POST", [("Origin", origin)], b"x").status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.test",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        "http://localhost:{port}",
        "http://127.0.0.1:{port}.evil.test",
        "http://evil.test/http://127.0.0.1:{port}",
        "http://127.0.0.1:{port}@evil.test",
        "null",
        "",
        "file://",
        "chrome-extension://abc",
        "http://[broken",
        "http://[127.0.0.1]:{port}",
        "http://[127.0.0.1]evil:{port}",
        "http://x@127.0.0.1:{port}",
        "http://127.0.0.1:99999999",
    ],
)
def test_a_foreign_origin_may_neither_change_anything_nor_watch(start: Open, origin: str) -> None:
    """A web page of another site cannot put, get, commit or open a WebSocket."""
    service = start()
    headers = [("Origin", origin.format(port=service.port))]
    service.queue.put()
    for method, body in (("GET", None), ("POST", b"x"), ("PUT", b""), ("DELETE", None)):
        answer = service.queue.ask(method, headers, body, _indexes_=1)
        assert answer.status == 403
        assert answer.text == "this Origin is not served here"
    with pytest.raises(Refused) as refused:
        watch(service.queue, headers)
    assert refused.value.answer.status == 403
    assert service.queue.length() == 1


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 403), ("CROSS-SITE", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)],
)
def test_a_form_of_another_site_puts_nothing(start: Open, site: str, status: int) -> None:
    """A form of text/plain needs no preflight, but browsers send Sec-Fetch-Site."""
    headers = [("Sec-Fetch-Site", site), ("Content-Type", "text/plain")]
    queue = start().queue
    assert queue.ask("POST", headers, b"x").status == status
    assert queue.length() == (status == 200)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    "query",
    ["_auto_delete_=true", "", "_raw_=true"],
)
def test_a_deleting_get_of_another_site_deletes_nothing(start: Open, query: str, site: str) -> None:
    """Otherwise `<img src=...>` on any page could empty the queue.

    A browser calls another port of this machine same-site.
    """
    queue = start().queue
    queue.put()
    answer = queue.ask("GET", [("Sec-Fetch-Site", site)], path=f"?{query}")
    assert answer.status == 403
    assert queue.length() == 1


def test_no_cross_origin_headers_are_ever_sent(start: Open) -> None:
    service = start()
    preflight = [("Origin", "http://evil.test"), ("Access-Control-Request-Method", "PUT")]
    for answer in (service.queue.ask("OPTIONS", preflight), service.queue.ask("GET", preflight)):
        assert not [name for name, _ in answer.headers if name.lower().startswith("access-control")]


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [("X-EAS-QueueService-Uid", "u"), ("X-EAS-QueueService-Gid", "g")],
        [("X-EAS-QueueService-Redis-Uid", "u"), ("X-EAS-QueueService-Redis-Gid", "g")],
        [("x-eas-queueservice-uid", "u"), ("X-Eas-Queueservice-Redis-Gid", "g")],
    ],
)
def test_both_generations_of_identity_headers_are_read(start: Open, headers: list[tuple[str, str]]) -> None:
    queue = start().queue
    with watch(queue, headers):
        assert queue.attributes()["consumers.list.[0]"].startswith("Id: g.u, ")


def test_without_identity_one_is_the_default_user(start: Open) -> None:
    queue = start().queue
    with watch(queue):
        assert queue.attributes()["consumers.list.[0]"].startswith("Id: default_group.default_user, ")


@pytest.mark.parametrize("name", ["a b", "a/b", "../x", "ü", "x" * 129, "a\tb", "a'b", "*"])
def test_a_name_that_could_mean_more_is_400(start: Open, name: str) -> None:
    queue = start().queue
    for header in ("X-EAS-QueueService-Uid", "X-EAS-QueueService-Gid"):
        assert queue.ask("GET", [(header, name)], _attrs_="true").status == 400


def test_a_name_of_full_length_is_taken(start: Open) -> None:
    stream: Stream = start().queue.as_consumer("u" * 128, "g" * 128)
    assert stream.put() == 1
