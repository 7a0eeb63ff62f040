"""`easq serve --storage redis://…`: the service on a Redis, and its error if there is none."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cli.conftest import Easq
from tests.support.redis import RedisServer
from tests.support.waiting import eventually


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with a password."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    server.ask("CONFIG", "SET", "requirepass", "s3cret@word")
    yield server
    server.kill()


def storage(server: RedisServer) -> str:
    """Return the value of --storage."""
    return f"redis://:s3cret%40word@127.0.0.1:{server.port}"


@pytest.fixture
def serve(easq: Easq, server: RedisServer) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], str]]]:
    """Starts a service on that Redis: the process and its address."""
    running: list[subprocess.Popen[bytes]] = []

    def serve(*options: str) -> tuple[subprocess.Popen[bytes], str]:
        process = easq.start("serve", "--port", "0", "--storage", storage(server), *options)
        running.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().decode().strip().removeprefix("EASQ_URL=")

    yield serve
    for process in running:
        process.kill()
        process.communicate()


Serve = Callable[..., tuple[subprocess.Popen[bytes], str]]


def put(url: str) -> tuple[int, str | None]:
    """Status of a put, 0 for a connection that was closed without an answer, and whether it was stored for certain."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=20)
    try:
        connection.request("POST", address.path, b"y")
        response = connection.getresponse()
        return response.status, response.getheader("X-Easq-Stored")
    except (ConnectionError, HTTPException):
        return 0, None
    finally:
        connection.close()


def test_what_one_service_was_given_another_has(easq: Easq, server: RedisServer, serve: Serve) -> None:
    """Two services on one Redis are one queue, and neither prints the password."""
    one, url = serve("-v")
    two, other = serve()
    assert easq("put", "-q", "-d", "x", "--url", url).text == "[OK] 1\n"
    assert easq("get", "-o", "raw", "--url", other).out == b"x"
    for process in (one, two):
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0
        assert (
            f"[INFO] durability redis-fsync, storage redis://:****@127.0.0.1:{server.port}\n" in err.decode()
        )
        assert b"s3cret" not in err


def test_the_environment_names_a_storage_that_no_command_line_shows(easq: Easq, server: RedisServer) -> None:
    """A private service around a command still gets a token of its own."""
    easq.environ["EASQ_STORAGE"] = storage(server)
    process = easq.start("serve", "--port", "0")
    assert process.stdout is not None
    url = process.stdout.readline().decode().strip().removeprefix("EASQ_URL=")
    assert easq("put", "-q", "-d", "x", "--url", url).text == "[OK] 1\n"
    assert server.client(password="s3cret@word").keys("easq:{qservice}:*") != []
    private = easq("serve", "--", sys.executable, "-m", "easq", "put", "-q", "-d", "x")
    assert (private.status, private.text) == (0, "[OK] 1\n")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert b"storage redis://:****@127.0.0.1" in err
    assert b"s3cret" not in err


def test_while_redis_is_away_nothing_is_stored_and_the_service_stays(
    easq: Easq, server: RedisServer, serve: Serve
) -> None:
    """503 and certainly not stored, until Redis is back; then the queue has its old items."""
    process, url = serve()
    assert easq("put", "-q", "-d", "x", "--url", url).text == "[OK] 1\n"
    server.freeze()

    eventually(lambda: put(url) == (503, "no"))
    server.thaw()
    eventually(lambda: easq("get", "-o", "raw", "--url", url).out == b"x")
    assert process.poll() is None


def test_no_redis_is_a_failed_storage(easq: Easq, server: RedisServer) -> None:
    """Exit code 74, one line, and what to do."""
    server.kill()
    done = easq("serve", "--port", "0", "--storage", storage(server))
    assert (done.status, done.out) == (74, b"")
    assert done.err == (
        f"easq: no Redis at 127.0.0.1:{server.port}: Connection refused\n"
        "hint: start it, or name another with --storage\n"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--storage", "memory:", "--wait-replicas", "1"),
            "--wait-replicas is only for Redis storage",
        ),
        (("--storage", "redis://127.0.0.1", "--durability", "os"), "--durability os is only for sqlite:PATH"),
        (("--storage", "redis://127.0.0.1", "--recover"), "--recover is only for sqlite:PATH"),
        (
            ("--storage", "redis://10.0.0.1"),
            "redis://10.0.0.1 can be reached from other machines, and the URL has no password",
        ),
        (("--storage", "redis://:s3cret@r:x"), "redis://:****@r:x: 'r:x' is no HOST:PORT"),
        (("--storage", "mysql://u:s3cret@r"), "unknown storage 'mysql://u:****@r'"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(easq: Easq, options: tuple[str, ...], says: str) -> None:
    """A usage error, before anything is connected."""
    done = easq("serve", "--port", "0", *options)
    assert (done.status, done.out) == (2, b"")
    assert says in done.err
    assert "s3cret" not in done.err
