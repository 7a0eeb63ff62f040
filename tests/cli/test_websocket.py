"""easq predict --via websocket: services that speak WebSocket, on pipes and on a terminal."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Easq, OnTerminal, finish
from tests.client.servers import (
    Peer,
    Server,
    Speaking,
    answering,
    echo,
    encrypting,
    eventually,
    free_port,
    reply,
    without_tls,
)

TOKEN = "canary-0123456789-canary-abcd"


@pytest.fixture
def service(easq: Easq) -> Iterator[Speaking]:
    """A service that the current profile asks over WebSocket; it answers with the message in reverse."""
    with Speaking(echo) as server:
        easq("config", "--url", f"{server.url}?lang=en", "-q")
        easq("config", "set", "via", "websocket")
        yield server


def test_one_message_has_one_answer_which_is_printed_alone(easq: Easq, service: Speaking) -> None:
    done = easq("predict", "-d", "ab c", env={"EASQ_TOKEN": TOKEN})
    assert (done.status, done.out, done.err) == (0, b"c ba", "")
    assert service.messages == [(1, b"ab c")]
    lines = service.heads()[0].split("\r\n")
    assert lines[0] == "GET /v1/x?lang=en HTTP/1.1"
    assert f"X-Auth-Token: {TOKEN}" in lines
    assert not any(line.lower().startswith(("authorization", "origin")) for line in lines)


@pytest.mark.parametrize("name", ["X-Apig-AppCode", "Authorization", "X-Auth-Token"])
def test_a_header_of_the_users_stands_for_the_token(easq: Easq, service: Speaking, name: str) -> None:
    done = easq("predict", "-d", "ab", "--header", f"{name}: own", env={"EASQ_TOKEN": TOKEN})
    assert (done.status, done.out) == (0, b"ba")
    assert f"{name}: own" in service.heads()[0].split("\r\n")
    assert TOKEN not in service.heads()[0]


def test_each_line_of_stdin_or_a_file_is_a_message_in_order_over_one_connection(
    easq: Easq, service: Speaking
) -> None:
    done = easq("predict", stdin=b"ab\n\ncd\nef")
    assert (done.status, done.out, done.err) == (0, b"ba\ndc\nfe\n", "")
    (easq.home / "in").write_bytes(b"1x\n2x\n")
    assert easq("predict", "-f", "in", "-q").out == b"x1\nx2\n"
    assert service.connections == 2
    assert all(opcode == 1 for opcode, _ in service.messages)


def test_n_at_a_time_go_over_n_connections_and_are_printed_in_order(easq: Easq, service: Speaking) -> None:
    (easq.home / "in").write_bytes(b"".join(b"%d1\n" % number for number in range(10, 90)))
    done = easq("predict", "-f", "in", "-c", "4", "-q")
    assert (done.status, done.err) == (0, "")
    assert done.out.split() == [b"1%s" % str(number)[::-1].encode() for number in range(10, 90)]
    assert 1 < service.connections <= 4


def test_each_path_is_a_message_whole_and_binary_where_asked_for(easq: Easq, service: Speaking) -> None:
    (easq.home / "a").write_bytes(b"\xff\n\x00a")
    (easq.home / "b").write_bytes(b"\n\xfe")
    assert easq("predict", "a", "--binary").out == b"a\x00\n\xff"
    assert easq("predict", "a", "b", "--binary", "-o", "raw").out == b"a\x00\n\xff\n\xfe\n\n"
    assert {opcode for opcode, _ in service.messages} == {2}
    done = easq("predict", "a")
    assert (done.status, done.out, done.err) == (
        2,
        b"",
        "easq: not UTF-8 at byte 0, which no text message may carry\nhint: --binary sends it as it is\n",
    )


def test_every_form_of_output(easq: Easq, service: Speaking) -> None:
    record = json.loads(easq("predict", "-d", "ab", "-o", "json").out)
    assert (record["data"], record["encoding"], record["size"]) == ("ba", "utf8", 2)
    assert "instance" not in record
    assert easq("predict", "-d", "ab", "-o", "raw").out == b"ba"
    assert easq("predict", "-d", "ab", "-o", "none").out == b""
    assert easq("predict", "-d", "ab", "-o", "table").text.splitlines()[1].endswith("\tba")
    record = json.loads(easq("predict", "-d", "ab", "-o", "json", "--show-instance").out)
    shown = record["instance"]
    assert (shown["address"], shown["attempt"]) == (f"127.0.0.1:{service.port}", 1)
    assert 0 < shown["connect_ms"] < shown["first_byte_ms"] <= shown["total_ms"]
    done = easq("predict", "-d", "ab", "--show-instance")
    assert done.out == b"ba"
    assert done.err.startswith(f"[INFO] 127.0.0.1:{service.port} attempt 1: connect ")


def test_all_that_comes_behind_an_answer_is_shown_with_an_idle_timeout(easq: Easq, service: Speaking) -> None:
    def counting(peer: Peer, opcode: int, data: bytes) -> None:
        for number in range(3):
            peer.send_frame(b"%s%d" % (data, number), opcode)

    service.answer = counting
    done = easq("predict", "--idle-timeout", "500ms", stdin=b"a\nb\n")
    assert (done.status, done.out, done.err) == (0, b"a0\na1\na2\nb0\nb1\nb2\n", "")
    done = easq("predict", "-d", "a")
    assert (done.status, done.out) == (0, b"a0")
    done = easq("predict", "-d", "a", "--idle-timeout", "500ms", "-o", "json")
    assert [json.loads(line)["data"] for line in done.out.splitlines()] == ["a0", "a1", "a2"]


def test_with_an_idle_timeout_a_message_is_printed_before_the_next_one_comes(
    easq: Easq, service: Speaking
) -> None:
    def waiting(peer: Peer, opcode: int, data: bytes) -> None:
        if data == b"go":
            peer.send_frame(b"first", opcode)
            eventually(lambda: (easq.home / "seen").exists(), 60.0)
            peer.send_frame(b"second", opcode)

    service.answer = waiting
    with easq.start("predict", "-d", "go", "--idle-timeout", "60s") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        (easq.home / "seen").touch()
        assert process.stdout.readline() == b"second\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130


def test_a_message_that_fails_is_named_and_the_others_are_answered(easq: Easq, service: Speaking) -> None:
    def silent_on_bad(peer: Peer, opcode: int, data: bytes) -> None:
        if data != b"bad":
            echo(peer, opcode, data)

    service.answer = silent_on_bad
    done = easq("predict", "--timeout", "900ms", stdin=b"ab\nbad\ncd\n")
    assert (done.status, done.out) == (10, b"ba\ndc\n")
    assert "easq: line 2: no answer from ws://" in done.err
    assert done.err.endswith("easq: 2 answered, 1 failed\n")
    done = easq("predict", "-d", "bad", "--timeout", "300ms")
    assert (done.status, done.out) == (9, b"")


@pytest.mark.parametrize(
    ("status", "expected", "said"),
    [
        (401, 7, "hint: check the credentials: --token-file, or a header such as 'X-Apig-AppCode: CODE'\n"),
        (403, 7, "check the credentials"),
        (404, 8, "hint: check the url"),
        (429, 4, ""),
        (500, 5, ""),
        (200, 5, "where a WebSocket begins with 101"),
    ],
)
def test_a_refused_handshake_is_the_exit_status(
    easq: Easq, service: Speaking, status: int, expected: int, said: str
) -> None:
    with answering(reply(status, b"no \x1b]0;x\x07")) as server:
        done = easq("predict", "-d", "x", "--url", server.url, env={"EASQ_TOKEN": TOKEN})
    assert (done.status, done.out) == (expected, b"")
    assert said in done.err
    assert "\x1b" not in done.err
    assert TOKEN not in done.err
    assert service.connections == 0


def test_tls_and_what_goes_wrong_with_it(easq: Easq, service: Speaking, certificate: Path) -> None:
    def handle(_: Server, peer: Peer) -> None:
        peer.upgrade()
        peer.send_frame(peer.serve_pings()[1][::-1], 1)
        peer.serve_pings()

    with encrypting(certificate, handle) as server:
        url = f"wss://127.0.0.1:{server.port}/x"
        done = easq("predict", "-d", "ab", "--url", url, "--cacert", str(certificate))
        assert (done.status, done.out, done.err) == (0, b"ba", "")
        done = easq("predict", "-d", "ab", "--url", url, "--insecure")
        assert (done.status, done.out) == (0, b"ba")
        assert done.err == "easq: warning: certificates are not verified (--insecure)\n"
        done = easq("predict", "-d", "ab", "--url", url)
        assert (done.status, done.out) == (6, b"")
        assert done.err.startswith(f"easq: TLS with {url} failed: ")
    with without_tls() as plain:
        url = f"wss://127.0.0.1:{plain.port}/x"
        done = easq("predict", "-d", "ab", "--url", url)
    assert (done.status, done.err) == (
        6,
        f"easq: TLS with {url} failed: wrong version number\nhint: check ws/wss and the port\n",
    )
    assert service.connections == 0


@pytest.mark.usefixtures("service")
def test_nobody_there_is_unreachable(easq: Easq) -> None:
    done = easq("predict", "-d", "x", "--url", f"ws://127.0.0.1:{free_port()}/", "--timeout", "500ms")
    assert (done.status, done.out) == (6, b"")
    assert "refused" in done.err


@pytest.mark.usefixtures("service")
def test_a_token_that_goes_to_a_public_address_in_the_clear_is_warned_about(easq: Easq) -> None:
    warning = "easq: warning: the token travels unencrypted, over ws and beyond this network\n"
    args = ["predict", "-d", "x", "--url", "ws://gone.example.invalid/", "--timeout", "300ms"]
    assert easq(*args, env={"EASQ_TOKEN": TOKEN}).err.startswith(warning)
    assert easq(*args, "--header", "X-Apig-AppCode: own").err.startswith(warning)
    assert warning not in easq(*args).err


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["-d", "x", "--tags", "a=b"], 2, "--tags is only for --via queue"),
        (
            ["-d", "x", "--content-type", "a/b"],
            2,
            "--content-type is only for --via queue, gateway, direct and modelarts",
        ),
        (["-d", "x", "--sign", "hmac"], 2, "--sign is only for --via gateway and direct"),
        (["-d", "x", "--endpoint", "e"], 2, "--endpoint is only for --via direct and modelarts"),
        (["-d", "x", "-c", "2", "--idle-timeout", "1s"], 2, "-c cannot be used with --idle-timeout"),
        (["-d", "x", "--url", "ftp://h/"], 13, "the url ftp://h/ does not begin with ws:// or wss://"),
        (["-d", "x", "--header", "Sec-WebSocket-Key: x"], 2, "the header Sec-WebSocket-Key cannot be set"),
        (["-d", "x", "--via", "gateway", "--binary"], 2, "--binary is only for --via websocket"),
    ],
)
def test_options_that_do_not_go_together(
    easq: Easq, service: Speaking, args: list[str], status: int, message: str
) -> None:
    done = easq("predict", *args)
    assert (done.status, done.out) == (status, b"")
    assert done.err.startswith(f"easq: {message}")
    assert service.connections == 0


def test_what_is_missing_is_named(easq: Easq) -> None:
    done = easq("predict", "-d", "x", "--via", "websocket")
    assert (done.status, done.err) == (
        13,
        "easq: no url of a WebSocket service is known\nhint: --url wss://HOST/PATH, or EASQ_URL\n",
    )


def test_no_talk_shows_the_token(easq: Easq, service: Speaking) -> None:
    done = easq(
        "predict", "-d", "ab", "-vvv", "--url", f"{service.url}?token={TOKEN}", env={"EASQ_TOKEN": TOKEN}
    )
    assert (done.status, done.out) == (0, b"ba")
    assert "> ab" in done.err
    assert TOKEN not in done.err


# on a terminal


def typing(easq: Easq, *args: str) -> OnTerminal:
    terminal = easq.terminal("predict", *args)
    terminal.expect_exact("connected; each line is a message, Ctrl-D ends")
    return terminal


def test_lines_that_are_typed_are_sent_and_all_that_comes_is_shown(easq: Easq, service: Speaking) -> None:
    terminal = typing(easq)
    for line, shown in (("abc", "cba"), ("x\u00fc", "<binary 3 B, use -o raw>")):
        terminal.sendline(line)
        terminal.expect_exact(shown)
    terminal.sendeof()
    assert finish(terminal)[0] == 0
    assert [data for _, data in service.messages] == [b"abc", "x\u00fc".encode()]


def test_what_comes_unasked_is_shown_while_nothing_is_typed_and_cannot_drive_the_terminal(
    easq: Easq, service: Speaking
) -> None:
    def talkative(peer: Peer, opcode: int, data: bytes) -> None:
        echo(peer, opcode, data)
        eventually(lambda: (easq.home / "go").exists(), 60.0)
        peer.send_frame(b"unasked \x1b]0;x\x07", opcode)

    service.answer = talkative
    terminal = typing(easq)
    terminal.sendline("abc")
    terminal.expect_exact("cba")
    (easq.home / "go").touch()
    terminal.expect_exact("unasked \\x1b]0;x\\x07")
    terminal.sendeof()
    assert finish(terminal)[0] == 0


def test_the_end_of_input_waits_for_the_answers(easq: Easq, service: Speaking) -> None:
    def slow(peer: Peer, opcode: int, data: bytes) -> None:
        eventually(lambda: (easq.home / "go").exists(), 60.0)
        echo(peer, opcode, data)

    service.answer = slow
    terminal = typing(easq)
    terminal.send("abc\n\x04")
    assert eventually(lambda: len(service.messages) == 1)
    (easq.home / "go").touch()
    status, text = finish(terminal)
    assert status == 0
    assert "cba\n" in text


def test_a_service_that_closes_after_each_answer_can_be_talked_to(easq: Easq, service: Speaking) -> None:
    def once(peer: Peer, opcode: int, data: bytes) -> None:
        echo(peer, opcode, data)
        peer.send_close(1000)
        peer.socket.close()

    service.answer = once
    terminal = typing(easq)
    for line in ("abc", "def", "ghi"):
        terminal.sendline(line)
        terminal.expect_exact(line[::-1])
    terminal.sendeof()
    assert finish(terminal)[0] == 0
    assert [data for _, data in service.messages] == [b"abc", b"def", b"ghi"]


def test_ctrl_c_ends_with_130(easq: Easq, service: Speaking) -> None:
    terminal = typing(easq)
    terminal.sendintr()
    assert finish(terminal)[0] == 130
    assert eventually(lambda: not any(thread.is_alive() for thread in service.threads))


@pytest.mark.parametrize("concurrency", ["1", "4"])
def test_ctrl_c_does_not_wait_for_the_answers(easq: Easq, service: Speaking, concurrency: str) -> None:
    service.answer = lambda _peer, _opcode, _data: None
    (easq.home / "in").write_bytes(b"a\nb\nc\nd\ne\n")
    with easq.start("predict", "-f", "in", "-c", concurrency, "--timeout", "1h", "-q") as process:
        assert eventually(lambda: len(service.messages) == int(concurrency), 60.0)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130


@pytest.mark.usefixtures("service")
def test_a_refused_handshake_ends_it_before_anything_is_typed(easq: Easq) -> None:
    with answering(reply(401, b"no")) as server:
        status, text = finish(easq.terminal("predict", "--url", server.url))
    assert status == 7
    assert "hint: check the credentials" in text


@pytest.mark.usefixtures("service")
def test_without_input_on_a_terminal_nothing_is_typed(easq: Easq) -> None:
    status, text = finish(easq.terminal("predict", "--no-input"))
    assert (status, text.splitlines()[0]) == (2, "easq: nothing to send")


def test_piped_lines_are_sent_as_they_come(easq: Easq, service: Speaking) -> None:
    """A line is answered before the next one is there, and before the end of the input."""
    reading, writing = os.pipe()
    with easq.start("predict", stdin=reading) as process, os.fdopen(writing, "wb", buffering=0) as feed:
        os.close(reading)
        assert process.stdout is not None
        for line in (b"ab", b"cd"):
            feed.write(line + b"\n")
            assert process.stdout.readline() == line[::-1] + b"\n"
        feed.close()
        assert process.wait() == 0
    assert service.connections == 1
