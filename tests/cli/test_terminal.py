"""Every command on a terminal of 40, 80 and 200 columns: the final screen of a terminal emulator."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from easq import __version__
from easq.cli.main import COMMANDS
from tests.cli.conftest import Easq
from tests.cli.direct import Service, service
from tests.client.servers import listing
from tests.support.tools import find_tool
from tests.support.waiting import eventually

if not os.environ.get("CI"):
    pytest.importorskip("pyte")

from tests.support.terminal import LITERAL_ESCAPE, Terminal

__all__ = ["service"]  # the fixture

WIDTHS = (40, 80, 200)
TAGS = r"tags\[Header:Content-Type=text/plain; charset=utf-8 requestId=\S+ ts@source=\d{13}\]"
TOTALS = r"Total time cost: \S+\nTotal size: \S+ B\nTotal: {0}, success: {0}, failed: 0\n"


@dataclass(frozen=True)
class Run:
    """One command and the screen that it leaves; `given` are earlier commands, `typed` is the answer to a prompt."""

    args: Sequence[str]
    screen: str
    status: int = 0
    given: Sequence[Sequence[str]] = ()
    typed: tuple[str, bytes] | None = None
    is_escaped: bool = False  #: a payload holds control characters


ITEMS = (("put", "-q", "-d", "data1", "-d", "data2", "-d", "data3"),)

RUNS: dict[str, Run] = {
    "config save": Run(("config", "--url", "http://h/q", "-p", "b"), r"\[OK\] profile b saved\n"),
    "config": Run(
        ("config",), r"profile : default\nurl : http://\S+\ngroup : default_group\nuser : default_user\n"
    ),
    "config show": Run(
        ("config", "show", "--origin"), r"profile : default \(config file\)\nurl : (?s:.*) \(built-in\)\n"
    ),
    "config list": Run(("config", "list"), r"\* default : http://\S+\n"),
    "config use": Run(("config", "use", "default"), r"\[OK\] current profile: default\n"),
    "config set": Run(("config", "set", "user", "me"), r"\[OK\] profile default saved\n"),
    "config unset": Run(("config", "unset", "url"), r"\[OK\] profile default: url removed\n"),
    "config rm": Run(
        ("config", "rm", "default"),
        r"remove profile default \[y/N\]y\n\[OK\] profile default removed\n",
        typed=("[y/N]", b"y\n"),
    ),
    "config path": Run(("config", "path"), r"/\S+config\.toml\n"),
    "config validate": Run(("config", "validate", "--connect"), r"\[OK\] /\S+\n\[OK\] q\d+ answers\n"),
    "info": Run(("info",), r"\[OK\] Attributes:\n(?:\S+ : ?[^\n]*\n)+"),
    "info table": Run(("info", "-o", "table"), r"(?s)\s*key\s+value\s*\n.*stream\.length\s+0.*"),
    "put": Run(("put", "-d", "10s"), r"\[OK\] 1\n\[INFO\] Put data done\.\n" + TOTALS.format(1)),
    "put lines": Run(
        ("put", "-d", "a", "-d", "b"), r"\[OK\] 1\n\[OK\] 2\n\[INFO\] Put data done\.\n" + TOTALS.format(2)
    ),
    "get": Run(
        ("get", "-l", "3"),
        "".join(rf"\[OK\] \[{n} - {n + 1}\] {TAGS} data{n + 1}\n" for n in range(3)),
        given=ITEMS,
    ),
    "get json": Run(("get", "-o", "json"), r'\{"n":0,"index":"1",[^\n]*\}\n', given=ITEMS),
    "get raw": Run(("get", "-o", "raw", "-l", "2"), r"data1\ndata2\n", given=ITEMS),
    "get nothing": Run(("get",), r"easq: no data\n", status=3),
    "delete": Run(
        ("delete", "2", "9"),
        r"Deleting index\(es\):\n2\n9 \[y/N\]y\n\[OK\] deleted\n"
        r"easq: warning: 1 of 2 deleted; not counted: items that do not exist\n",
        given=ITEMS,
        typed=("[y/N]", b"y\n"),
    ),
    "trunc": Run(
        ("trunc", "3"),
        r"trunc stream from index: 3 \[y/N\]n\neasq: not confirmed: nothing was done\n",
        status=2,
        given=ITEMS,
        typed=("[y/N]", b"n\n"),
    ),
    "watch": Run(
        ("watch", "-n", "1"),
        r"\[INFO\] Start to watch: index: 0, indexOnly: false, autoCommit: false, window: 10\n"
        rf"\[OK\] \[0 - 1\] {TAGS} data1\ncommit: 1 \? \[Y/n\]\n",
        given=ITEMS,
        typed=("[Y/n]", b"\n"),
    ),
    "watch command": Run(
        ("watch", "-q", "-n", "2", "--", "sh", "-c", r"printf '\033[31m\r'; cat"),
        r"\\x1b\[31m\\rdata1\n\\x1b\[31m\\rdata2\n",
        given=ITEMS,
        is_escaped=True,
    ),
    "predict": Run(
        ("predict", "-d", "x", "--tags", "requestId=r"),
        r"done\n",
        given=(("put", "-q", "-k", "-d", "done", "--tags", "requestId=r"),),
    ),
    "commit": Run(("commit", "1"), r"\[OK\] committed\n", given=ITEMS),
    "negative": Run(
        ("negative", "1"),
        r"\[OK\] negative\n"
        r"easq: warning: 0 of 1 negative; not counted: items that are not pending in group default_group\n",
        given=ITEMS,
    ),
    "search": Run(
        ("search", "2"), r"index : 2\nConsumerId : q\d+\.\nIsPending : false\nWaitCount : 1\n", given=ITEMS
    ),
    "count": Run(("count",), r"3\n", given=ITEMS),
    "end": Run(("end", "-y"), r"\[OK\] [^\n]+\n"),
    "wait": Run(("wait", "--ready"), r"(?:\[OK\][^\n]*\n)?"),
    "bench": Run(("bench", "put", "-n", "50", "--warmup", "0"), r"(?s).*(?:throughput|p99).*"),
    "completion": Run(("completion", "bash"), r"(?s)_easq_completion\(\).*", is_escaped=True),
    "help": Run(("help", "put"), r"(?s)Usage: easq put .*Examples:\n.*"),
    "version": Run(
        ("version", "-v"), rf"easq {re.escape(__version__)}\n(?:commit [0-9a-f]{{40}}\n)?python (?s:.*)\n"
    ),
    "an error": Run(
        ("get", "--lenght", "3"),
        r"easq: no such option '--lenght' \(did you mean '--length'\?\)\nhint: easq get --help\n",
        status=2,
    ),
}


def end(terminal: Terminal, run: Run) -> str:
    """The screen that `run` left, which holds no escape that is not one of a payload."""
    if run.typed is not None:
        prompt, answer = run.typed
        terminal.until(lambda text: prompt in text)
        terminal.send(answer)
    assert terminal.finish() == run.status
    return terminal.text


@pytest.mark.parametrize("name", RUNS)
def test_the_screen_in_every_width(name: str, easq: Easq, names: Iterator[str]) -> None:
    run = RUNS[name]
    for columns in WIDTHS:
        easq.config.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        easq.config.touch(mode=0o600)
        easq.config.write_text(
            f'version = 1\nprofile = "default"\n\n[profiles.default]\nurl = "{next(names)}"\n'
        )
        for given in run.given:
            assert easq(*given).status == 0
        with easq.screen(*run.args, columns=columns) as terminal:
            text = end(terminal, run)
        assert re.fullmatch(run.screen, text), text
        assert run.is_escaped or not LITERAL_ESCAPE.search(text), text


@pytest.fixture
def lines(queue: Easq) -> Easq:
    """A queue, and files of lines: `few` takes 1.7 seconds at 100 a second, `lines` no end."""
    (queue.home / "few").write_text("x\n" * 170)
    (queue.home / "lines").write_text("x\n" * 50_000)
    return queue


PUT = ("put", "-f", "lines", "--rate", "100")
PUT_DONE = (
    r"\[INFO\] Opening data file: (?:lines|few)\n{0}\[INFO\] Put data {1}\.\nTotal time cost: \S+\n"
    r"Total size: \S+ B\nTotal: "
)


@pytest.mark.parametrize(
    ("columns", "resized", "output"), [(200, 40, "none"), (40, 200, "none"), (80, 60, "text")]
)
def test_a_progress_line_leaves_nothing_behind_a_resize_and_ctrl_c(
    lines: Easq, columns: int, resized: int, output: str
) -> None:
    with lines.screen(*PUT, "-o", output, columns=columns) as terminal:
        for width in (resized, columns):
            drawn = len(terminal.raw)
            terminal.until(lambda _: re.search(rb"\d% ", terminal.raw[drawn:]))  # noqa: B023
            terminal.resize(width)
        terminal.send(b"\x03")
        assert terminal.finish() == 130
    # where the terminal echoed ^C into the line of an item, it stays, as with any program
    text = terminal.text.replace("^C", "") if output == "text" else terminal.text
    stored = r"(?:\[OK\] \d+\n)+" if output == "text" else ""
    assert re.fullmatch(PUT_DONE.format(stored, "interrupted") + r"\d+, .*\n", text), text


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_live_line_of_work_leaves_nothing(queue: Easq, columns: int) -> None:
    """Not after a resize, nor after a first Ctrl-C, which waits for requests in flight, nor after a second one, which
    does not.
    """
    queue("put", "-q", "-f", "-", stdin=b"a\nstuck\n")
    script = 'read -r x; [ "$x" = stuck ] && touch stuck && exec sleep 60; echo "$x"'
    with queue.screen(
        "work", "--jobs", "1", "--grace", "60s", "--", "sh", "-c", script, columns=columns
    ) as terminal:
        terminal.until(lambda text: re.search(r"1 done", text))
        eventually((queue.home / "stuck").exists)
        terminal.resize(40 if columns == 200 else 100)
        terminal.send(b"\x03")
        terminal.until(lambda text: re.search(r"stopping; 1 under way\n1 done", text))
        terminal.send(b"\x03")
        assert terminal.finish() == 130
    assert re.fullmatch(r"(?:\[INFO\] [^\n]*\n|Total[^\n]*\n)+", terminal.text), terminal.text
    assert not LITERAL_ESCAPE.search(terminal.text)


def test_the_line_of_a_bench_leaves_nothing_behind_ctrl_c(queue: Easq) -> None:
    with queue.screen("bench", "put", "-n", "5000", "--rate", "100", "--warmup", "0", columns=40) as terminal:
        terminal.until(lambda text: re.search(r"\d% ", text))
        terminal.send(b"\x03")
        assert terminal.finish() == 130
    assert "%" not in terminal.text
    assert "ETA" not in terminal.text


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_watch_that_is_interrupted_leaves_its_items_alone_on_the_screen(queue: Easq, columns: int) -> None:
    queue("put", "-q", "-d", "data1", "-d", "data2")
    with queue.screen("watch", "--commit", "output", columns=columns) as terminal:
        terminal.until(lambda text: "data2" in text)
        terminal.resize(40)
        terminal.send(b"\x03")
        assert terminal.finish() == 130
    lines = terminal.text.replace("^C", "").splitlines()
    assert [line.partition(" ")[0] for line in lines if line.startswith("[")] == ["[INFO]", "[OK]", "[OK]"]


@pytest.mark.long
@pytest.mark.parametrize("columns", WIDTHS)
def test_the_tour_on_a_terminal(easq: Easq, columns: int) -> None:
    with easq.screen("demo", columns=columns) as terminal:
        assert terminal.finish() == 0
    assert terminal.text.endswith("\nAll 13 steps gave the expected output.\n")
    assert terminal.text.count("\n# ") == 10
    assert not LITERAL_ESCAPE.search(terminal.text), terminal.text


@pytest.mark.parametrize(
    "columns", [40, *(pytest.param(columns, marks=pytest.mark.long) for columns in (80, 200))]
)
def test_a_service_on_a_terminal(easq: Easq, columns: int) -> None:
    with easq.screen("serve", "--port", "0", "--storage", "memory:", columns=columns) as terminal:
        terminal.until(lambda text: "storage memory:" in text)
        terminal.send(b"\x03")
        assert terminal.finish() == 0
    first, *rest = terminal.text.replace("^C", "").splitlines()
    assert re.fullmatch(r"EASQ_URL=http://127\.0\.0\.1:\d+/\S+", first)
    assert all(line.startswith("[INFO] ") for line in rest if line), terminal.text


def test_the_instances_of_a_service_on_a_terminal(easq: Easq, service: Service) -> None:
    service.listed.now = listing(*service.instances, weights=[300, 100])
    for columns in WIDTHS:
        with easq.screen("endpoints", columns=columns) as terminal:
            assert terminal.finish() == 0
        rows = [row.split() for row in terminal.rows if "127.0.0.1" in row]
        assert [row[1:] for row in rows] == [["300", "75.0%"], ["100", "25.0%"]], terminal.text
        assert not LITERAL_ESCAPE.search(terminal.text)


def test_every_help_fits_a_narrow_terminal(easq: Easq) -> None:
    for name in COMMANDS:
        with easq.screen("help", name, columns=40) as terminal:
            assert terminal.finish() == 0
        assert terminal.text.startswith(f"Usage: easq {name} ")
        assert not LITERAL_ESCAPE.search(terminal.text), terminal.text


def test_every_command_is_on_a_terminal_here() -> None:
    elsewhere = {"demo", "serve", "work", "endpoints"}
    assert {name.split()[0] for name in RUNS if name != "an error"} | elsewhere == set(COMMANDS)


@pytest.mark.long
def test_a_progress_line_leaves_nothing_on_a_terminal_that_breaks_its_lines_anew(lines: Easq) -> None:
    """Like tmux and most terminals when they become narrower, but not xterm."""
    tmux = (find_tool("tmux"), "-L", lines.home.name, "-f", os.devnull)

    def screen() -> str:
        return subprocess.run(
            [*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True
        ).stdout

    command = shlex.join(
        [os.fsdecode(word) for word in lines.argv(["put", "-f", "few", "--rate", "100", "-o", "none"])]
    )
    start = ("new-session", "-d", "-x", "200", "-y", "50", "-c", str(lines.home), f"{command}; sleep 60")
    environ = {key: value for key, value in lines.environ.items() if key != "COLUMNS"}
    subprocess.run([*tmux, *start], check=True, env=environ)
    try:
        eventually(lambda: re.search(r"\d% ", screen()))
        subprocess.run([*tmux, "resize-window", "-x", "40"], check=True)
        eventually(lambda: "success" in screen())
        text = re.sub("\n+$", "\n", screen())
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    assert re.fullmatch(PUT_DONE.format("", "done") + r"170, success: 170, failed: 0\n", text), text
