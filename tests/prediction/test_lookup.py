"""Look-ups over real sockets; EAS's in the run of things is tested in test_discovery.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from easq import errors
from easq.model import Instance
from easq.net.http import Transport
from easq.net.settings import NetworkSettings
from easq.prediction.cache import limiter_file, list_file, write_list
from easq.prediction.discovery import Discovery
from easq.prediction.exchanges import predict_direct
from easq.prediction.lookup import EasLookup, ModelArtsLookup
from tests.client.servers import Behaviour, Server, behaving, eventually, host_endpoints, listing, reply

TOKEN = "canary-token-canary"
SETTINGS = NetworkSettings(connect_timeout_s=2.0, headers={"X-Own": "canary-header"}, environ={})
BAD_TOKEN = reply(401, b'{"error_code":"APIG.0301","error_msg":"Incorrect IAM authentication information"}')


class Managed:
    """ModelArts' management, what it does now, and an instance that answers."""

    def __init__(self, server: Server, behaviour: Behaviour, instance: Server, folder: Path) -> None:
        self.server, self.behaviour, self.instance, self.folder = server, behaviour, instance, folder
        self.warnings: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def asked(self) -> int:
        return len(self.server.requests)

    def client(self, *, spacing_s: float = 6.0, **options: Any) -> Discovery:
        lookup = ModelArtsLookup(self.endpoint, "p1", "s1", TOKEN, spacing_s=spacing_s)
        return Discovery(lookup, SETTINGS, **{"folder": self.folder, "warn": self.warnings.append, **options})

    def make_old(self, seconds: float) -> None:
        """The list on disk is `seconds` old, and nobody asked since."""
        file = list_file(self.folder, self.endpoint, "p1/s1")
        here = Instance("127.0.0.1", self.instance.port, 100)
        lookup = ModelArtsLookup(self.endpoint, "p1", "s1", TOKEN)
        write_list(file, lookup.write([here]), time.time() - seconds)
        limiter_file(self.folder, self.endpoint).unlink(missing_ok=True)


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Managed]:
    with behaving(Behaviour(reply(200, b"yes"))) as instance:
        behaviour = Behaviour(host_endpoints(instance))
        with behaving(behaviour) as server:
            yield Managed(server, behaviour, instance, tmp_path / "easq")


def test_the_management_gets_the_token_and_the_instances_get_none(managed: Managed) -> None:
    with managed.client() as discovery, Transport(NetworkSettings(environ={})) as transport:
        discovery.fill()
        served = transport.run(
            predict_direct(discovery, transport.settings, b"x", path="/v1/a", timeout_s=30.0)
        )
        plain = transport.run(predict_direct(discovery, transport.settings, b"x", timeout_s=30.0))
    assert (served.data, plain.data) == (b"yes", b"yes")
    (look_up,) = managed.server.heads()
    lines = look_up.split("\r\n")
    assert lines[0] == "GET /v1/p1/services/s1/predict/endpoints?type=host_endpoints HTTP/1.1"
    assert f"X-Auth-Token: {TOKEN}" in lines
    assert "canary-header" not in look_up
    heads = managed.instance.heads()
    assert [head.split("\r\n")[0] for head in heads] == ["POST /v1/a HTTP/1.1", "POST / HTTP/1.1"]
    assert "canary" not in "".join(heads)
    assert "authorization" not in "".join(heads).lower()


def test_a_run_within_the_refresh_asks_nobody(managed: Managed) -> None:
    for _ in range(5):
        with managed.client() as discovery:
            discovery.fill()
            assert len(discovery.instances) == 1
    assert managed.asked == 1
    managed.make_old(59.0)
    with managed.client() as discovery:
        discovery.fill()
    assert managed.asked == 1


def test_an_older_list_is_asked_for_again(managed: Managed) -> None:
    managed.make_old(61.0)
    with managed.client() as discovery:
        discovery.fill()
        assert discovery.age_s < 30
    assert managed.asked == 1


def test_a_failed_look_up_counts_and_the_next_run_does_not_ask(managed: Managed) -> None:
    managed.behaviour.now = reply(500, b"oops")
    for number in range(4):
        with managed.client() as discovery, pytest.raises(errors.EasqError) as caught:
            discovery.fill(within_s=1.0)
        if number:
            assert caught.value.message.endswith("was asked just now, and is once in 6 s")
            assert caught.value.hint.startswith("there is no list of instances yet; try again in ")
    assert managed.asked == 1


def test_an_old_list_serves_while_nobody_may_ask(managed: Managed) -> None:
    managed.behaviour.now = reply(500, b"oops")
    with managed.client(spacing_s=600.0) as discovery, pytest.raises(errors.ServerError):
        discovery.fill(within_s=1.0)
    write_list(
        list_file(managed.folder, managed.endpoint, "p1/s1"),
        ModelArtsLookup(managed.endpoint, "p1", "s1", TOKEN).write([Instance("127.0.0.1", 7, 100)]),
        time.time() - 3600,
    )
    with managed.client(spacing_s=600.0) as discovery:
        discovery.fill()
        assert not discovery.refresh()
        assert discovery.instances == (Instance("127.0.0.1", 7, 100),)
    assert managed.asked == 1
    assert managed.warnings == []


def test_who_waits_for_its_turn_takes_what_another_is_answered(managed: Managed) -> None:
    """The second of two runs that begin together asks nobody, and has the first one's list."""
    go = threading.Event()
    answer = managed.behaviour.now

    def slowly(peer: Any) -> None:
        go.wait(30)
        answer(peer)

    managed.behaviour.now = slowly
    with managed.client() as first, managed.client() as second:
        threads = [threading.Thread(target=one.fill) for one in (first, second)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: managed.asked == 1)
        go.set()
        for thread in threads:
            thread.join()
        assert first.instances == second.instances != ()
    assert managed.asked == 1


def test_refreshes_are_never_closer_than_the_spacing(managed: Managed) -> None:
    with managed.client(refresh_s=0.01) as discovery:
        discovery.fill()
        assert discovery.refresh_s == 6.0
        assert not any(discovery.refresh() for _ in range(20))
    assert managed.asked == 1


def test_a_run_takes_the_younger_list_that_another_left_on_disk(managed: Managed) -> None:
    with managed.client(spacing_s=0.2, refresh_s=0.2) as discovery:
        discovery.fill()
        discovery.keep_fresh()
        assert eventually(lambda: managed.asked > 1)
        managed.behaviour.now = reply(500)
        file = list_file(managed.folder, managed.endpoint, "p1/s1")
        theirs = Instance("127.0.0.1", 9, 100)

        def taken() -> bool:
            write_list(file, discovery.lookup.write([theirs]), time.time())
            return discovery.instances == (theirs,)

        assert eventually(taken)


@pytest.mark.parametrize(
    ("answer", "status", "exit_code", "said"),
    [
        (BAD_TOKEN, 401, 7, "Incorrect IAM authentication information (APIG.0301)"),
        (reply(403, b'{"error_code":"ModelArts.0203","error_msg":"no"}'), 403, 7, "no (ModelArts.0203)"),
        (reply(404, b'{"error_code":"ModelArts.3502","error_msg":"gone"}'), 404, 8, "gone (ModelArts.3502)"),
        (reply(429, b'{"error_code":"APIG.0308","error_msg":"slow"}'), 429, 4, "slow (APIG.0308)"),
        (reply(500, b'{"error_code":"x","error_msg":"oops"}'), 500, 5, "oops (x)"),
        (reply(200, b"<html></html>"), 500, 5, "is no list of instances: it is not JSON"),
        (reply(200, b"{}"), 502, 6, "knows no instance of s1"),
        (reply(307, b"", Location="http://127.0.0.1:1/"), 307, 5, "redirect"),
    ],
)
def test_what_the_management_refuses_is_told_with_its_class_and_asked_once(
    managed: Managed, answer: Any, status: int, exit_code: int, said: str
) -> None:
    managed.behaviour.now = answer
    with managed.client() as discovery, pytest.raises(errors.EasqError) as caught:
        discovery.fill(within_s=5.0)
    assert managed.asked == 1
    error = caught.value
    assert (error.status, error.exit) == (status, exit_code)
    assert said in error.message
    assert f"ModelArts at {managed.endpoint}" in error.message
    hints = {7: "check the token: an IAM token", 8: "check the ids", 4: "20 times a minute"}
    assert hints.get(exit_code, "") in error.hint


@pytest.mark.parametrize("answer", [BAD_TOKEN, reply(500), reply(200, b"{}"), reply(429)])
def test_a_bad_answer_changes_nothing_and_is_one_warning(managed: Managed, answer: Any) -> None:
    managed.make_old(3600)
    managed.behaviour.now = answer
    with managed.client() as discovery:
        discovery.fill()
        assert discovery.instances == (Instance("127.0.0.1", managed.instance.port, 100),)
    (warning,) = managed.warnings
    assert warning.endswith("the last good list is used")


def test_services_of_one_platform_share_its_turns_and_no_list(managed: Managed) -> None:
    with managed.client() as discovery:
        discovery.fill()
    other = ModelArtsLookup(managed.endpoint, "p1", "s2", TOKEN)
    with Discovery(other, SETTINGS, folder=managed.folder) as discovery:
        with pytest.raises(errors.Unreachable, match="was asked just now"):
            discovery.fill(within_s=0.1)
    assert managed.asked == 1


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a?b", "a b", "a\r\nX: y", "x" * 129, "名"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(errors.UsageError, match=r"^the service "):
        EasLookup("http://e", name)
    with pytest.raises(errors.UsageError, match=r"^the service "):
        ModelArtsLookup("http://e", "p", name, TOKEN)
    with pytest.raises(errors.UsageError, match=r"^the project "):
        ModelArtsLookup("http://e", name, "s", TOKEN)


@pytest.mark.parametrize("endpoint", ["http://u:p@h", "ftp://h", "http://h:0", "", "http://h/?x=y"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    for make in (lambda: EasLookup(endpoint, "svc"), lambda: ModelArtsLookup(endpoint, "p", "s", TOKEN)):
        with pytest.raises(errors.ConfigError, match=r"endpoint|url"):
            make()


def test_the_management_is_asked_over_tls_unless_said_otherwise() -> None:
    assert ModelArtsLookup("h", "p", "s", TOKEN).endpoint == "https://h"
    assert EasLookup("h", "s").endpoint == "http://h"


def test_a_refresh_that_is_none() -> None:
    with pytest.raises(errors.UsageError, match="must be above 0"):
        Discovery(EasLookup("http://e", "s"), SETTINGS, refresh_s=0.0)


def test_a_list_of_eas_names_no_scheme(managed: Managed) -> None:
    managed.behaviour.now = listing(managed.instance)
    with Discovery(EasLookup(managed.endpoint, "svc"), SETTINGS) as discovery:
        discovery.fill()
        assert [one.url for one in discovery.instances] == [f"http://127.0.0.1:{managed.instance.port}"]
