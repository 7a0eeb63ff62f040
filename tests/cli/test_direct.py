"""easq predict --via direct: the instances themselves, found by discovery."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from easq.cli.app import App
from easq.protocol.signatures import authorization
from tests.cli.conftest import Easq
from tests.cli.direct import Service, service
from tests.client.servers import Behaviour, Server, behaving, broken, free_port, listing, reply

TOKEN = "canary-0123456789-canary-abcd"

__all__ = ["service"]  # the fixture


def test_the_answer_alone_is_printed(easq: Easq, service: Service) -> None:
    done = easq("predict", stdin=b"\n\xff\x00a")
    assert (done.status, done.out, done.err) == (0, b"a\x00\xff\n", "")
    (head, body) = service.requests[0]
    assert head.startswith("POST /api/predict/svc HTTP/1.1\r\n")
    assert body == b"\n\xff\x00a"
    assert "authorization" not in head.lower()


def test_options_say_which_service_without_a_profile(easq: Easq, service: Service) -> None:
    easq("config", "rm", "default", "-y")
    args = ["--via", "direct", "--endpoint", service.endpoint.removeprefix("http://"), "--service", "svc"]
    done = easq(
        *("predict", "-d", "ab", *args, "--path", "v1/x", "--content-type", "a/b", "--header", "X-A: 1")
    )
    assert (done.status, done.out) == (0, b"ba")
    lines = service.requests[0][0].split("\r\n")
    assert lines[0] == "POST /api/predict/svc/v1/x HTTP/1.1"
    assert {"Content-Type: a/b", "X-A: 1"} <= set(lines)
    assert not any(line.startswith("X-A") for line in service.discovery.heads()[0].split("\r\n"))


def test_many_requests_go_to_all_and_are_answered_in_order_with_one_question(
    easq: Easq, service: Service
) -> None:
    (easq.home / "in").write_bytes(b"".join(b"%d1\n" % number for number in range(10, 30)))
    done = easq("predict", "-f", "in", "-c", "4", "-q")
    assert (done.status, done.err) == (0, "")
    assert done.out.split() == [b"1%s" % str(number)[::-1].encode() for number in range(10, 30)]
    assert [len(instance.requests) for instance in service.instances] == [10, 10]
    assert len(service.discovery.requests) == 1


def test_a_second_run_within_the_refresh_asks_nobody(easq: Easq, service: Service) -> None:
    for _ in range(3):
        assert easq("predict", "-d", "ab", "--refresh", "1h").out == b"ba"
    assert len(service.discovery.requests) == 1
    (file,) = service.cache.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert easq("predict", "-d", "ab", "--refresh", "1ms").out == b"ba"
    assert len(service.discovery.requests) >= 2


def test_an_old_list_serves_where_discovery_fails_with_one_warning(easq: Easq, service: Service) -> None:
    easq("predict", "-d", "ab")
    service.listed.now = reply(200, b'{"endpoints":{"items":[]}}')
    done = easq("predict", "-d", "ab", "--refresh", "1ms", env={"XDG_CACHE_HOME": ""})
    assert (done.status, done.out) == (0, b"ba")
    assert done.err == (
        f"easq: warning: discovery at {service.endpoint} knows no instance of svc; the last good list is used\n"
    )


@pytest.mark.parametrize("workers", ["1", "4"])
def test_an_instance_that_fails_is_passed_over_and_shown(easq: Easq, service: Service, workers: str) -> None:
    service.behaviours[0].now = broken
    (easq.home / "in").write_bytes(b"ab\ncd\n")
    done = easq("predict", "-f", "in", "--show-instance", "-c", workers)
    assert (done.status, done.out) == (0, b"ba\ndc\n")
    shown = [line for line in done.err.splitlines() if "attempt" in line]
    address = re.escape(f"127.0.0.1:{service.instances[1].port}")
    time = r"[0-9]+\.[0-9] ms"
    for line in shown:
        assert re.fullmatch(
            rf"\[INFO\] {address} attempt [12]: (connect {time}, )?first byte {time}, total {time}", line
        )
    assert sum("attempt 2" in line for line in shown) == 1


def test_the_instance_stands_in_the_record(easq: Easq, service: Service) -> None:
    done = easq("predict", "-d", "ab", "--show-instance", "-o", "json")
    assert (done.status, done.err) == (0, "")
    record = json.loads(done.out)
    assert record["data"] == "ba"
    instance = record["instance"]
    assert instance["address"] in [f"127.0.0.1:{one.port}" for one in service.instances]
    assert instance["attempt"] == 1
    assert 0 < instance["connect_ms"] < instance["first_byte_ms"] <= instance["total_ms"]
    assert "instance" not in json.loads(easq("predict", "-d", "ab", "-o", "json").out)


def test_many_at_a_time_have_their_instances_in_their_records_too(easq: Easq, service: Service) -> None:
    (easq.home / "in").write_bytes(b"ab\ncd\nef\n")
    done = easq("predict", "-f", "in", "-c", "2", "--show-instance", "-o", "json", "-q")
    assert (done.status, done.err) == (0, "")
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [(record["n"], record["data"]) for record in records] == [(0, "ba"), (1, "dc"), (2, "fe")]
    for instance in (record["instance"] for record in records):
        assert instance["address"] in [f"127.0.0.1:{one.port}" for one in service.instances]
        assert instance["attempt"] == 1
        assert 0 <= (instance["connect_ms"] or 0) < instance["first_byte_ms"] <= instance["total_ms"]
    assert records[0]["instance"]["connect_ms"] > 0


@pytest.mark.parametrize("workers", ["1", "4"])
@pytest.mark.parametrize("sign", ["auto", "hmac"])
def test_a_token_signs_and_does_not_travel(easq: Easq, service: Service, sign: str, workers: str) -> None:
    (easq.home / "in").write_bytes(b"ab\ncd\n")
    options = ("-f", "in", "-q", "-c", workers, "--sign", sign, "--path", "/v1")
    done = easq("predict", *options, env={"EASQ_TOKEN": TOKEN})
    assert (done.status, done.out) == (0, b"ba\ndc\n")
    for head, body in service.requests:
        sent = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        assert sent["Content-MD5"] == hashlib.md5(body).hexdigest()
        assert sent["Authorization"] == authorization(
            TOKEN, sent["Content-MD5"], sent["Content-Type"], sent["Date"], "/api/predict/svc/v1"
        )
        assert TOKEN not in head


def test_the_token_itself_or_none_on_demand(easq: Easq, service: Service) -> None:
    for sign in ("token", "none"):
        assert easq("predict", "-d", "ab", "--sign", sign, env={"EASQ_TOKEN": TOKEN}).status == 0
    heads = [head for head, _ in service.requests]
    assert sum(f"Authorization: {TOKEN}" in head for head in heads) == 1
    assert sum("authorization" in head.lower() for head in heads) == 1
    done = easq("predict", "-d", "ab", "--sign", "hmac")
    assert (done.status, done.err) == (
        7,
        "easq: --sign hmac needs a token\nhint: --token-file, or EASQ_TOKEN\n",
    )


def test_a_token_that_goes_to_a_public_address_in_the_clear_is_warned_about(
    easq: Easq, service: Service
) -> None:
    private = {"ip": "127.0.0.1", "port": service.instances[0].port, "weight": 1}
    items = [private, {"ip": "8.8.8.8", "port": 9, "weight": 0}]  # drained: nothing is sent there
    service.listed.now = reply(200, json.dumps({"endpoints": {"items": items}}).encode())
    done = easq("predict", "-d", "ab", "--sign", "token", env={"EASQ_TOKEN": TOKEN})
    assert (done.status, done.out) == (0, b"ba")
    assert done.err == ("easq: warning: the token travels unencrypted, over http and beyond this network\n")
    assert easq("predict", "-d", "ab", env={"EASQ_TOKEN": TOKEN}).err == ""


def test_an_endpoint_that_is_none_is_found_by_config_validate(easq: Easq, service: Service) -> None:
    assert easq("config", "validate").status == 0
    done = easq("config", "set", "endpoint", "ftp://h")
    assert (done.status, done.err.splitlines()[0]) == (
        13,
        "easq: the endpoint ftp://h does not begin with http:// or https://",
    )
    easq.config.write_text(easq.config.read_text().replace(service.endpoint, "ftp://h"))
    done = easq("config", "validate")
    assert done.status == 13
    assert "profiles.default: the endpoint ftp://h does not begin with http:// or https://" in done.err
    assert service.discovery.requests == []


def test_no_talk_and_no_file_shows_token_or_signature(easq: Easq, service: Service) -> None:
    runs = [
        easq("predict", "-d", "ab", "-vvv", "--sign", sign, env={"EASQ_TOKEN": TOKEN})
        for sign in ("hmac", "token")
    ]
    sent = [head.partition("Authorization: ")[2].partition("\r\n")[0] for head, _ in service.requests]
    for run in runs:
        assert run.status == 0
        assert all(secret not in run.text + run.err for secret in (TOKEN, *sent, sent[0][4:], sent[-1][4:]))
    (file,) = service.cache.iterdir()
    assert TOKEN not in file.read_text()
    assert TOKEN not in "".join(service.discovery.heads())


def test_a_redirect_takes_no_token_elsewhere(easq: Easq, service: Service) -> None:
    with behaving(Behaviour(reply(200, b"stolen"))) as other:
        leading = reply(307, b"", Location=f"http://127.0.0.1:{other.port}/")
        for behaviour in service.behaviours:
            behaviour.now = leading
        done = easq("predict", "-d", "ab", "--sign", "token", env={"EASQ_TOKEN": TOKEN})
        assert done.status == 5
        service.listed.now = leading
        assert easq("predict", "-d", "ab", "--refresh", "1ms", env={"EASQ_TOKEN": TOKEN}).status == 5
        assert other.connections == 0


def test_instances_are_never_behind_a_proxy() -> None:
    app = App({"HTTP_PROXY": "http://127.0.0.1:1"})
    try:
        assert dict(app.instances.settings.environ) == {}
    finally:
        app.close()


def test_all_down_is_unreachable(easq: Easq, service: Service) -> None:
    service.listed.now = listing(Server(lambda _server, _peer: None, port=free_port()))
    done = easq("predict", "-d", "ab", "--timeout", "1s")
    assert (done.status, done.out) == (6, b"")
    assert done.err.startswith("easq: connection to http://127.0.0.1:")


def test_no_list_is_said_once_for_many_requests(easq: Easq, service: Service) -> None:
    service.listed.now = reply(500, b"oops")
    done = easq("predict", "-f", "-", "-q", "--timeout", "1s", stdin=b"a\nb\nc\n")
    assert (done.status, done.out) == (5, b"")
    assert done.err.startswith(f"easq: discovery at {service.endpoint}: the server answered 500: oops\n")
    assert service.requests == []


@pytest.mark.parametrize(("status", "expected"), [(400, 4), (401, 7), (404, 8), (500, 5)])
def test_what_the_model_refuses_is_the_exit_status(
    easq: Easq, service: Service, status: int, expected: int
) -> None:
    for behaviour in service.behaviours:
        behaviour.now = reply(status, b"no \x1b]0;x\x07")
    done = easq("predict", "-d", "ab")
    assert (done.status, done.out) == (expected, b"")
    assert len(service.requests) == 1
    assert "\x1b" not in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sign", "hmac"], "--sign is only for --via gateway and direct"),
        (["--show-instance"], "--show-instance is only for --via gateway, direct, modelarts and websocket"),
        (["--endpoint", "e"], "--endpoint is only for --via direct and modelarts"),
        (["--service", "s"], "--service is only for --via direct and modelarts"),
        (["--refresh", "1s"], "--refresh is only for --via direct and modelarts"),
        (["--via", "direct", "--tags", "a=b"], "--tags is only for --via queue"),
        (
            ["--via", "direct", "--endpoint", "e", "--service", "a/b"],
            "the service 'a/b' is not a name: 1 to 128 of A-Z a-z 0-9 . _ -",
        ),
        (
            ["--via", "direct", "--endpoint", "e", "--service", "s", "--refresh", "0"],
            "the refresh must be above 0",
        ),
    ],
)
def test_options_that_do_not_go_together(easq: Easq, args: list[str], message: str) -> None:
    done = easq("predict", "-d", "x", *args)
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(f"easq: {message}\n")


def test_what_is_missing_is_named(easq: Easq) -> None:
    done = easq("predict", "-d", "x", "--via", "direct")
    assert done.status == 13
    assert done.err == (
        "easq: no endpoint is known for direct connect\n"
        "hint: --endpoint, or EASQ_ENDPOINT, or easq config set endpoint VALUE\n"
    )
    done = easq("endpoints", env={"EASQ_ENDPOINT": "http://127.0.0.1:1"})
    assert (done.status, done.err.splitlines()[0]) == (13, "easq: no service is known for direct connect")


def test_a_signed_request_through_the_gateway(easq: Easq, service: Service) -> None:
    url = f"http://127.0.0.1:{service.instances[0].port}/api/predict/model"
    args = ["predict", "-d", "ab", "--via", "gateway", "--url", url, "--path", "/v1"]
    for sign in ("hmac", "auto", "none"):
        assert easq(*args, "--sign", sign, env={"EASQ_TOKEN": TOKEN}).out == b"ba"
    sent = [dict(line.split(": ", 1) for line in head.split("\r\n")[1:]) for head, _ in service.requests]
    assert sent[0]["Authorization"] == authorization(
        TOKEN, sent[0]["Content-MD5"], sent[0]["Content-Type"], sent[0]["Date"], "/api/predict/model/v1"
    )
    assert sent[1]["Authorization"] == TOKEN
    assert "Authorization" not in sent[2]
