"""easq predict --via modelarts: the instances of ModelArts, found by its management."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Easq
from tests.cli.direct import Service, serving
from tests.client.servers import Behaviour, behaving, broken, host_endpoints, reply

TOKEN = "canary-0123456789-canary-abcd"


@pytest.fixture
def service(easq: Easq) -> Iterator[Service]:
    """A service of ModelArts that the current profile calls directly, with its token."""
    with serving(easq, host_endpoints) as made:
        easq.config.parent.mkdir(parents=True, mode=0o700)
        easq.config.touch(mode=0o600)
        easq.config.write_text(
            f'version = 1\nprofile = "huawei"\n[profiles.huawei]\nvia = "modelarts"\n'
            f'endpoint = "{made.endpoint}"\nproject = "p1"\nservice = "s1"\ntoken = "{TOKEN}"\n'
        )
        yield made


def test_the_answer_alone_is_printed_and_the_token_stays_with_the_management(
    easq: Easq, service: Service
) -> None:
    done = easq(
        "predict", "--path", "v1/x", "--content-type", "a/b", "--header", "X-A: 1", stdin=b"\n\xff\x00a"
    )
    assert (done.status, done.out, done.err) == (0, b"a\x00\xff\n", "")
    (look_up,) = service.discovery.heads()
    assert f"X-Auth-Token: {TOKEN}\r\n" in look_up + "\r\n"
    assert "X-A:" not in look_up
    (head,) = service.heads
    assert head.startswith("POST /v1/x HTTP/1.1\r\n")
    assert {"Content-Type: a/b", "X-A: 1"} <= set(head.split("\r\n"))
    assert TOKEN not in head
    assert "auth" not in head.lower()


def test_without_a_path_the_root_is_called(easq: Easq, service: Service) -> None:
    assert easq("predict", "-d", "ab").out == b"ba"
    assert service.heads[0].startswith("POST / HTTP/1.1\r\n")


def test_many_runs_and_requests_look_up_once(easq: Easq, service: Service) -> None:
    (easq.home / "in").write_bytes(b"".join(b"%d1\n" % number for number in range(10, 30)))
    for _ in range(3):
        done = easq("predict", "-f", "in", "-c", "4", "-q")
        assert (done.status, done.err) == (0, "")
        assert done.out.split() == [b"1%s" % str(number)[::-1].encode() for number in range(10, 30)]
    assert [len(instance.requests) for instance in service.instances] == [30, 30]
    assert easq("endpoints").status == 0
    assert len(service.discovery.requests) == 1


def test_an_instance_that_fails_is_passed_over_and_the_other_shown(easq: Easq, service: Service) -> None:
    service.behaviours[0].now = broken
    (easq.home / "in").write_bytes(b"ab\ncd\n")
    done = easq("predict", "-f", "in", "--show-instance", "-o", "json", "-q")
    assert done.status == 0
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [record["data"] for record in records] == ["ba", "dc"]
    shown = [record["instance"] for record in records]
    assert {one["address"] for one in shown} == {f"127.0.0.1:{service.instances[1].port}"}
    assert sorted(one["attempt"] for one in shown) == [1, 2]


def test_a_failed_look_up_counts_for_the_next_run(easq: Easq, service: Service) -> None:
    service.listed.now = reply(401, b'{"error_code":"APIG.0301","error_msg":"Incorrect IAM token"}')
    done = easq("predict", "-d", "ab")
    assert (done.status, done.out) == (7, b"")
    assert done.err == (
        f"easq: ModelArts at {service.endpoint}: Incorrect IAM token (APIG.0301)\n"
        "hint: check the token: an IAM token of the project, which lives 24 hours\n"
    )
    done = easq("predict", "-d", "ab", "--timeout", "100ms")
    assert done.status == 6
    assert "was asked just now, and is once in 6 s" in done.err
    assert len(service.discovery.requests) == 1
    assert service.heads == []


def test_the_limit_of_the_platform_is_told(easq: Easq, service: Service) -> None:
    service.listed.now = reply(429, b'{"error_code":"APIG.0308","error_msg":"throttled"}')
    done = easq("endpoints")
    assert done.status == 4
    assert "hint: an IAM user may look up 20 times a minute; easq does every 60 s\n" in done.err


def test_a_redirect_takes_no_token_elsewhere(easq: Easq, service: Service) -> None:
    with behaving(Behaviour(reply(200, b"stolen"))) as other:
        service.listed.now = reply(307, b"", Location=f"http://127.0.0.1:{other.port}/")
        assert easq("endpoints").status == 5
        assert other.connections == 0


def test_options_say_which_service_without_a_profile(easq: Easq, service: Service) -> None:
    easq("config", "rm", "huawei", "-y")
    args = ["--via", "modelarts", "--service", "s1", "--project", "p1"]
    env = {"EASQ_ENDPOINT": service.endpoint, "EASQ_TOKEN": TOKEN}
    assert easq("predict", "-d", "ab", *args, env=env).out == b"ba"
    record = json.loads(easq("endpoints", *args, "-o", "json", env=env).out)
    assert record["endpoint"] == service.endpoint
    assert record["service"] == "s1"
    assert [one["share"] for one in record["instances"]] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--sign", "hmac"], 2, "--sign is only for --via gateway and direct"),
        (["--tags", "a=b"], 2, "--tags is only for --via queue"),
        (["--binary"], 2, "--binary is only for --via websocket"),
        (["--idle-timeout", "1s"], 2, "--idle-timeout is only for --via websocket"),
        (["--refresh", "0"], 2, "the refresh must be above 0"),
        (
            ["--header", "x-auth-token: T"],
            2,
            "--header x-auth-token cannot be used with --via modelarts: instances get no credentials",
        ),
        (
            ["--header", "Authorization: T"],
            2,
            "--header Authorization cannot be used with --via modelarts: instances get no credentials",
        ),
        (["--project", "a/b"], 2, "the project 'a/b' is not a name: 1 to 128 of A-Z a-z 0-9 . _ -"),
        (["--via", "direct", "--project", "x"], 2, "--project is only for --via modelarts"),
    ],
)
def test_options_that_do_not_go_together(
    easq: Easq, service: Service, args: list[str], status: int, message: str
) -> None:
    done = easq("predict", "-d", "x", *args)
    assert (done.status, done.out) == (status, b"")
    assert done.err.startswith(f"easq: {message}\n")
    assert service.discovery.requests == []


@pytest.mark.usefixtures("service")
def test_what_is_missing_is_named(easq: Easq) -> None:
    easq("config", "unset", "project")
    done = easq("predict", "-d", "x")
    assert (done.status, done.err) == (
        13,
        "easq: no project is known for direct connect\nhint: --project, or easq config set project VALUE\n",
    )
    easq("config", "unset", "token")
    done = easq("predict", "-d", "x")
    assert (done.status, done.err.splitlines()[0]) == (7, "easq: ModelArts needs a token")


@pytest.mark.usefixtures("service")
def test_no_talk_and_no_file_shows_the_token(easq: Easq) -> None:
    done = easq("predict", "-d", "ab", "-vvv")
    assert done.status == 0
    assert TOKEN not in done.text + done.err
    cache = easq.home / ".cache" / "easq"
    assert len(list(cache.iterdir())) == 2
    for file in cache.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
        assert TOKEN not in file.read_text()
