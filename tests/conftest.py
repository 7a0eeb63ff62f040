"""Fixtures for every part: a service and a Redis in processes of their own, and a certificate for the tests of TLS."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support.nginx import DEFAULT, Nginx
from tests.support.platform import Cloud
from tests.support.process import Service
from tests.support.redis import RedisServer
from tests.support.tools import find_tool

Serve: TypeAlias = Callable[..., Service]
OpenCloud: TypeAlias = Callable[..., Cloud]
MakeRedis: TypeAlias = Callable[..., RedisServer]
MakeNginx: TypeAlias = Callable[..., Nginx]

# What nohup, or a script's background, has us ignore, what we start would ignore too, and tests send it these signals.
# A handler that does nothing keeps us as we are, and is not inherited.
for _number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A factory of services: `serve("--leave-grace", "1s", storage="memory:", token="t")`, running and ended after.

    Each has a data file of its own, in a folder of its own, unless `storage` says otherwise.
    """
    started: list[Service] = []

    def start(
        *options: str, storage: str | None = None, token: str = "", program: Sequence[str] = ("easq",)
    ) -> Service:
        folder = tmp_path / f"service-{len(started)}"
        folder.mkdir()
        service = Service(folder, storage or f"sqlite:{folder / 'data' / 'easq.db'}", options, token)
        service.program = program
        started.append(service)
        service.start()
        return service

    yield start
    for service in started:
        service.kill()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One redis-server for all tests of this process, with appendfsync always. What is in it is of `redis_url` only."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of an empty Redis, without scripts, shared with no other test."""
    redis_server.ask("FLUSHALL")
    redis_server.ask("SCRIPT", "FLUSH")
    return redis_server.url


@pytest.fixture
def make_redis(tmp_path: Path) -> Iterator[MakeRedis]:
    """A factory of private servers, to be killed, stopped or configured: `make_redis(appendfsync="everysec")`."""
    started: list[RedisServer] = []

    def make(**options: str) -> RedisServer:
        server = RedisServer(tmp_path / f"redis-{len(started)}", **options)
        started.append(server)
        server.start()
        return server

    yield make
    for server in started:
        server.kill()


@pytest.fixture
def make_nginx(tmp_path: Path) -> Iterator[MakeNginx]:
    """A factory of nginx before the service at a port: `make_nginx(port, "server {{ ... }}")`."""
    started: list[Nginx] = []

    def make(upstream: int, server: str = DEFAULT) -> Nginx:
        folder = tmp_path / f"nginx-{len(started)}"
        folder.mkdir()
        nginx = Nginx(folder, upstream, server)
        started.append(nginx)
        nginx.start()
        return nginx

    yield make
    for nginx in started:
        nginx.kill()


@pytest.fixture
def cloud() -> Iterator[OpenCloud]:
    """A factory of services with a model, in this process: `cloud("echo", weights=(100, 50), token="t")`."""
    running: list[Cloud] = []

    def open_one(model: str = "echo", **options: Any) -> Cloud:
        made = Cloud(model, **options)
        made.start()
        running.append(made)
        return made

    yield open_one
    for made in running:
        made.stop()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and 2001:db8::1 with its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    _openssl(
        folder,
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=easq "
        "-addext subjectAltName=IP:127.0.0.1,IP:2001:db8::1 -keyout key.pem -out cert.pem",
    )
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


@pytest.fixture(scope="session")
def private_ca(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CA that states nothing but that it is one, and a certificate that it signed for 127.0.0.1, with its key."""
    folder = tmp_path_factory.mktemp("ca")
    (folder / "config").write_text(
        "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = easq\n"
        "[ca]\nbasicConstraints = critical, CA:TRUE\n[leaf]\nsubjectAltName = IP:127.0.0.1\n"
    )
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -config config -extensions ca -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -config config -subj /CN=127.0.0.1 -keyout leaf.key -out leaf.csr",
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -set_serial 2 -days 2 -extfile config -extensions leaf "
        "-out leaf.pem",
    ):
        _openssl(folder, command)
    both = folder / "both.pem"
    both.write_bytes((folder / "leaf.key").read_bytes() + (folder / "leaf.pem").read_bytes())
    return folder / "ca.pem", both


def _openssl(folder: Path, command: str) -> None:
    subprocess.run([find_tool("openssl"), *command.split()], cwd=folder, check=True, capture_output=True)


def pytest_configure() -> None:
    """A run in a shell's background is begun with Ctrl-C ignored; what is started here must not inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: tests wait more than they compute, for timers, syncs and other processes."""
    return (os.cpu_count() or 1) * 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a test process that has nothing left take tests from another one, unless `--dist` says otherwise.

    Otherwise each has two tests or more waiting for it to the end, and some tests take as long as hundreds of others.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured and counted (`record_property`) stands at the end of the log."""
    found = {
        (report.nodeid.rpartition("/")[2], name): value
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for name, value in report.user_properties
    }
    if found:
        terminalreporter.section("figures")
    for (test, name), value in sorted(found.items()):
        terminalreporter.line(f"{test}: {name} = {value}")
