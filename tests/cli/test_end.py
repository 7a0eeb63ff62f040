"""easq end: the question, the operations of an ended stream, and reopening."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Easq, finish
from tests.client.servers import answering, reply

ENDED = "easq: the stream has ended and takes no more items\n"


@pytest.fixture
def two(queue: Easq) -> Easq:
    """A queue of two items."""
    queue("put", "-q", "-f", "-", stdin=b"1\n2\n")
    return queue


def state(queue: Easq, *args: str) -> str:
    return queue("info", "--field", "meta.state", "--field", "stream.length", *args).text


@pytest.mark.parametrize("args", [[], ["--force"], ["-k"], ["--no-input"]])
def test_without_a_terminal_nothing_ends_unless_confirmed(two: Easq, args: list[str]) -> None:
    done = two("end", *args)
    assert (done.status, done.out) == (2, b"")
    assert done.err == "easq: not confirmed, and no terminal to ask on\nhint: -y confirms\n"
    assert (state(two), state(two, "-k")) == ("Normal\n2\n", "Normal\n0\n")


@pytest.mark.parametrize(
    ("args", "question", "after"),
    [
        ([], "end the stream and still deliver what is there [y/N]", "End\n2\n"),
        (["--force"], "end the stream and drop what is there [y/N]", "End\n0\n"),
    ],
)
def test_the_answer_decides(two: Easq, args: list[str], question: str, after: str) -> None:
    for answer, expected in (("n", (2, "Normal\n2\n")), ("y", (0, after))):
        terminal = two.terminal("end", *args)
        terminal.expect_exact(question)
        assert terminal.before == b""
        terminal.sendline(answer)
        status, rest = finish(terminal)
        assert (status, state(two)) == expected
    assert rest == "y\n[OK] ended\n"


def test_an_ended_stream_takes_nothing_and_gives_what_is_there(two: Easq) -> None:
    done = two("end", "-y")
    assert (done.status, done.text, done.err) == (0, "[OK] ended\n", "")
    assert two("end", "-y", "-o", "json").text == '{"ended":true}\n'
    done = two("put", "-q", "-d", "3")
    assert (done.status, done.out, done.err) == (4, b"", ENDED)
    assert two("put", "-q", "-k", "-d", "3").status == 0
    assert two("get", "-l", "9", "-o", "raw").text == "1\n2\n"


def test_undo_reopens_without_asking_and_may_be_said_again(two: Easq) -> None:
    for args, text in (([], "[OK] reopened\n"), (["-o", "json"], '{"ended":false}\n')):
        done = two("end", "--undo", *args)
        assert (done.status, done.text, done.err) == (0, text, "")
    two("end", "-y")
    done = two("end", "--undo")
    assert (done.status, done.text, done.err) == (0, "[OK] reopened\n", "")
    assert state(two) == "Normal\n2\n"
    assert two("put", "-q", "-d", "3").text == "[OK] 3\n"


def test_the_sink_ends_alone(two: Easq) -> None:
    assert two("end", "-k", "-y").text == "[OK] ended\n"
    assert (state(two), state(two, "-k")) == ("Normal\n2\n", "End\n0\n")


def test_force_and_undo_exclude_each_other(two: Easq) -> None:
    done = two("end", "--force", "--undo", "-y")
    assert (done.status, done.out, done.err) == (2, b"", "easq: --force and --undo exclude each other\n")
    assert state(two) == "Normal\n2\n"


@pytest.mark.parametrize(
    ("state", "status", "methods"), [("Normal", 0, ["GET"]), ("End", 4, ["GET", "POST", "GET"])]
)
def test_a_service_that_cannot_reopen_is_told_apart_and_never_ended_by_it(
    easq: Easq, state: str, status: int, methods: list[str]
) -> None:
    described = reply(200, b'{"meta.state":"%s"}' % state.encode())
    with answering(described, reply(200, b"OK"), described) as server:
        done = easq("end", "--undo", "--url", server.url)
    assert [head.split()[0] for head in server.heads()] == methods
    assert done.status == status
    assert done.err == ("easq: the service did not reopen the stream\n" if status else "")
