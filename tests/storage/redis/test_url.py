"""Storage URLs of a Redis: their parts, refused URLs, and hidden passwords."""

from __future__ import annotations

import pytest

from easq.errors import UsageError
from easq.storage.redis.url import RedisUrl, is_redis_url, parse_redis_url, shown_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", RedisUrl("redis://localhost", "server", (("localhost", 6379),))),
        (
            "redis://10.0.0.7:7000/3",
            RedisUrl("redis://10.0.0.7:7000/3", "server", (("10.0.0.7", 7000),), db=3),
        ),
        ("redis://[::1]:7000", RedisUrl("redis://[::1]:7000", "server", (("::1", 7000),))),
        ("redis://[::1]", RedisUrl("redis://[::1]", "server", (("::1", 6379),))),
        (
            "redis://:s%40crt@r:1/",
            RedisUrl("redis://:****@r:1/", "server", (("r", 1),), password="s@crt"),
        ),
        (
            "redis://ann:a:b@c@r",
            RedisUrl("redis://ann:****@r", "server", (("r", 6379),), username="ann", password="a:b@c"),
        ),
        (
            "rediss://u:p@r?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=no",
            RedisUrl(
                "rediss://u:****@r",
                "server",
                (("r", 6379),),
                tls=True,
                username="u",
                password="p",
                options={"ssl_ca_certs": "/etc/ca.pem", "ssl_check_hostname": "no"},
            ),
        ),
        ("unix:///run/redis.sock", RedisUrl("unix:///run/redis.sock", "server", path="/run/redis.sock")),
        (
            "unix://:pw@/run/redis.sock?db=2",
            RedisUrl("unix://:****@/run/redis.sock", "server", path="/run/redis.sock", password="pw", db=2),
        ),
        (
            "redis+sentinel://u:p@a:1,b/main/2?sentinel_password=q",
            RedisUrl(
                "redis+sentinel://u:****@a:1,b/main/2",
                "sentinel",
                (("a", 1), ("b", 26379)),
                username="u",
                password="p",
                db=2,
                service="main",
                options={"sentinel_password": "q"},
            ),
        ),
        (
            "rediss+sentinel://a/m",
            RedisUrl("rediss+sentinel://a/m", "sentinel", (("a", 26379),), tls=True, service="m"),
        ),
        ("redis+cluster://a:1,b:2", RedisUrl("redis+cluster://a:1,b:2", "cluster", (("a", 1), ("b", 2)))),
        ("rediss+cluster://a:1/0", RedisUrl("rediss+cluster://a:1/0", "cluster", (("a", 1),), tls=True)),
    ],
)
def test_what_a_url_names(url: str, expected: RedisUrl) -> None:
    """Every part of the URL is in the right field."""
    assert is_redis_url(url)
    assert parse_redis_url(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://", "'redis://' names no Redis"),
        ("redis:///3", "redis:///3: '' is no HOST:PORT"),
        ("redis://r:port", "redis://r:****: 'r:****' is no HOST:PORT"),  # or a password without a host
        ("redis://r:0", "redis://r:0: 'r:0' is no HOST:PORT"),
        ("redis://r:65536", "redis://r:65536: 'r:65536' is no HOST:PORT"),
        ("redis://r/main", "redis://r/main: the database is a number, got 'main'"),
        ("redis://a:1,b:2", "redis://a:1,b:2: one server, got 2"),
        ("redis://r?ssl_ca_certs=x", "redis://r: unknown option 'ssl_ca_certs' in the query"),
        ("rediss://r?timeout=1", "rediss://r: unknown option 'timeout' in the query"),
        ("redis+sentinel://a:1", "redis+sentinel://a:1: no name of a service"),
        ("redis+cluster://a:1/1", "redis+cluster://a:1/1: a Cluster has one database"),
        ("unix://host/run/r", "unix://host/run/r: no path of a socket"),
        ("http://r", "'http://r' names no Redis"),
        ("redis://u:secret@r:x", "redis://u:****@r:x: 'r:x' is no HOST:PORT"),
    ],
)
def test_what_is_refused(url: str, message: str) -> None:
    """The message says what is wrong and with which URL, its password hidden."""
    with pytest.raises(UsageError) as caught:
        parse_redis_url(url)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("url", "is_open"),
    [
        ("redis://127.0.0.1", False),
        ("redis://localhost", False),
        ("redis://[::1]", False),
        ("redis://redis", True),
        ("redis://10.0.0.1", True),
        ("redis://ann@10.0.0.1", True),
        ("redis://:pw@10.0.0.1", False),
        ("rediss://10.0.0.1", True),
        ("rediss://10.0.0.1?ssl_certfile=me.pem", False),
        ("unix:///run/redis.sock", False),
        ("redis+cluster://127.0.0.1:1,10.0.0.1:1", True),
    ],
)
def test_whether_others_are_let_in(url: str, is_open: bool) -> None:
    """Without a password, only an address that other machines cannot reach is not open."""
    assert parse_redis_url(url).is_open is is_open


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:/tmp/a@b", "sqlite:/tmp/a@b"),
        ("redis://r:1/0", "redis://r:1/0"),
        ("redis://:secret@r", "redis://:****@r"),
        ("redis+sentinel://u:secret@r/m?sentinel_password=secret", "redis+sentinel://u:****@r/m"),
    ],
)
def test_what_is_shown(url: str, shown: str) -> None:
    """No password, in whichever part of the URL."""
    assert shown_url(url) == shown
    assert "secret" not in repr(parse_redis_url(url)) if is_redis_url(url) else True


@pytest.mark.parametrize(
    "url",
    ["redis://:QX?QX@r", "redis://ann:QX?QX=QX@r", "redis://ann:QX", "redis:QX:QX@r", "redis://:QX/QX@r:x"],
)
def test_no_part_of_a_password_is_in_what_is_refused(url: str) -> None:
    """Whether its `?` is not encoded, or the host was forgotten."""
    with pytest.raises(UsageError) as caught:
        parse_redis_url(url)
    assert "QX" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:se#cr/et@r/0", "redis://:****@r/0"),
        ("redis://:se?cr=et@r/0", "redis://:****@r/0"),
        ("redis://ann:se?cret@r", "redis://:****@r"),
        ("redis://:12345?abc@r:6379/0", "redis://:****@r:6379/0"),
        ("rediss://r:1/0?ssl_ca_certs=/a@b", "rediss://r:1/0"),
        ("redis://[::1]:1,r:2,s/0", "redis://[::1]:1,r:2,s/0"),
        ("redis://:secret", "redis://:****"),
        ("redis://ann:secret/0", "redis://ann:****/0"),
        ("redis:ann:secret@r", "redis:****@r"),
    ],
)
def test_no_password_is_shown_of_a_url_that_is_none(url: str, shown: str) -> None:
    """The URL has unencoded special characters, or no host."""
    assert shown_url(url) == shown
