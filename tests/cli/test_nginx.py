"""easq behind nginx: with the defaults of its package, and set up as docs/serve.md shows."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.cli.conftest import ROOT, Easq
from tests.conftest import MakeNginx, Serve
from tests.models.test_models import Handler, Reply, Upstream, upstream
from tests.support.http import Connection, Stream
from tests.support.process import Service
from tests.support.waiting import PATIENCE_S

__all__ = ["upstream"]  # the fixture is used by name

STRIPPED = (
    "easq: this is a WebSocket handshake without its Upgrade header: a proxy on the way removed it\n"
    "hint: configure the proxy to pass on Upgrade and Connection, or use --transport http\n"
)


@pytest.fixture
def service(serve: Serve) -> Service:
    """A service, with its default queue."""
    return serve(storage="memory:")


@pytest.fixture
def behind(easq: Easq, service: Service, make_nginx: MakeNginx) -> Iterator[Easq]:
    """easq with the address of a service behind nginx, whose only directive is `proxy_pass`."""
    easq.environ["EASQ_URL"] = make_nginx(service.port).url()
    return easq


def test_put_and_get_pass(behind: Easq) -> None:
    assert behind("put", "-q", "-d", "a").text == "[OK] 1\n"
    large = b"x" * 500_000  # beyond every buffer of nginx's
    assert behind("put", "-q", "-o", "none", stdin=large).status == 0
    assert behind("get", "--delete", "-o", "raw").out == b"a"
    assert behind("get", "--delete", "-o", "raw").out == large


@pytest.mark.parametrize("command", [["watch", "--commit", "output", "-q"], ["work", "-q", "--", "cat"]])
def test_a_watch_without_its_upgrade_is_refused_at_once(
    behind: Easq, service: Service, command: list[str]
) -> None:
    """No item is delivered, and no failure is counted."""
    behind("put", "-q", "-d", "a")
    done = behind(*command)
    assert (done.status, done.out, done.err) == (6, b"", STRIPPED)
    attributes = service.stream().attributes()
    assert (attributes["stream.length"], attributes["consumers.stats.total"]) == ("1", "0")
    assert not any(name.startswith("groups.list") for name in attributes)
    assert (
        '"kind":"upgrade_required","exit":6,"http_status":426'
        in behind(*command[:1], "-o", "json", *command[1:]).err
    )


def test_a_stream_that_nobody_asked_for_by_name_is_refused(
    behind: Easq, service: Service, make_nginx: MakeNginx
) -> None:
    """curl behind nginx asks over HTTP/1.0, in the end."""
    behind("put", "-q", "-d", "a")
    nginx = make_nginx(service.port)
    answer = Stream(nginx.port, "/api/predict/qservice").ask("GET", _watch_="true")
    assert (answer.status, answer.header("Upgrade")) == (426, "websocket")
    assert "X-Easq-Transport: http" in answer.text
    assert service.stream().attributes()["consumers.stats.total"] == "0"


def test_watch_over_http_passes_as_it_comes(behind: Easq) -> None:
    """Each item at once, though nginx would wait for a full buffer."""
    command = ("watch", "--transport", "http", "--commit", "output", "-q", "-o", "raw", "-n", "2")
    with behind.start(*command) as process:
        assert process.stdout is not None
        for data in ("first", "second"):
            behind("put", "-q", "-d", data)
            assert process.stdout.readline().decode() == f"{data}\n"
        assert process.wait() == 0
    assert behind("count").text == "0\n"


def test_events_of_a_model_pass_one_by_one(
    serve: Serve, make_nginx: MakeNginx, upstream: Callable[[Reply], Upstream]
) -> None:
    """Through nginx, gateway and instance: the model sends the next one when the caller has the one before."""
    read = threading.Semaphore(0)

    def does(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for number in range(3):
            handler.wfile.write(b"data: %d\n\n" % number)
            assert read.acquire(timeout=PATIENCE_S)
        handler.close_connection = True

    service = serve("--model", upstream(does).url, storage="memory:")
    with Connection(make_nginx(service.port).port) as connection:
        connection.send_request("POST", "/api/predict/model/events", body=b"")
        assert connection.read_head()[0] == 200
        for number in range(3):
            assert connection.read_until(b"data: %d\n\n" % number)
            read.release()
        assert connection.read_until(b"0\r\n\r\n")


def test_work_over_http(behind: Easq) -> None:
    with behind.start("work", "-q", "--transport", "http", "--", "tr", "a-z", "A-Z") as process:
        done = behind("predict", "-d", "hello", "--timeout", "60s")
        assert (done.status, done.text) == (0, "HELLO")
        process.terminate()
        assert process.wait() == 0


def test_websockets_pass_as_the_documentation_sets_nginx_up(
    easq: Easq, service: Service, make_nginx: MakeNginx
) -> None:
    shown = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "serve.md").read_text(), re.DOTALL)
    assert shown is not None
    locations = (
        shown[1].replace("{", "{{").replace("}", "}}").replace("127.0.0.1:3030", "127.0.0.1:{upstream}")
    )
    nginx = make_nginx(service.port, f"server {{{{ listen 127.0.0.1:{{port}};\n{locations} }}}}")
    easq.environ["EASQ_URL"] = nginx.url()
    easq("put", "-q", "-d", "a")
    done = easq("watch", "-q", "--commit", "output", "-n", "1", "-o", "raw")
    assert (done.status, done.text, done.err) == (0, "a\n", "")
    with easq.start("work", "-q", "--", "tr", "a-z", "A-Z") as process:
        assert easq("predict", "-d", "hello", "--timeout", "60s").text == "HELLO"
        process.terminate()
        assert process.wait() == 0
