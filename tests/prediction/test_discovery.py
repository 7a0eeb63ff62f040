"""Discovery over real sockets: what is asked and when, and that nothing bad replaces the last good list."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from easq import errors
from easq.model import Instance
from easq.net.balance import Balance
from easq.net.settings import NetworkSettings
from easq.prediction.cache import list_file, read_list, write_list
from easq.prediction.discovery import Discovery
from easq.prediction.lookup import EAS_PATHS, EasLookup
from tests.client.servers import (
    Behaviour,
    Peer,
    Server,
    behaving,
    broken,
    dripping,
    eventually,
    free_port,
    reply,
)

SETTINGS = NetworkSettings(
    connect_timeout_s=2.0, headers={"Authorization": "canary-token-canary"}, environ={}
)
FIRST, SECOND = Instance("127.0.0.1", 5001, 100), Instance("127.0.0.1", 5002, 100)


def saying(*items: dict[str, Any]) -> Callable[[Peer], None]:
    return reply(200, json.dumps({"endpoints": {"items": items}}).encode())


def entry(instance: Instance = FIRST, **change: Any) -> dict[str, Any]:
    return {"ip": instance.ip, "port": instance.port, "weight": instance.weight, **change}


GOOD = saying(entry(FIRST), entry(SECOND))


class Watched:
    """A discovery service, what it does now, and a client of it with what that warned about."""

    def __init__(self, server: Server, behaviour: Behaviour, folder: Path) -> None:
        self.server, self.behaviour, self.folder = server, behaviour, folder
        self.warnings: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def lookup(self) -> EasLookup:
        return EasLookup(self.endpoint, "svc")

    def client(self, **options: Any) -> Discovery:
        return Discovery(
            self.lookup, SETTINGS, **{"folder": self.folder, "warn": self.warnings.append, **options}
        )


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    behaviour = Behaviour(GOOD)
    with behaving(behaviour) as server:
        yield Watched(server, behaviour, tmp_path / "easq")


def keep(watched: Watched, *instances: Instance, age_s: float) -> None:
    file = list_file(watched.folder, watched.endpoint, "svc")
    write_list(file, watched.lookup.write(instances), round(time.time()) - age_s)


def huge(peer: Peer) -> None:
    peer.answer(200, GOOD_TEXT + b" " * 10_000_000)


GOOD_TEXT = json.dumps({"endpoints": {"items": [entry(SECOND)]}}).encode()


def elsewhere(peer: Peer) -> None:
    peer.answer(302, b"", Location="http://127.0.0.1:1/")


#: every bad answer of the list of faults, and what the warning says
BAD: dict[str, tuple[Callable[[Peer], None], str]] = {
    "500": (reply(500, b"oops"), "oops"),
    "503": (reply(503, b""), "answered 503"),
    "404": (reply(404, b""), "answered 404"),
    "401": (reply(401, b""), "answered 401"),
    "204": (reply(204), "status 204"),
    "201": (reply(201, GOOD_TEXT), "status 201"),
    "empty": (saying(), "knows no instance"),
    "null": (reply(200, b"null"), "no list endpoints.items"),
    "nothing": (reply(200, b""), "not JSON"),
    "html": (reply(200, b"<html></html>", Content_Type="text/html"), "not JSON"),
    "half": (reply(200, GOOD_TEXT[:30]), "not JSON"),
    "huge": (huge, "above the limit of 1048576 bytes"),
    "100,000 entries": (saying(*[entry()] * 100_000), "above the limit of 1048576 bytes"),
    "redirect": (elsewhere, "a redirect"),
    "reset": (broken, "lost before the answer"),
    "only bad entries": (
        saying(entry(port=0), entry(weight=-1), entry(ip="169.254.169.254"), entry(ip="evil:80@x")),
        "4 entries are none, the first because port 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_changes_nothing_and_is_one_warning(watched: Watched, name: str) -> None:
    with watched.client() as discovery:
        discovery.fill()
        watched.behaviour.now, reason = BAD[name]
        assert [discovery.refresh() for _ in range(3)] == [False] * 3
        assert discovery.instances == (FIRST, SECOND)
        assert discovery.next() in (FIRST, SECOND)
        (warning,) = watched.warnings
        assert reason in warning
        assert warning.endswith("the last good list is used")
        cached = read_list(list_file(watched.folder, watched.endpoint, "svc"), watched.lookup.read)
        assert cached is not None
        assert cached.instances == (FIRST, SECOND)
        watched.behaviour.now = saying(entry(SECOND, weight=7))
        assert discovery.refresh()
        assert [instance.weight for instance in discovery.instances] == [7]


def test_an_answer_that_drips_ends_before_the_next_question(watched: Watched) -> None:
    with watched.client(refresh_s=1.0) as discovery:
        discovery.fill()
        watched.behaviour.now = dripping
        began = time.monotonic()
        assert not discovery.refresh()
        assert time.monotonic() - began < 5
        assert discovery.instances == (FIRST, SECOND)
        assert len(watched.warnings) == 1


def test_a_discovery_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    warnings: list[str] = []
    with behaving(Behaviour(GOOD)) as server:
        endpoint = f"http://127.0.0.1:{server.port}"
        discovery = Discovery(EasLookup(endpoint, "svc"), SETTINGS, folder=tmp_path, warn=warnings.append)
        discovery.fill()
    with discovery:
        assert not discovery.refresh()
        assert not discovery.refresh()
        assert discovery.instances == (FIRST, SECOND)
    assert len(warnings) == 1


def test_a_planted_bug_that_takes_an_empty_list_is_caught(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tests above look at does change when an empty answer clears the list."""

    def clearing(self: Discovery, _deadline_s: float, _retry: object) -> None:
        self._balance = Balance()

    with watched.client() as discovery:
        discovery.fill()
        monkeypatch.setattr(Discovery, "_ask", clearing)
        watched.behaviour.now = saying()
        assert discovery.refresh()
        assert discovery.instances != (FIRST, SECOND)
        assert discovery.next() is None


def test_good_entries_hold_beside_bad_ones_with_one_warning(watched: Watched) -> None:
    watched.behaviour.now = saying(entry(port=70000), entry(weight="100"), entry(SECOND))
    with watched.client() as discovery:
        discovery.fill()
        discovery.refresh()
        assert discovery.instances == (SECOND,)
    (warning,) = watched.warnings
    assert warning.endswith("sent 2 of the entries that cannot be used: port 70000 is not 1-65535")


def test_a_warning_comes_again_after_it_was_good_in_between(watched: Watched) -> None:
    with watched.client() as discovery:
        discovery.fill()
        for now in (BAD["500"][0], BAD["null"][0], GOOD, BAD["500"][0]):
            watched.behaviour.now = now
            discovery.refresh()
    assert len(watched.warnings) == 3


def test_what_discovery_says_in_ever_other_words_is_one_warning(watched: Watched) -> None:
    with watched.client() as discovery:
        discovery.fill()
        for number in range(3):
            watched.behaviour.now = reply(500, f"request {number} failed".encode())
            discovery.refresh()
    assert len(watched.warnings) == 1


def test_the_documented_path_comes_first_and_the_newer_one_where_it_is_missing(watched: Watched) -> None:
    with watched.client() as discovery:
        discovery.fill()
    assert [head.split(" ")[1] for head in watched.server.heads()] == [f"{EAS_PATHS[0]}svc"]
    watched.server.requests.clear()

    def newer(peer: Peer) -> None:
        found = watched.server.heads()[-1].startswith("GET /api/v1/servicediscovery/")
        (GOOD if found else reply(404))(peer)

    watched.behaviour.now = newer
    with watched.client(folder=None) as discovery:
        discovery.fill()
        discovery.refresh()
    asked = [head.split(" ")[1] for head in watched.server.heads()]
    assert asked == [f"{EAS_PATHS[0]}svc", f"{EAS_PATHS[1]}svc", f"{EAS_PATHS[1]}svc"]
    assert watched.warnings == []


def test_no_identity_is_sent_and_no_redirect_is_followed(watched: Watched) -> None:
    with behaving(Behaviour(GOOD)) as other:
        watched.behaviour.now = reply(307, b"", Location=f"http://127.0.0.1:{other.port}/x")
        with watched.client() as discovery, pytest.raises(errors.ServerError, match="redirect"):
            discovery.fill(within_s=0.5)
        assert other.connections == 0
    head = "".join(watched.server.heads()).lower()
    assert head.startswith("get ")
    assert "canary" not in head
    assert "authorization" not in head
    assert "queueservice" not in head


def test_a_young_list_on_disk_asks_nobody(watched: Watched) -> None:
    with watched.client() as discovery:
        discovery.fill()
    for _ in range(5):
        with watched.client() as discovery:
            discovery.fill()
            assert discovery.instances == (FIRST, SECOND)
            assert 0 <= discovery.age_s < 5
    assert len(watched.server.requests) == 1


@pytest.mark.parametrize("age_s", [60, -3600])
def test_an_old_list_and_one_of_the_future_ask(watched: Watched, age_s: float) -> None:
    keep(watched, SECOND, age_s=age_s)
    with watched.client() as discovery:
        discovery.fill()
        assert discovery.instances == (FIRST, SECOND)
    assert len(watched.server.requests) == 1


def test_an_old_list_holds_where_discovery_has_nothing_better(watched: Watched) -> None:
    keep(watched, SECOND, age_s=86400)
    watched.behaviour.now = reply(503)
    with watched.client() as discovery:
        discovery.fill()
        assert discovery.instances == (SECOND,)
        assert discovery.age_s > 86000
    assert len(watched.warnings) == 1
    assert len(watched.server.requests) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("404", errors.NotFound),
        ("500", errors.ServerError),
        ("empty", errors.Unreachable),
        ("null", errors.ServerError),
        ("401", errors.AuthFailed),
    ],
)
def test_the_first_answer_must_be_good(watched: Watched, name: str, kind: type[errors.EasqError]) -> None:
    watched.behaviour.now = BAD[name][0]
    with watched.client() as discovery, pytest.raises(kind, match=r"^discovery at |^the answer of discovery"):
        discovery.fill(within_s=0.5)
    assert watched.warnings == []


def test_this_machine_is_no_instance_of_a_service_elsewhere(tmp_path: Path) -> None:
    file = list_file(tmp_path, "http://10.255.255.1:9", "svc")
    lookup = EasLookup("http://10.255.255.1:9", "svc")
    write_list(file, lookup.write([FIRST]), time.time())
    with Discovery(lookup, SETTINGS, folder=tmp_path) as discovery:
        with pytest.raises(errors.EasqError):
            discovery.fill(within_s=0.2)
        assert discovery.instances == ()


def test_no_discovery_at_all_is_unreachable() -> None:
    with Discovery(EasLookup(f"127.0.0.1:{free_port()}", "svc"), SETTINGS) as discovery:
        with pytest.raises(errors.Unreachable, match="refused"):
            discovery.fill(within_s=0.3)


def test_many_threads_fill_with_one_question(watched: Watched) -> None:
    with watched.client(folder=None) as discovery:
        threads = [threading.Thread(target=discovery.fill) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert discovery.instances == (FIRST, SECOND)
    assert len(watched.server.requests) == 1


def test_a_thread_keeps_the_list_fresh_and_nobody_else_asks(watched: Watched) -> None:
    with watched.client(refresh_s=0.5) as discovery:
        discovery.fill()
        discovery.keep_fresh()
        discovery.keep_fresh()
        for _ in range(10_000):
            assert discovery.next() is not None
        watched.behaviour.now = saying(entry(FIRST, weight=1), entry(SECOND, weight=3))
        assert eventually(lambda: [one.weight for one in discovery.instances] == [1, 3])
        picks = [discovery.next() for _ in range(400)]
        assert picks.count(Instance("127.0.0.1", 5002, 3)) == 300
        watched.behaviour.now = BAD["empty"][0]
        assert eventually(lambda: bool(watched.warnings))
        assert len(discovery.instances) == 2
    assert len(watched.server.requests) < 40


def test_after_the_end_nobody_is_asked(watched: Watched) -> None:
    with watched.client(refresh_s=0.1) as discovery:
        discovery.fill()
        discovery.keep_fresh()
        assert eventually(lambda: len(watched.server.requests) > 1)
    assert eventually(lambda: not any(t.name == "discovery-svc" for t in threading.enumerate()))
