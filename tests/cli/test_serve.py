"""easq serve: start, address, end, and running around a command."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import DEADLINE_S, Easq, finish
from tests.support.nodes import NODES, look
from tests.support.waiting import eventually

Started = Callable[..., "subprocess.Popen[bytes]"]

#: prints what a command around which a service runs is told
TELL = "import json, os; print(json.dumps({k: os.environ[k] for k in ('EASQ_URL', 'EASQ_SINK_URL', 'EASQ_TOKEN')}))"


@pytest.fixture
def started(easq: Easq) -> Iterator[Started]:
    """Start `easq serve`; running services are stopped at the end of the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        process = easq.start("serve", *options)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode()


def address(process: subprocess.Popen[bytes]) -> str:
    name, _, url = first_line(process).strip().partition("=")
    assert name == "EASQ_URL"
    return url


def terminate(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> tuple[int, bytes, str]:
    """Return the exit code, and the rest of stdout and stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err.decode()


def refuses(url: str) -> bool:
    port = int(url.partition("://")[2].partition("/")[0].rpartition(":")[2])
    try:
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S).close()
    except ConnectionRefusedError:
        return True
    return False


def test_it_says_where_it_is_keeps_what_it_was_given_and_ends_in_order(easq: Easq, started: Started) -> None:
    """By default data is in the state folder; SIGTERM is exit code 0, and the next start has it all. An SQLite that can
    damage the file when others write to it is said so.
    """
    text = "is below 3.51.3: another program that writes to the data file may damage it"
    caution = f"easq: warning: SQLite {sqlite3.sqlite_version} {text}\n"
    database = easq.home / ".local" / "state" / "easq" / "easq.db"
    process = started("--port", "0")
    url = address(process)
    assert easq("put", "-q", "-d", "x", "--url", url).text == "[OK] 1\n"
    assert terminate(process) == (
        0,
        b"",
        f"[INFO] queue qservice: {url} and {url}/sink\n[INFO] durability fsync, storage sqlite:{database}\n"
        + (caution if sqlite3.sqlite_version_info < (3, 51, 3) else ""),
    )
    assert refuses(url)
    again = started("--port", "0")
    assert easq("get", "-o", "raw", "--url", address(again)).out == b"x"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_terminal_that_goes_end_it_in_order_too(started: Started, number: int) -> None:
    process = started("--port", "0", "--storage", "memory:", "-q")
    address(process)
    assert terminate(process, number) == (0, b"", "")


def test_a_ready_file_is_written_once_requests_are_answered(easq: Easq, started: Started) -> None:
    ready = easq.home / "ready"
    process = started("--port", "0", "--storage", "memory:", "--ready-file", str(ready))
    eventually(ready.exists)
    line = ready.read_text()
    assert easq("info", "--url", line.strip().removeprefix("EASQ_URL=")).status == 0
    assert first_line(process) == line


@pytest.mark.parametrize("kind", ["device", "FIFO"])
def test_a_ready_file_that_is_no_file_is_refused_before_anything_is_begun(easq: Easq, kind: str) -> None:
    ready = easq.home / "ready"
    NODES[kind](ready)
    before = look(ready)
    done = easq("serve", "--port", "0", "--storage", "memory:", "--ready-file", str(ready))
    text = f"easq: --ready-file {ready}: it is a {kind}, not a regular file\n"
    assert (done.status, done.text, done.err) == (2, "", text)
    assert look(ready) == before


def test_nothing_that_was_planted_beside_a_ready_file_is_written(easq: Easq, started: Started) -> None:
    """The name of the temporary file cannot be guessed: in /tmp another user could put a link under that name."""
    ready, mine = easq.home / "ready", easq.home / "mine"
    mine.write_text("mine")
    (easq.home / "ready.new").symlink_to(mine)
    process = started("--port", "0", "--storage", "memory:", "--ready-file", str(ready))
    line = first_line(process)
    eventually(ready.exists)
    assert (ready.read_text(), mine.read_text()) == (line, "mine")


def test_only_its_owner_writes_a_ready_file(easq: Easq, started: Started) -> None:
    """Whatever the umask: a client sends its token to the address in the file."""
    ready = easq.home / "ready"
    before = os.umask(0)
    try:
        process = started("--port", "0", "--storage", "memory:", "--ready-file", str(ready))
    finally:
        os.umask(before)
    first_line(process)
    eventually(ready.exists)
    assert stat.S_IMODE(ready.stat().st_mode) == 0o644


def test_each_queue_has_an_input_and_a_sink(easq: Easq, started: Started) -> None:
    process = started("--port", "0", "--storage", "memory:", "--queue", "test_group.one", "--queue", "two")
    one = address(process)
    assert one.endswith("/api/predict/test_group.one")
    two = one.replace("test_group.one", "two")
    for url, data in ((one, "a"), (f"{one}/sink", "b"), (two, "c"), (f"{two}/sink", "d")):
        assert easq("put", "-q", "-d", data, "--url", url).text == "[OK] 1\n"
    found = [easq("get", "-o", "raw", "--url", url).text for url in (one, f"{one}/sink", two, f"{two}/sink")]
    assert found == ["a", "b", "c", "d"]
    root = one.partition("/api/")[0]
    assert easq("get", "-o", "raw", "--url", f"{root}/").text == "a"
    assert easq("get", "-o", "raw", "--url", f"{root}/sink").text == "b"


@pytest.mark.parametrize("path", ["x y", "a?b", "a%41", "a//b", "ü", "[x]", ".."])
def test_a_base_path_that_no_client_can_use_is_refused(easq: Easq, path: str) -> None:
    done = easq("serve", "--storage", "memory:", "--base-path", path, "--", "true")
    assert (done.status, done.out) == (2, b"")
    assert f"{path!r} is no" in done.err


def test_limits_and_names_of_the_options_reach_the_queue(easq: Easq, started: Started) -> None:
    options = ("--max-length", "3", "--sink-max-length", "2", "--max-payload", "1k", "--max-bytes", "2KiB")
    process = started("--port", "0", "--storage", "memory:", "--base-path", "/x", *options)
    url = address(process)
    assert url.endswith("/x/qservice")
    fields = ("meta.maxPayloadBytes", "stream.approxMaxLength", "stream.maxBytes", "meta.durability")
    asked = [word for field in fields for word in ("--field", field)]
    assert easq("info", "--url", url, *asked).text.split() == ["1024", "3", "2048", "memory"]
    assert easq("info", "-k", "--url", url, *asked).text.split() == ["1024", "2", "2048", "memory"]
    for _ in range(2):
        assert easq("put", "-k", "-d", "x", "--url", url).status == 0
    full = easq("put", "-k", "-d", "x", "--url", url)
    assert full.status == 4
    assert "the queue is full: 2 of 2 items" in full.err


def test_a_port_in_use_is_named(easq: Easq) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = easq("serve", "--port", str(port), "--storage", "memory:")
    assert (done.status, done.out) == (13, b"")
    assert done.err == (
        f"easq: 127.0.0.1 port {port}: in use\nhint: choose another with --port, or --port 0\n"
    )


def test_other_machines_are_served_with_a_token_only(easq: Easq, started: Started) -> None:
    refused = easq("serve", "--host", "0.0.0.0", "--port", "0", "--storage", "memory:")
    assert (refused.status, refused.out) == (2, b"")
    assert "0.0.0.0 can be reached from other machines, and there is no token" in refused.err
    (easq.home / "token").write_text("a-token-of-its-own\n")
    process = started(
        "--host", "0.0.0.0", "--port", "0", "--storage", "memory:", "--token-file", str(easq.home / "token")
    )
    url = address(process)
    assert easq("info", "--url", url).status == 7
    assert easq("info", "--url", url, "--token-file", "token").status == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--queue", "a/b"), "--queue: 'a/b' is not a queue name"),
        (("--queue", "a", "--queue", "a"), "--queue: each name once, got a, a"),
        (("--max-payload", "31MiB"), "--max-payload 32505856: 1 to 31457280 bytes"),
        (("--max-payload", "x"), "'x' is not a size such as 512, 10k or 1MiB"),
        (("--storage", "mysql://x"), "unknown storage 'mysql://x'"),
        (("--port", "70000"), "70000 is not in the range"),
        (("--max-length", "0"), "0 is not in the range"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(easq: Easq, options: tuple[str, ...], says: str) -> None:
    done = easq("serve", "--port", "0", *options)
    assert (done.status, done.out) == (2, b"")
    assert says in done.err
    assert not (easq.home / ".local").exists()


def test_a_data_file_in_use_or_foreign_is_left_alone(easq: Easq, started: Started) -> None:
    process = started("--port", "0", "--storage", "sqlite:data/q.db")
    address(process)
    second = easq("serve", "--port", "0", "--storage", "sqlite:data/q.db")
    assert (second.status, second.out) == (74, b"")
    assert "data/q.db is in use by another easq serve" in second.err
    (easq.home / "foreign.db").write_text("a text")
    foreign = easq("serve", "--port", "0", "--storage", "sqlite:foreign.db")
    assert (foreign.status, foreign.out) == (74, b"")
    assert "foreign.db cannot be read as easq's data: file is not a database" in foreign.err
    assert (easq.home / "foreign.db").read_text() == "a text"


def test_queues_that_are_not_named_are_kept_and_named(easq: Easq, started: Started) -> None:
    first = started("--port", "0", "--storage", "sqlite:q.db", "--queue", "old")
    assert easq("put", "-d", "x", "--url", address(first)).status == 0
    terminate(first)
    second = started("--port", "0", "--storage", "sqlite:q.db", "--queue", "new", "-q")
    address(second)
    code, _, err = terminate(second)
    assert code == 0
    assert "warning kept but not served: old (name them with --queue)\n" in err
    third = started("--port", "0", "--storage", "sqlite:q.db", "--queue", "old")
    assert easq("get", "-o", "raw", "--url", address(third)).out == b"x"


def test_verbose_logs_requests_without_payloads_and_tokens(easq: Easq, started: Started) -> None:
    (easq.home / "token").write_text("canary-token-1234")
    process = started(
        "--port", "0", "--storage", "memory:", "--token-file", "token", "-v", "--log-format", "json"
    )
    url = address(process)
    assert easq("put", "-d", "canary-payload", "--url", url, "--token-file", "token").status == 0
    assert easq("info", "--url", url, "--token", "canary-wrong").status == 7
    _, _, err = terminate(process)
    records = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    messages = [record["message"].rpartition(" ")[0] for record in records if record["level"] == "info"]
    assert messages == ["POST /api/predict/qservice 200", "GET /api/predict/qservice 401"]
    assert "canary" not in err


# -- around a command --------------------------------------------------------------------------------------------------


def test_a_command_has_a_private_service(easq: Easq) -> None:
    """The command gets address, sink and token. stdout belongs to the command, and the service ends with it."""
    done = easq("serve", "--", sys.executable, "-c", TELL)
    assert (done.status, done.err) == (0, "")
    told = json.loads(done.out)
    assert told["EASQ_SINK_URL"] == told["EASQ_URL"] + "/sink"
    assert len(told["EASQ_TOKEN"]) >= 32
    assert refuses(told["EASQ_URL"])
    assert not (easq.home / ".local").exists()
    again = json.loads(easq("serve", "--", sys.executable, "-c", TELL).out)
    assert again["EASQ_TOKEN"] != told["EASQ_TOKEN"]


def test_the_commands_inside_use_it_and_nobody_else_can(easq: Easq) -> None:
    script = (
        f'easq() {{ "{sys.executable}" -m easq "$@"; }};'
        " easq put -q -d ping && easq get -o raw && EASQ_TOKEN= easq get -o raw; echo $?"
    )
    done = easq("serve", "--", "sh", "-c", script)
    assert done.text == "[OK] 1\nping7\n"


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_its_exit_code_is_ours(easq: Easq, script: str, code: int) -> None:
    done = easq("serve", "--", "sh", "-c", script)
    assert (done.status, done.out, done.err) == (code, b"", "")


def test_its_stdin_is_ours(easq: Easq) -> None:
    assert easq("serve", "--", "cat", stdin=b"through\n").out == b"through\n"


def test_a_command_that_cannot_start(easq: Easq) -> None:
    done = easq("serve", "--", "./no-such-command")
    assert (done.status, done.out) == (12, b"")
    assert done.err == "easq: ./no-such-command cannot be started: No such file or directory\n"


def test_sigterm_reaches_the_command_and_the_service_ends_with_it(started: Started) -> None:
    script = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print(os.environ['EASQ_URL'], flush=True)\n"
        "while True: signal.pause()\n"
    )
    process = started("--", sys.executable, "-c", script)
    url = first_line(process).strip()
    assert not refuses(url)
    assert terminate(process)[0] == 5
    assert refuses(url)


#: says where it is, and each SIGINT that it gets
COUNT_INTERRUPTS = (
    "import os, signal\n"
    "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'interrupted\\n'))\n"
    "print(os.environ['EASQ_URL'], flush=True)\n"
    "while True: signal.pause()\n"
)


def test_sigint_of_a_script_reaches_the_command_and_a_second_one_kills_it(started: Started) -> None:
    process = started("--", "sh", "-c", "echo $EASQ_URL; exec sleep 600")
    assert not refuses(first_line(process).strip())
    assert terminate(process, signal.SIGINT)[:2] == (130, b"")
    process = started("--", sys.executable, "-c", COUNT_INTERRUPTS)
    url = first_line(process).strip()
    process.send_signal(signal.SIGINT)
    assert first_line(process) == "interrupted\n"
    assert not refuses(url)
    assert terminate(process, signal.SIGINT)[:2] == (137, b"")
    assert refuses(url)


def test_ctrl_c_on_a_terminal_reaches_the_command_once(easq: Easq) -> None:
    terminal = easq.terminal("serve", "--", sys.executable, "-c", COUNT_INTERRUPTS)
    terminal.expect_exact("/qservice\r\n")
    for _ in range(3):
        terminal.sendintr()
        terminal.expect_exact("interrupted\r\n")
    terminal.kill(signal.SIGTERM)
    status, text = finish(terminal)
    assert (status, text.count("interrupted")) == (143, 0)


def test_storage_of_a_command_is_kept_where_asked(easq: Easq) -> None:
    for expected in (1, 2):
        done = easq(
            "serve", "--storage", "sqlite:kept.db", "--", sys.executable, "-m", "easq", "put", "-q", "-d", "x"
        )
        assert done.text == f"[OK] {expected}\n"
    assert Path(easq.home / "kept.db").exists()


def test_a_model_is_served_beside_the_queues(easq: Easq, started: Started) -> None:
    """The addresses of the service and its instances are printed; each route gets its answer."""
    process = started(
        *("--port", "0", "--storage", "memory:", "--model", "exec:tr a-z A-Z", "--service", "upper"),
        *("--instances", "2", "--weights", "100, 50"),
    )
    queue = address(process)
    base, origin = queue.rpartition("/")[0], queue.removesuffix("/api/predict/qservice")
    direct = ("--via", "direct", "--endpoint", origin, "--service", "upper")
    assert easq("predict", "-d", "hello", *direct).out == b"HELLO"
    assert easq("predict", "-d", "hello", "--via", "gateway", "--url", f"{base}/upper").out == b"HELLO"
    rows = easq("endpoints", "--endpoint", origin, "upper", "-o", "json").text
    listed = [(row["address"], row["weight"]) for row in json.loads(rows)["instances"]]
    code, out, err = terminate(process)
    assert (code, out) == (0, b"")
    assert [weight for _, weight in listed] == [100, 50]
    assert err.splitlines() == [
        f"[INFO] queue qservice: {queue} and {queue}/sink",
        f"[INFO] service upper: {base}/upper",
        *(f"[INFO] instance {place}, weight {weight}" for place, weight in listed),
        "[INFO] durability memory, storage memory:",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nonsense"), "easq: model 'nonsense': not known"),
        (("--model", "echo", "--service", "qservice"), "easq: qservice is a queue and a service"),
        (
            ("--model", "echo", "--weights", "1,2", "--instances", "3"),
            "easq: --weights has 2 for 3 instances",
        ),
        (("--model", "echo", "--weights", "1,x"), "'1,x' is not a list of weights: write it as 100,50"),
        (("--model", "echo", "--weights", "9999999"), "easq: --weights 9999999: one of 0 to 1000000"),
        (("--instances", "2"), "easq: --instances is only for --model"),
        (("--weights", "1"), "easq: --weights is only for --model"),
        (("--service", "x"), "easq: --service is only for --model"),
        (("--model-timeout", "5s"), "easq: --model-timeout is only for --model"),
        (("--open-instances",), "easq: --open-instances is only for --model"),
    ],
)
def test_a_model_that_cannot_be_served_is_a_usage_error(
    easq: Easq, options: tuple[str, ...], message: str
) -> None:
    """Exit code 2, before anything listens."""
    done = easq("serve", "--port", "0", "--storage", "memory:", *options)
    assert done.status == 2
    assert message in done.err


def test_a_model_whose_command_is_not_there_does_not_start(easq: Easq) -> None:
    """Exit code 12, as wherever a command cannot be started."""
    done = easq("serve", "--port", "0", "--storage", "memory:", "--model", "exec:no-such-command")
    assert (done.status, done.err) == (12, "easq: no-such-command cannot be started: no such command\n")


def test_a_command_around_which_a_model_is_served_knows_where_it_is(easq: Easq) -> None:
    """Discovery and name in the environment; the private token signs."""
    call = [sys.executable, "-m", "easq", "predict", "--via", "direct", "-d", "hi"]
    done = easq("serve", "--model", "echo", "--instances", "2", "--", *call)
    assert (done.status, done.out) == (0, b"hi")


# -- with a model, its engines work on the queues ----------------------------------------------------------------------


def shell(script: str) -> tuple[str, ...]:
    """A command line in which `easq` is the one under test."""
    return "--", "sh", "-c", f'easq() {{ "{sys.executable}" -m easq "$@"; }}; {script}'


def test_one_command_is_a_whole_inference_service(easq: Easq) -> None:
    """Each item has a result in the sink of its queue, under its request id, and is removed from the input."""
    done = easq(
        *("serve", "--queue", "one", "--queue", "two", "--model", "exec:tr a-z A-Z", "--instances", "2"),
        *shell(
            "easq predict -d hello; echo; easq put -q -d x --url ${EASQ_URL%one}two > put;"
            " easq get -k --url ${EASQ_URL%one}two --timeout 60s -o raw; echo;"
            " easq wait --empty --timeout 60s; easq info --field consumers.stats.total"
        ),
    )
    assert (done.status, done.text, done.err) == (0, "HELLO\nX\n2\n", "")


def test_what_the_model_fails_on_is_told_in_the_sink(easq: Easq) -> None:
    done = easq(
        *("serve", "--model", "exec:sh -c 'echo no such image >&2; exit 3'", "--max-delivery", "1"),
        *shell("easq predict -d hello; echo $?; easq get --rear -o raw"),
    )
    assert done.text == "no such image5\nhello"


def test_engines_end_with_the_service_and_hand_back_what_they_had(
    easq: Easq, started: Started, tmp_path: Path
) -> None:
    """The call under way is cut off after the grace; its item is there at the next start, without a failure."""
    storage = ("--storage", f"sqlite:{tmp_path / 'q.db'}")
    process = started("--port", "0", *storage, "--model", "exec:sleep 600")
    url = address(process)
    assert easq("put", "-q", "-d", "long", "--url", url).status == 0
    eventually(lambda: easq("search", "1", "--url", url, "-o", "json").text.find('"IsPending":true') > 0)
    assert terminate(process)[:2] == (0, b"")
    again = easq("serve", *storage, "--model", "echo", *shell("easq get -k --timeout 60s -o raw"))
    assert again.text == "long"


def test_an_engine_goes_on_when_an_ended_stream_is_opened_again(easq: Easq) -> None:
    done = easq(
        *("serve", "--model", "echo"),
        *shell(
            "easq end -y -o none && easq wait --consumers '== 0' --timeout 60s && easq end --undo -o none"
            " && easq predict -d again"
        ),
    )
    assert (done.status, done.text) == (0, "again")
