"""Many requests at once: their order, their bounds, and the same rules for each as for one alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from easq import errors
from easq.client.queue import QueueClient, put_operation
from easq.model import Ack, Consumer
from easq.net import pipeline as bulk_module
from easq.net.failures import Unanswered, Unconnected
from easq.net.http import Transport
from easq.net.pipeline import Pipeline, Task, TaskOutcome, asking
from easq.net.retry import Retry, Steps, Times, exchange
from easq.net.settings import NetworkSettings
from easq.protocol.operations import Caller, Operation, Request
from easq.protocol.replies import Reply, read_put
from tests.client.servers import (
    Peer,
    Server,
    answering,
    broken,
    dripping,
    eventually,
    free_port,
    half,
    reply,
    secured,
    silent,
)

TOKEN = "canary-token-canary"
CALLER = Caller(Consumer("g", "u"), TOKEN)
QUICK = NetworkSettings(connect_timeout_s=5.0, request_timeout_s=10.0, environ={})


def puts(*payloads: bytes) -> Iterator[Task[bytes, Operation]]:
    for number, data in enumerate(payloads):
        yield Task(data, put_operation(data, key=f"run-{number}"), len(data))


def put_all(
    url: str,
    tasks: Iterable[Task[bytes, Operation]],
    settings: NetworkSettings = QUICK,
    *,
    workers: int = 4,
    stop_at_failure: bool = False,
    rate: float | None = None,
    open_loop: bool = False,
    retry: Retry = Retry.READ,
) -> list[TaskOutcome[bytes, Ack]]:
    bulk = Pipeline(
        settings, workers=workers, stop_at_failure=stop_at_failure, rate=rate, open_loop=open_loop
    )
    steps = asking(url, CALLER, settings, read_put, retry=retry)
    return [outcome for batch in bulk.run(iter(tasks), steps) for outcome in batch]


def numbering(*, late: Iterable[bytes] = ()) -> Server:
    """A server that answers `p7` with 7; those of `late` only once all others were answered."""
    late = set(late)
    passed = threading.Semaphore(0)

    def handle(server: Server, peer: Peer) -> None:
        while (request := peer.read_request())[0]:
            server.requests.append(request)
            if request[1] in late:
                while not peer.stop.is_set() and not passed.acquire(timeout=0.05):
                    pass
            peer.answer(200, request[1].removeprefix(b"p"))
            if request[1] not in late:
                passed.release()

    return Server(handle)


def test_outcomes_come_in_the_order_of_the_tasks_whichever_is_answered_first() -> None:
    payloads = [b"p%d" % number for number in range(1, 60)]
    with numbering(late=[b"p1", b"p20"]) as server:
        outcomes = put_all(server.url, puts(*payloads), workers=5)
    assert [outcome.what for outcome in outcomes] == payloads
    assert [outcome.result and outcome.result.index for outcome in outcomes] == list(range(1, 60))
    assert sorted(body for _, body in server.requests) == sorted(payloads)
    assert server.connections <= 5


def test_a_request_is_the_one_that_a_single_put_sends() -> None:
    operation = put_operation(b"payload", tags={"a": "b c/ü"}, path="/v1/x y", content_type="a/b", key="k-1")
    with answering(reply(200, b"7")) as server, Transport(QUICK) as transport:
        put_all(server.url, [Task(b"", operation)])
        QueueClient.over(transport, server.url, CALLER).send(operation)
    (many, body), (one, same) = server.requests
    assert body == same == b"payload"
    first, *headers = many.split("\r\n")
    assert first == "POST /api/predict/q/v1/x%20y?a=b+c%2F%C3%BC HTTP/1.1" == one.split("\r\n")[0]
    assert set(headers) == set(one.split("\r\n")[1:])


@pytest.mark.parametrize("size", [0, 1, 255 * 1024, 3 * 1024 * 1024])
def test_a_payload_of_any_size_arrives_whole(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with answering(reply(200, b"7")) as server:
        (outcome,) = put_all(server.url, puts(data))
    assert outcome.error is None
    head, body = server.requests[0]
    assert body == data
    assert f"Content-Length: {size}" in head.split("\r\n")
    assert "Content-Type" not in head


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_put_with_a_key_is_tried_again_under_the_same_key(status: int) -> None:
    with answering(reply(status), reply(200, b"7")) as server:
        (outcome,) = put_all(server.url, puts(b"x"))
    assert outcome.result == Ack(7, "")
    assert outcome.times.attempts == 2
    assert outcome.times.doubt == (status not in (429,))
    assert [head.count("Idempotency-Key: run-0") for head in server.heads()] == [1, 1]


@pytest.mark.parametrize("break_off", [broken, half])
def test_a_put_without_an_answer_is_in_doubt_and_sent_again(break_off: object) -> None:
    with answering(break_off, reply(200, b"7")) as server:
        (outcome,) = put_all(server.url, puts(b"x"))
    assert (outcome.result, outcome.times.attempts, outcome.times.doubt) == (Ack(7, ""), 2, True)


def test_a_503_that_says_not_stored_leaves_no_doubt() -> None:
    with answering(reply(503, X_Easq_Stored="no"), reply(200, b"7")) as server:
        (outcome,) = put_all(server.url, puts(b"x"))
    assert (outcome.result, outcome.times.attempts, outcome.times.doubt) == (Ack(7, ""), 2, False)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 413, 422])
def test_a_refusal_is_final(status: int) -> None:
    with answering(reply(status, Location="/elsewhere")) as server:
        (outcome,) = put_all(server.url, puts(b"x"))
    assert outcome.error is not None
    assert outcome.error.status in (status, 502)
    assert len(server.requests) == 1


def test_a_full_queue_is_asked_three_times() -> None:
    with answering(reply(429)) as server:
        (outcome,) = put_all(server.url, puts(b"x"))
    assert isinstance(outcome.error, errors.QueueFull)
    assert len(server.requests) == 3


def test_a_put_without_a_key_that_may_be_stored_is_not_sent_again() -> None:
    with answering(broken) as server:
        (outcome,) = put_all(server.url, puts(b"x"), retry=Retry.WRITE)
    assert type(outcome.error) is errors.Unreachable
    assert len(server.requests) == 1


def test_a_refused_connection_is_tried_until_the_server_is_up() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/predict/q"
    found: list[TaskOutcome[bytes, Ack]] = []
    client = threading.Thread(target=lambda: found.extend(put_all(url, puts(b"p1"))))
    client.start()
    server = numbering()
    server.port = port
    with server:
        client.join()
    assert [outcome.result for outcome in found] == [Ack(1, "")]
    assert not found[0].times.doubt


def test_a_refused_connection_is_named_with_its_address() -> None:
    port = free_port()
    settings = replace(QUICK, connect_timeout_s=1.0)
    (outcome,) = put_all(f"http://127.0.0.1:{port}/q", puts(b"x"), settings)
    assert isinstance(outcome.error, Unconnected)
    assert outcome.error.message == f"connection to http://127.0.0.1:{port}/q refused"


@pytest.mark.parametrize("never", [silent, dripping])
def test_no_answer_in_time_ends_by_the_deadline(never: object) -> None:
    settings = replace(QUICK, request_timeout_s=0.3)
    with answering(never) as server:
        outcomes = put_all(server.url, puts(b"x", b"y"), settings)
    for outcome in outcomes:
        assert isinstance(outcome.error, Unanswered)
        assert "no complete answer" in outcome.error.message


def test_an_answer_that_is_no_http_is_named() -> None:
    def handle(server: Server, peer: Peer) -> None:
        server.requests.append(peer.read_request())
        peer.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    with Server(handle) as server:
        (outcome,) = put_all(server.url, puts(b"x"), replace(QUICK, request_timeout_s=0.5))
    assert isinstance(outcome.error, errors.NotAQueueService)


def test_an_answer_above_the_bound_is_given_up() -> None:
    with answering(reply(200, b"7" * 5000)) as server:
        (outcome,) = put_all(
            server.url, puts(b"x"), replace(QUICK, max_answer_bytes=1000, request_timeout_s=0.5)
        )
    assert isinstance(outcome.error, errors.ServerError)


def test_an_answer_that_is_no_index_is_a_failure_that_does_not_quote_the_token() -> None:
    with answering(reply(200, f"<html>{TOKEN}".encode())) as server:
        first, *others = put_all(server.url, puts(b"x", b"y", b"z"), workers=1, stop_at_failure=True)
    assert isinstance(first.error, errors.NotAQueueService)
    assert TOKEN not in str(first.error)
    assert others == []
    assert len(server.requests) == 1


def test_compressed_bytes_are_not_expanded_and_cookies_not_kept() -> None:
    with answering(reply(200, b"7", Content_Encoding="gzip", Set_Cookie="a=b")) as server:
        outcomes = put_all(server.url, puts(b"x", b"y"), workers=1)
    assert [outcome.result for outcome in outcomes] == [Ack(7, "")] * 2
    assert not any("Cookie" in head for head in server.heads())


def test_a_netrc_and_proxies_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password canary\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with answering(reply(200, b"7")) as server:
        (outcome,) = put_all(server.url, puts(b"x"))
    assert outcome.error is None
    assert f"Authorization: {TOKEN}" in server.heads()[0]


def test_another_host_is_reached_through_its_proxy() -> None:
    with answering(reply(200, b"7")) as proxy:
        settings = replace(QUICK, environ={"http_proxy": f"http://me:secret@127.0.0.1:{proxy.port}"})
        (outcome,) = put_all("http://eas.example/api/predict/q", puts(b"x"), settings)
    assert outcome.error is None
    assert proxy.heads()[0].startswith("POST http://eas.example/api/predict/q HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic bWU6c2VjcmV0" in proxy.heads()[0]


def test_a_proxy_that_is_not_there_is_no_connection() -> None:
    port = free_port()
    settings = replace(QUICK, connect_timeout_s=1.0, environ={"http_proxy": f"http://u:pw@127.0.0.1:{port}"})
    (outcome,) = put_all("http://eas.example/api/predict/q", puts(b"x"), settings)
    assert isinstance(outcome.error, Unconnected)
    assert outcome.error.message == (
        f"connection to the proxy http://127.0.0.1:{port} on the way to http://eas.example/api/predict/q refused"
    )


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_says_so_once(scheme: str) -> None:
    with answering(reply(407)) as proxy:
        settings = replace(QUICK, environ={"all_proxy": f"http://127.0.0.1:{proxy.port}"})
        (outcome,) = put_all(f"{scheme}://eas.example/api/predict/q", puts(b"x"), settings)
    assert isinstance(outcome.error, Unconnected)
    assert outcome.error.message.startswith(
        f"the proxy http://127.0.0.1:{proxy.port} on the way to {scheme}://eas.example/api/predict/q refused: 407 "
    )
    assert len(proxy.requests) == 1


def test_an_answer_of_a_proxy_does_not_show_its_password() -> None:
    with answering(reply(403, b"geheim9 Basic dXNlcjpnZWhlaW05")) as proxy:
        settings = replace(QUICK, environ={"http_proxy": f"http://user:geheim9@127.0.0.1:{proxy.port}"})
        (outcome,) = put_all("http://eas.example/api/predict/q", puts(b"x"), settings)
    assert outcome.error is not None
    assert outcome.error.message == "**** Basic ****"


def test_tls_is_verified_as_everywhere(certificate: Path) -> None:
    with secured(certificate) as server:
        url = server.url.replace("http:", "https:")
        (refused,) = put_all(url, puts(b"x"))
        assert isinstance(refused.error, Unconnected)
        assert "certificate" in refused.error.message
        assert refused.times.attempts == 1
        assert server.requests == []


def test_a_given_ca_accepts_the_certificate(certificate: Path) -> None:
    with secured(certificate) as server:
        url = server.url.replace("http:", "https:")
        (outcome,) = put_all(url, puts(b"x"), replace(QUICK, cacert=str(certificate)))
    assert isinstance(outcome.error, errors.NotAQueueService)  # it answers `safe`
    assert len(server.requests) == 1


def test_a_name_that_does_not_resolve_is_not_tried_again() -> None:
    (outcome,) = put_all("http://no-such-host.invalid/q", puts(b"x"))
    assert isinstance(outcome.error, Unconnected)
    assert outcome.times.attempts == 1


def test_headers_that_cannot_be_sent_are_refused_before_anything_is() -> None:
    with answering(reply(200, b"7")) as server:
        (outcome,) = put_all(server.url, puts(b"x"), replace(QUICK, headers={"X": "a\r\nb"}))
    assert isinstance(outcome.error, errors.UsageError)
    assert server.requests == []


def test_after_the_first_failure_none_is_begun() -> None:
    with answering(reply(200, b"1"), reply(413), reply(200, b"2")) as server:
        outcomes = put_all(server.url, puts(*[b"x"] * 50), workers=1, stop_at_failure=True)
    assert [outcome.error is None for outcome in outcomes] == [True, False]
    assert len(server.requests) == 2


def test_a_task_that_cannot_be_sent_fails_in_its_place() -> None:
    wrong: Task[bytes, Operation] = Task(b"w", errors.UsageError("no"))
    with answering(reply(200, b"7")) as server:
        outcomes = put_all(server.url, [*puts(b"x"), wrong, *puts(b"y")])
    assert [outcome.what for outcome in outcomes] == [b"x", b"w", b"y"]
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert len(server.requests) == 2


def test_reading_tasks_waits_for_the_outcomes_to_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow that is, and in bytes as well as in number."""
    read = 0

    def tasks(size: int) -> Iterator[Task[bytes, Operation]]:
        nonlocal read
        for task in puts(*[b"x" * size] * 500):
            read += 1
            yield task

    with answering(reply(200, b"7")) as server:
        taken = 0
        bulk = Pipeline(QUICK, workers=4)
        for batch in bulk.run(tasks(1), asking(server.url, CALLER, QUICK, read_put)):
            taken += len(batch)
            assert read - taken <= 2 * 4 + 16 + 1
        assert taken == 500
        monkeypatch.setattr(bulk_module, "MAX_HELD_BYTES", 3000)
        taken = read = 0
        bulk = Pipeline(QUICK, workers=4)
        for batch in bulk.run(tasks(1000), asking(server.url, CALLER, QUICK, read_put)):
            taken += len(batch)
            assert read - taken <= 3 + 1
        assert taken == 500


def test_a_task_is_sent_while_the_next_is_still_waited_for() -> None:
    """What reads the tasks may block, on a pipe for instance, and holds up nobody."""
    more = threading.Event()

    def tasks() -> Iterator[Task[bytes, Operation]]:
        yield from puts(b"p1", b"p2")
        assert more.wait(20)
        yield from puts(b"p3")

    with numbering() as server:
        found = []
        for batch in Pipeline(QUICK, workers=3).run(tasks(), asking(server.url, CALLER, QUICK, read_put)):
            found += [outcome.what for outcome in batch]
            if len(found) == 2:
                more.set()
    assert found == [b"p1", b"p2", b"p3"]


def test_an_error_of_reading_comes_after_the_outcomes_before_it() -> None:
    def tasks() -> Iterator[Task[bytes, Operation]]:
        yield from puts(b"p1", b"p2")
        raise errors.UsageError("cannot read on")

    found = []

    def take(url: str) -> None:
        for batch in Pipeline(QUICK, workers=3).run(tasks(), asking(url, CALLER, QUICK, read_put)):
            found.extend(outcome.what for outcome in batch)

    with numbering() as server, pytest.raises(errors.UsageError, match="cannot read on"):
        take(server.url)
    assert found == [b"p1", b"p2"]


def test_a_stop_waits_for_requests_in_flight_until_the_grace_is_over() -> None:
    with numbering(late=[b"p2"]) as server:
        bulk = Pipeline(QUICK, workers=2)
        found: list[TaskOutcome[bytes, Ack]] = []
        for batch in bulk.run(
            puts(b"p1", b"p2", *[b"p2"] * 100), asking(server.url, CALLER, QUICK, read_put)
        ):
            found += batch
            bulk.stop(grace_s=0.2)
        assert bulk.read_all(within_s=10)
    assert found[0].result == Ack(1, "")
    assert 1 < len(found) <= 4
    assert all(outcome.result or isinstance(outcome.error, Unanswered) for outcome in found)
    assert len(server.requests) == len(found)


def test_no_thread_is_left_when_the_outcomes_are_not_taken() -> None:
    with numbering() as server:
        for _ in Pipeline(QUICK, workers=4).run(
            puts(*[b"p1"] * 500), asking(server.url, CALLER, QUICK, read_put)
        ):
            break
        assert eventually(
            lambda: not [t for t in threading.enumerate() if t.name in ("easq-bulk", "easq-read")]
        )
        assert len(server.requests) < 500


@pytest.mark.parametrize("open_loop", [True, False])
def test_a_rate_spreads_the_begin_of_requests(open_loop: bool) -> None:
    with numbering() as server:
        outcomes = put_all(server.url, puts(*[b"p1"] * 30), workers=8, rate=200, open_loop=open_loop)
    assert all(outcome.began >= outcome.due for outcome in outcomes)
    assert outcomes[-1].due - outcomes[0].due >= 29 / 200 - 1e-6
    if open_loop:
        assert outcomes[-1].due - outcomes[0].due <= 29 / 200 + 1e-6


def test_a_trace_is_told_in_the_thread_of_the_caller_and_without_secrets() -> None:
    lines: list[str] = []
    threads = set()

    def trace(level: int, line: str) -> None:
        lines.append(f"{level} {line}")
        threads.add(threading.current_thread())

    with answering(reply(200, b"7")) as server:
        put_all(server.url, puts(b"payload-canary"), replace(QUICK, trace=trace))
    assert threads == {threading.current_thread()}
    assert f"1 > POST {server.url}" in lines
    assert any(line.startswith("1 < 200, 1 bytes in ") for line in lines)
    assert "3 > payload-canary" in lines
    assert TOKEN not in "\n".join(lines)


def test_a_header_that_differs_from_request_to_request_is_checked_too() -> None:
    def steps(value: str, times: Times) -> Steps[Reply]:
        request = Request("POST", headers={"Authorization": value}, body=b"x")
        return exchange(server.url, request, None, QUICK, times=times)

    with answering(reply(200)) as server:
        tasks = [Task(value, value) for value in ("EAS a", "EAS b\r\nX-Smuggled: 1", "EAS ü")]
        outcomes = [one for batch in Pipeline(QUICK, workers=2).run(iter(tasks), steps) for one in batch]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), errors.UsageError, errors.UsageError]
    assert outcomes[1].error is not None
    assert outcomes[1].error.message == (
        "the value of header Authorization holds a character that cannot stand in a header"
    )
    assert len(server.requests) == 1
