"""No token, signature or body reaches any host except the chosen one: real sockets, a canary value, and every route.

Each host that must not be called is a server that records connections. No secret is printed or in the environment of a
command.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from easq.cli.app import App
from easq.cli.demo import Tour
from easq.net.url import proxy_for
from tests.cli.conftest import Done, Easq
from tests.client.servers import (
    Behaviour,
    Peer,
    Server,
    Speaking,
    behaving,
    echo,
    host_endpoints,
    listing,
    reply,
)
from tests.conftest import Serve
from tests.support.waiting import eventually

TOKEN = "canary-token-0123456789"
BODY = "canary-body-0123456789"
REDIRECTS = (301, 302, 303, 307, 308)
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
#: what no look-up can make us call: cloud metadata, another host behind a name or a user, more than an address
EVIL = (
    "169.254.169.254",
    "evil:80@x",
    "a/b?c",
    "evil.example",
    "0.0.0.0",
    "100.100.100.200",
    "[::1]",
    "127.1",
)


@pytest.fixture
def other() -> Iterator[Server]:
    """A server that must not be called."""
    with behaving(Behaviour(reply(200, b"stolen"))) as server:
        yield server
        assert server.connections == 0


@pytest.fixture
def instance() -> Iterator[Server]:
    """An instance that answers `yes`."""
    with behaving(Behaviour(reply(200, b"yes"))) as server:
        yield server


def run(easq: Easq, *args: str, env: dict[str, str] | None = None) -> Done:
    """Run one predict of the canary's body with its token; neither is in the output."""
    done = easq(*("predict", "-d", BODY, "--timeout", "2s", *args), env={"EASQ_TOKEN": TOKEN, **(env or {})})
    assert TOKEN not in done.text + done.err
    return done


def direct(endpoint: Server, *args: str) -> list[str]:
    return ["--via", "direct", "--endpoint", at(endpoint), "--service", "svc", "--refresh", "1ms", *args]


def modelarts(endpoint: Server) -> list[str]:
    return ["--via", "modelarts", "--endpoint", at(endpoint), "--service", "s1", "--project", "p1"]


def at(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_redirect_leads_nowhere_on_any_way(easq: Easq, other: Server, status: int) -> None:
    leading = Behaviour(reply(status, b"", Location=f"http://127.0.0.1:{other.port}/x"))
    to_websocket = Behaviour(reply(status, b"", Location=f"ws://127.0.0.1:{other.port}/x"))
    with behaving(leading) as moved, behaving(to_websocket) as moved_websocket:
        with (
            behaving(Behaviour(listing(moved))) as naming,
            behaving(Behaviour(host_endpoints(moved))) as managing,
        ):
            ways = [
                ["--via", "gateway", "--url", f"{at(moved)}/api/predict/svc"],
                ["--via", "gateway", "--url", f"{at(moved)}/api/predict/svc", "--sign", "hmac"],
                ["--via", "queue", "--url", f"{at(moved)}/api/predict/q"],
                direct(moved),
                direct(naming),
                direct(naming, "--sign", "token"),
                modelarts(moved),
                modelarts(managing),
                ["--via", "websocket", "--url", f"ws://127.0.0.1:{moved.port}/x"],
                ["--via", "websocket", "--url", f"ws://127.0.0.1:{moved_websocket.port}/x"],
            ]
            for way in ways:
                done = run(easq, *way)
                assert (done.status, done.out) == (5, b""), way
        assert len(moved.requests) >= len(ways) - 1


@pytest.mark.parametrize("variable", VARIABLES)
def test_what_is_on_this_machine_is_never_proxied(
    easq: Easq, other: Server, instance: Server, variable: str
) -> None:
    env = {variable: f"http://user:secret@127.0.0.1:{other.port}"}
    naming, managing = Behaviour(listing(instance)), Behaviour(host_endpoints(instance))
    with behaving(naming) as discovery, behaving(managing) as management, Speaking(echo) as speaking:
        for way in (
            ["--via", "gateway", "--url", f"{at(instance)}/api/predict/svc"],
            direct(discovery),
            modelarts(management),
        ):
            done = run(easq, *way, env=env)
            assert (done.status, done.out, done.err) == (0, b"yes", ""), way
        done = run(easq, "--via", "websocket", "--url", speaking.url, env=env)
        assert (done.status, done.out) == (0, BODY[::-1].encode())


def _own_address() -> str:
    """Return the address from which this machine calls other machines; loopback if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("198.51.100.7", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        host: str = route.getsockname()[0]
        return host


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    """An instance under an address of this machine that is not loopback."""
    host = _own_address()
    if host.startswith("127."):
        # loopback is never proxied anyway: what is shown here can only be seen on another address
        pytest.skip("this machine has no address but loopback")
    server = behaving(Behaviour(reply(200, b"yes")))
    server.host = host
    with server:
        yield server


@pytest.mark.parametrize("via", ["direct", "modelarts"])
def test_instances_elsewhere_are_never_proxied_though_discovery_is(
    easq: Easq, elsewhere: Server, via: str
) -> None:
    """The proxy sees the look-up, as it must, and no request to an instance."""
    entry = {"ip": elsewhere.host, "port": elsewhere.port}
    answer = {"host_endpoints": [entry]} if via == "modelarts" else {"endpoints": {"items": [entry]}}
    with behaving(Behaviour(reply(200, json.dumps(answer).encode()))) as proxy:
        env = {"HTTP_PROXY": at(proxy), "ALL_PROXY": at(proxy)}
        args = ["--via", via, "--endpoint", "http://discovery.example.test", "--service", "svc"]
        args += ["--project", "p1"] if via == "modelarts" else []
        done = run(easq, *args, env=env)
    assert (done.status, done.out) == (0, b"yes")
    (look_up,) = proxy.heads()
    assert look_up.startswith("GET http://discovery.example.test/")
    assert (f"X-Auth-Token: {TOKEN}" in look_up) == (via == "modelarts")
    assert "authorization" not in look_up.lower()
    (called,) = elsewhere.requests
    assert called[1] == BODY.encode()
    assert TOKEN not in called[0]
    assert proxy_for(f"http://{elsewhere.host}/", env) == at(proxy)  # it would have been, as a gateway


def test_no_answer_of_discovery_names_a_proxy_or_a_name(easq: Easq, other: Server) -> None:
    """Also when discovery names the proxy of this run as an instance: the instance is called directly."""
    for ip in EVIL:
        items = {"endpoints": {"items": [{"ip": ip, "port": other.port, "weight": 1}]}}
        entries = {"host_endpoints": [{"schema": "http", "ip": ip, "port": other.port}]}
        proxied = {"HTTP_PROXY": at(other), "ALL_PROXY": at(other)}
        with behaving(Behaviour(reply(200, json.dumps(items).encode()))) as discovery:
            done = run(easq, *direct(discovery, "--sign", "token"), env=proxied)
            assert (done.status, done.out) == (6, b""), ip
        with behaving(Behaviour(reply(200, json.dumps(entries).encode()))) as management:
            done = run(easq, *modelarts(management), env=proxied)
            assert (done.status, done.out) == (6, b""), ip
        assert "knows no instance of" in done.err


@pytest.mark.parametrize("scheme", ["ftp", "http://evil/?", "file", "ws", "javascript"])
def test_no_schema_of_modelarts_leads_elsewhere(easq: Easq, other: Server, scheme: str) -> None:
    entries = [{"schema": scheme, "ip": "127.0.0.1", "port": other.port}]
    with behaving(Behaviour(reply(200, json.dumps(entries).encode()))) as management:
        assert run(easq, *modelarts(management)).status == 6


def test_a_gateway_elsewhere_goes_through_the_proxy_and_only_there(easq: Easq, other: Server) -> None:
    with behaving(Behaviour(reply(200, b"by proxy"))) as proxy:
        env = {"HTTP_PROXY": at(proxy), "HTTPS_PROXY": at(other), "NO_PROXY": "other.example.test"}
        url = "http://gateway.example.test/api/predict/svc"
        done = run(easq, "--via", "gateway", "--url", url, "--sign", "hmac", env=env)
    assert (done.status, done.out) == (0, b"by proxy")
    (head,) = proxy.heads()
    assert head.startswith(f"POST {url} HTTP/1.1\r\n")
    assert TOKEN not in head


def test_a_websocket_elsewhere_goes_through_a_tunnel_which_sees_no_token(easq: Easq, other: Server) -> None:
    def tunnel(server: Server, peer: Peer) -> None:
        server.requests.append(peer.read_request())
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        server.requests.append((peer.upgrade(), b""))
        peer.send_frame(peer.serve_pings()[1][::-1], 1)
        peer.serve_pings()

    with Server(tunnel) as proxy:
        env = {"HTTP_PROXY": at(proxy), "HTTPS_PROXY": at(other)}
        done = run(easq, "--via", "websocket", "--url", "ws://service.example.test/x", env=env)
    assert done.out == BODY[::-1].encode()
    assert proxy.heads()[0].startswith("CONNECT service.example.test:80 HTTP/1.1\r\n")
    assert TOKEN not in proxy.heads()[0]
    assert TOKEN in proxy.heads()[1]


def test_no_netrc_is_read(easq: Easq, instance: Server) -> None:
    (easq.home / ".netrc").write_text("machine 127.0.0.1 login canary-login password canary-password\n")
    url = f"{at(instance)}/api/predict/svc"
    assert easq("predict", "-d", "x", "--via", "gateway", "--url", url).out == b"yes"
    assert "authorization" not in instance.heads()[0].lower()


def test_the_canary_can_be_caught() -> None:
    """A host that is not loopback has a proxy: the tests above would notice a call through it."""
    environ = {"HTTP_PROXY": "http://127.0.0.1:1"}
    assert proxy_for("http://gateway.example.test/", environ) == "http://127.0.0.1:1"
    assert proxy_for("http://198.51.100.7:9", environ) == "http://127.0.0.1:1"


# what is printed


@pytest.mark.parametrize("password", ["CANARY#1", "CANARY/1", "CANARY?1", "1#CANARY", "31415/CANARY"])
def test_a_password_of_an_address_is_in_no_error(easq: Easq, password: str) -> None:
    """Also with characters that have a meaning in a URL."""
    address = f"http://user:{password}@h.example.test:8080/api/predict/q"
    runs: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (("get", "--url", address, "-vvv"), {}),
        (("get", "-o", "json", "--url", address), {}),
        (("watch",), {"EASQ_URL": address}),
        (("config", "--url", address), {}),
        (("config", "set", "endpoint", address), {}),
        (("predict", "-d", "x", "--via", "websocket", "--url", address), {}),
        (("predict", "-d", "x", "--via", "direct", "--service", "s", "--endpoint", address), {}),
    ]
    for variable in ("http_proxy", "ALL_PROXY"):
        through = {variable: address}
        runs += [
            (("get", "--url", "http://h.example.test/q", "-vvv"), through),
            (("put", "-d", "x", "-d", "y", "--url", "http://h.example.test/q"), through),
            (("watch", "--url", "http://h.example.test/q"), through),
        ]
    for args, env in runs:
        done = easq(*args, env=env)
        assert done.status not in (0, 1), (args, env)
        assert "CANARY" not in done.text + done.err, (args, env)
        assert "31415" not in done.err, (args, env)


@pytest.mark.parametrize(
    "storage", ["redis://:CANARY?1@r", "redis://ann:CANARY", "redis://:CANARY@r/x", "mysql:a:CANARY@r"]
)
def test_the_storages_password_is_in_no_error(easq: Easq, storage: str) -> None:
    for args, env in ((("serve", "--storage", storage), {}), (("serve",), {"EASQ_STORAGE": storage})):
        done = easq(*args, "--port", "0", env=env)
        assert done.status == 2
        assert "CANARY" not in done.text + done.err


@pytest.mark.parametrize(
    "header",
    [
        "X-Auth-Token: CANARY\r",
        "X-Auth-Token: CANARY\u00e9",
        "X-Auth-Token CANARY",
        "CANARY",
        "X Token: CANARY",
        ": CANARY",
    ],
)
def test_a_header_that_cannot_be_sent_is_not_shown(easq: Easq, header: str) -> None:
    done = easq("get", "--header", header, "--url", "http://127.0.0.1:1/q")
    assert done.status == 2
    assert "CANARY" not in done.err


def test_a_token_that_is_set_as_another_key_is_not_shown(easq: Easq) -> None:
    for key in ("group", "user", "via", "service", "project", "refresh", "sign", f"{TOKEN}+/"):
        done = easq("config", "set", key, f"{TOKEN}+/")
        assert done.status in (2, 13), key
        assert TOKEN not in done.text + done.err, key
    done = easq("config", "set", "token", "one", TOKEN)
    assert (done.status, TOKEN in done.err) == (2, False)
    done = easq("config", "set", "token_cmd", f"pass '{TOKEN}")
    assert (done.status, TOKEN in done.err) == (2, False)


@pytest.mark.parametrize("token", ["wrong", "needed", "token"])
def test_a_token_that_is_a_word_leaves_the_message_whole(easq: Easq, serve: Serve, token: str) -> None:
    service = serve(storage="memory:", token="another")
    done = easq("info", "--url", service.url(), env={"EASQ_TOKEN": token})
    assert (done.status, done.err.splitlines()[0]) == (7, "easq: the token is wrong")


def test_a_proxy_that_quotes_what_it_was_sent_does_not_show_the_password(easq: Easq) -> None:
    """In its status line, where a tunnel finds it, in its body, and on every connection that goes through one."""

    def quote(server: Server, peer: Peer) -> None:
        head, _ = peer.read_request()
        given = next(line for line in head.split("\r\n") if line.lower().startswith("proxy-auth"))
        server.requests.append((given, b""))
        peer.send(f"HTTP/1.1 403 CANARY9 p%40 {given}\r\nContent-Length: 0\r\n\r\n".encode())

    with Server(quote) as proxy:
        env = {"ALL_PROXY": f"http://user:CANARY9p%40@127.0.0.1:{proxy.port}"}
        for args in (
            ("get", "--url", "http://h.example.test/q"),
            ("get", "--url", "https://h.example.test/q"),
            ("put", "-d", "a", "-d", "b", "--url", "https://h.example.test/q"),
            ("watch", "--commit", "none", "--url", "http://h.example.test/q"),
            (
                "predict",
                "-d",
                "x",
                "--via",
                "websocket",
                "--timeout",
                "1s",
                "--url",
                "wss://h.example.test/q",
            ),
        ):
            asked = len(proxy.requests)
            done = easq(*args, "-vvv", "--connect-timeout", "1s", env=env)
            assert done.status not in (0, 1, 2), args
            assert len(proxy.requests) > asked, args
            assert "dXNlcjpDQU5BUlk5cE" not in done.text + done.err, args
            assert "CANARY9p" not in done.text + done.err, args


# what a command is given


SECRETS = {
    "EASQ_STORAGE": "redis://:CANARY@r",
    "EASQ_TOKEN": "CANARY-token",
    "HTTP_PROXY": "http://user:CANARY#/?@proxy.example.test:8080",
    "all_proxy": "CANARY@proxy.example.test",
}


#: prints what the model of EASQ_SERVICE answers
ASK_MODEL = (
    "import os, urllib.request as u; place = os.environ['EASQ_ENDPOINT'] + '/api/predict/model'; "
    "ask = u.Request(place, b'x', {'Authorization': os.environ['EASQ_TOKEN']}); "
    "print(u.build_opener(u.ProxyHandler({})).open(ask).read().decode())"
)


def _seen(environ: str) -> None:
    """No secret is in an environment that a command printed, and the proxies are."""
    assert "CANARY" not in environ
    assert "HTTP_PROXY=http://proxy.example.test:8080" in environ
    assert "all_proxy=proxy.example.test" in environ


def test_the_commands_of_watch_and_work_see_no_secret(queue: Easq) -> None:
    queue("put", "-q", "-d", "a")
    _seen(queue("watch", "-q", "-n", "1", "--group", "queue", "--", "env", env=SECRETS).text)
    queue("put", "-q", "-d", "b")
    with queue.start("work", "-q", "--", "env", env={**queue.environ, **SECRETS}) as process:
        eventually(lambda: queue("info", "-k", "--field", "stream.length").text == "1\n")
        process.terminate()
    _seen(queue("get", "-k", "-o", "raw").text)


def test_the_command_of_serve_sees_the_token_of_its_service_alone(easq: Easq) -> None:
    """And a model that is served beside it sees none, nor those who ask it."""
    env = {**SECRETS, "EASQ_TOKEN": "", "EASQ_TOKEN_FILE": ""}
    done = easq(
        "serve",
        "--model",
        "exec:env",
        "--",
        "sh",
        "-c",
        f'env; echo MODEL; {sys.executable} -c "{ASK_MODEL}"',
        env=env,
    )
    assert done.status == 0, done.err
    ours, _, model = done.text.partition("MODEL\n")
    _seen(ours)
    _seen(model)
    assert "EASQ_TOKEN=" in ours
    assert "EASQ_TOKEN=" not in model
    given = easq("serve", "--", "env", env=SECRETS)
    assert "EASQ_TOKEN=CANARY-token\n" in given.text
    _seen(given.text.replace("CANARY-token", ""))


def test_the_command_that_gives_the_token_sees_none(easq: Easq, url: str) -> None:
    easq("config", "--url", url)
    easq("config", "set", "token_cmd", "sh -c 'env >&2; echo t'")
    done = easq("info", env={**SECRETS, "no_proxy": "*"})
    assert done.status == 0
    _seen(done.err)


def test_the_commands_of_the_demo_see_no_secret(tmp_path: Path) -> None:
    environ = Tour(App(SECRETS), tmp_path)._environ()
    _seen("\n".join(f"{name}={value}" for name, value in environ.items()))


def test_config_masks_the_passwords_of_addresses(easq: Easq) -> None:
    """Those of a profile, of the environment and of the command line, in every form of output."""
    secret = "http://u:CANARY@h.example.test/q?key=CANARY"
    folder = easq.home / ".config" / "easq"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "config.toml").write_text(
        f'version = 1\nprofile = "a"\n[profiles.a]\nurl = "{secret}"\nendpoint = "{secret}"\n'
    )
    (folder / "config.toml").chmod(0o600)
    given: list[tuple[tuple[str, ...], dict[str, str]]] = [
        ((), {}),
        ((), {"EASQ_URL": secret, "EASQ_ENDPOINT": secret}),
        (("--url", secret), {}),
    ]
    for more, env in given:
        for form in ("text", "json", "table"):
            for args in (("show",), ("show", "--origin"), ("list",)):
                done = easq("config", *args, "-o", form, *more, env=env)
                assert done.status == 0
                assert "http://****@h.example.test/q?****" in done.text
                assert "CANARY" not in done.text + done.err
        assert f"url : {secret}\n" in easq("config", "show", "--reveal", *more, env=env).text
    assert "CANARY" not in easq("config").text
