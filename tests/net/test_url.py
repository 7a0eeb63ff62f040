import pytest

from easq.errors import ConfigError
from easq.net.url import (
    address_of,
    endpoint_url,
    is_loopback,
    is_private,
    proxy_for,
    shown,
    stream_url,
    websocket_url,
)


@pytest.mark.parametrize(
    ("url", "sink", "found"),
    [
        ("http://h/api/predict/q", False, "http://h/api/predict/q"),
        ("http://h/api/predict/q/", False, "http://h/api/predict/q"),
        ("http://h/api/predict/q", True, "http://h/api/predict/q/sink"),
        ("http://h/api/predict/q/sink/", True, "http://h/api/predict/q/sink"),
        ("https://h:8443", True, "https://h:8443/sink"),
        ("HTTP://[::1]:3030/", False, "http://[::1]:3030"),
        ("http://büro.test:81/ü/%C3%BC", False, "http://xn--bro-hoa.test:81/%C3%BC/%C3%BC"),
        ("http://test_group.qservice:80/a.b", False, "http://test_group.qservice:80/a.b"),
    ],
)
def test_the_address_of_a_stream(url: str, sink: bool, found: str) -> None:
    assert stream_url(url, sink=sink) == found


@pytest.mark.parametrize(
    "url",
    [
        *("", "h/api", "host:3030", "//h/api", "ftp://h/", "ws://h/", "http://", "http:///x", "http://:80/"),
        *("http://h:0/", "http://h:/", "http://h:70000/", "http://h:x/", "http://[::g]/", "http://[::1/"),
        *(
            "http://u:secret@h/",
            "http://secret@h/",
            "http://h/#f",
            "http://h/?a=b",
            "http://h/a b",
            " http://h",
        ),
        *("http://h/\n", "http://h/\x00", "http://h\\@evil/", "http://a..b/", "http://h\u202e/"),
        *("http://%31/", "http://" + "a" * 64 + "/"),
    ],
)
def test_what_is_no_plain_address_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stream_url(url, sink=False)
    assert caught.value.hint
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("endpoint", "found"),
    [
        ("pai-eas-vpc.cn-shanghai.aliyuncs.com", "http://pai-eas-vpc.cn-shanghai.aliyuncs.com"),
        ("127.0.0.1:3030", "http://127.0.0.1:3030"),
        ("https://h/", "https://h"),
    ],
)
def test_the_address_of_a_discovery_may_be_a_bare_host(endpoint: str, found: str) -> None:
    assert endpoint_url(endpoint) == found


def test_an_address_that_is_no_discovery_is_called_an_endpoint() -> None:
    with pytest.raises(ConfigError, match=r"^the endpoint http://h holds a user or password$"):
        endpoint_url("u:geheim@h")


@pytest.mark.parametrize(
    ("url", "path", "found"),
    [
        ("wss://h/infer/x", "", "wss://h/infer/x"),
        ("ws://h", "", "ws://h"),
        ("ws://h:81/a/", "", "ws://h:81/a/"),
        ("WSS://h/a/", "/b", "wss://h/a/b"),
        ("wss://h/a?x=1&y=a+b%20c", "", "wss://h/a?x=1&y=a+b%20c"),
        ("wss://h/a?x=ü", "/ü", "wss://h/a/%C3%BC?x=%C3%BC"),
        ("https://h/a", "", "wss://h/a"),
        ("http://[::1]:8/a", "", "ws://[::1]:8/a"),
    ],
)
def test_the_address_of_a_websocket_service(url: str, path: str, found: str) -> None:
    assert websocket_url(url, path=path) == found


@pytest.mark.parametrize(
    "url",
    [
        *("", "h/a", "ftp://h", "ws://", "ws://h:0", "ws://u:secret@h", "ws://h/#f", "ws://h/a b"),
        *("ws://h/?a b", "ws://h/?a#f", "ws://h/?a\r\nX: y", "ws://h/?a\\b", "ws://a..b/"),
    ],
)
def test_what_is_no_address_of_a_websocket_service_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        websocket_url(url)
    assert "secret" not in caught.value.message
    assert "http" not in caught.value.message + caught.value.hint.replace("http://HOST[:PORT]", "")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h/a", "h:80"),
        ("wss://h/a", "h:443"),
        ("ws://[::1]:8/a", "[::1]:8"),
        ("https://h:1/a?b", "h:1"),
    ],
)
def test_host_and_port_of_an_address(url: str, address: str) -> None:
    assert address_of(url) == address


def test_a_websocket_uses_the_proxy_of_http() -> None:
    assert proxy_for("ws://h/", PROXIES) == "http://p:1"
    assert proxy_for("wss://h/", PROXIES) == "http://p:2"
    assert proxy_for("ws://127.0.0.1/", PROXIES) is None
    assert (is_private("ws://10.0.0.1/"), is_private("ws://8.8.8.8/")) == (True, False)


def test_an_address_is_shown_without_secrets() -> None:
    assert shown("https://u:p@h:1/x?token=t#f") == "https://h:1/x"
    assert shown("u:p@h:1") == "h:1"
    assert shown("http://h/a@b") == "http://h/a@b"
    assert shown("http://10.0.0.1:80/a@b") == "http://10.0.0.1:80/a@b"
    assert shown("wss://h/a?user=me@x") == "wss://h/a"


@pytest.mark.parametrize("mark", "/?#")
@pytest.mark.parametrize("begin", ["geheim", "2024", ""])
def test_a_password_that_ends_the_hosts_part_of_a_url_is_not_shown(begin: str, mark: str) -> None:
    secret = f"{begin}{mark}canary"
    for url in (f"http://user:{secret}@h:1/x?y", f"user:{secret}@h:1/x", f"ws://:{secret}@h:1/x#z"):
        text = shown(url)
        assert text.endswith("****@h:1/x")
        assert "canary" not in text
        assert not begin or begin not in text
        for take in (lambda url=url: stream_url(url, sink=False), lambda url=url: websocket_url(url)):
            with pytest.raises(ConfigError) as caught:
                take()
            said = caught.value.message + caught.value.hint
            assert "canary" not in said
            assert not begin or begin not in said
    with pytest.raises(ConfigError) as caught:
        proxy_for("http://h/", {"http_proxy": f"http://user:{secret}@p:1"})
    assert "canary" not in caught.value.message
    assert not begin or begin not in caught.value.message
    assert "%2F" in caught.value.hint


@pytest.mark.parametrize(
    ("host", "loopback", "private"),
    [
        *(("localhost", True, True), ("a.localhost.", True, True), ("127.9.9.9", True, True)),
        *(("[::1]", True, True), ("[::ffff:127.0.0.1]", True, True), ("10.1.2.3", False, True)),
        *(("192.168.0.1", False, True), ("[fd00::1]", False, True), ("queue", False, True)),
        *(("q.local", False, True), ("q.svc", False, True), ("8.8.8.8", False, False)),
        *(("localhost.evil.test", False, False), ("example.com", False, False)),
        ("123.vpc.cn-hangzhou.pai-eas.aliyuncs.com", False, True),
        ("123.cn-hangzhou.pai-eas.aliyuncs.com", False, False),
    ],
)
def test_loopback_and_private_addresses(host: str, loopback: bool, private: bool) -> None:
    url = f"http://{host}:3030/x"
    assert (is_loopback(url), is_private(url)) == (loopback, private)


PROXIES = {"HTTP_PROXY": "http://p:1", "https_proxy": "p:2", "ALL_PROXY": "http://p:3"}


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("http://h/", PROXIES, "http://p:1"),
        ("https://h/", PROXIES, "http://p:2"),
        ("http://h/", {"ALL_PROXY": "http://p:3"}, "http://p:3"),
        ("http://h/", {"http_proxy": "http://low:1", "HTTP_PROXY": "http://up:1"}, "http://low:1"),
        ("http://h/", {}, None),
        ("http://h/", {"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, None),
        ("http://127.0.0.1:3030/", PROXIES, None),
        ("http://localhost/", PROXIES, None),
        ("http://[::1]/", PROXIES, None),
        ("http://h/", {**PROXIES, "NO_PROXY": "*"}, None),
        ("http://h/", {**PROXIES, "no_proxy": "a, h"}, None),
        ("http://a.example.com/", {**PROXIES, "NO_PROXY": "example.com"}, None),
        ("http://a.example.com/", {**PROXIES, "NO_PROXY": ".example.com"}, None),
        ("http://a.example.com/", {**PROXIES, "NO_PROXY": "*.example.com"}, None),
        ("http://badexample.com/", {**PROXIES, "NO_PROXY": "example.com"}, "http://p:1"),
        ("http://h:81/", {**PROXIES, "NO_PROXY": "h:80"}, "http://p:1"),
        ("http://h:80/", {**PROXIES, "NO_PROXY": "h:80"}, None),
        ("http://h/", {**PROXIES, "NO_PROXY": "h:80"}, None),
        ("ws://a.h/", {**PROXIES, "NO_PROXY": "h:80"}, None),
        ("https://h/", {"ALL_PROXY": "p:1", "NO_PROXY": "h:443"}, None),
        ("wss://[2001:db8::1]/", {"ALL_PROXY": "p:1", "NO_PROXY": "[2001:db8::1]:443"}, None),
        ("https://h/", {"ALL_PROXY": "p:1", "NO_PROXY": "h:80"}, "http://p:1"),
        ("http://10.1.2.3/", {**PROXIES, "NO_PROXY": "10.0.0.0/8"}, None),
        ("http://11.1.2.3/", {**PROXIES, "NO_PROXY": "10.0.0.0/8"}, "http://p:1"),
        ("http://[fd00::1]/", {**PROXIES, "NO_PROXY": "[fd00::1]"}, None),
    ],
)
def test_the_proxy_of_an_address(url: str, environ: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(url, environ) == proxy


def test_a_proxy_that_is_not_http_is_refused_when_it_would_be_used() -> None:
    environ = {"ALL_PROXY": "socks5://user:secret@p:1"}
    assert proxy_for("http://127.0.0.1/", environ) is None
    with pytest.raises(ConfigError, match=r"^the proxy socks5://p:1 is neither http nor https$"):
        proxy_for("http://h/", environ)
    with pytest.raises(
        ConfigError, match=r"^the host or port of the proxy http://\[::1 is malformed$"
    ) as caught:
        proxy_for("http://h/", {"HTTP_PROXY": "http://user:secret@[::1"})
    assert (
        caught.value.hint
        == "in a user or password, write / as %2F, ? as %3F, # as %23, @ as %40 and % as %25"
    )
