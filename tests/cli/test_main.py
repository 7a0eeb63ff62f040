"""The root command: help, version, suggestions, exit statuses, imported modules, and usage errors."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from easq import __version__
from easq.cli import main
from easq.cli.app import App
from easq.cli.command import Command, Group, SharedOption
from easq.cli.main import COMMANDS, SECTIONS, root
from easq.errors import Exit
from tests.cli.conftest import DEADLINE_S, Easq, Running, finish
from tests.conftest import Serve

HEAVY = ("aiohttp", "asyncio", "google", "httpcore", "httpx", "rich", "socket", "sqlite3", "ssl", "websocket")
#: not imported either by help, version and completion
IN_NO_HELP = (
    "dataclasses",
    "easq.cli.put",
    "easq.model",
    "email",
    "http",
    "json",
    "traceback",
    "urllib.parse",
)


def test_the_version(easq: Easq) -> None:
    done = easq("--version")
    assert (done.status, done.text, done.err) == (0, f"easq {__version__}\n", "")


def test_help_ends_with_every_exit_status(easq: Easq) -> None:
    done = easq("--help")
    table = done.text.partition("Exit codes:\n")[2]
    words = " ".join(table.split())
    assert done.status == 0
    assert words == " ".join(f"{int(code)} {code.meaning}" for code in Exit)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--help"], ""),
        (["--version"], ""),
        ([], "easq "),
        ([], "easq pu"),
        ([], "easq stream pu"),
        (["completion", "bash"], ""),
        (["config", "--url", "http://h/q"], ""),
        (["config", "show"], ""),
        (["config", "path"], ""),
    ],
)
def test_light_commands_import_nothing_heavy(easq: Easq, args: list[str], words: str) -> None:
    absent = HEAVY + (IN_NO_HELP if args in (["--help"], ["--version"], []) else ())
    code = (
        # click: what it imports itself does not count; protobuf 3.20 imports `google` when the interpreter starts
        "import sys, click, click.shell_completion\nbefore = set(sys.modules)\n"
        "from easq.cli.main import run\nstatus = run(sys.argv[1:])\n"
        f"print([m for m in {absent!r} if m in sys.modules.keys() - before], status, file=sys.stderr)"
    )
    completed = {"_EASQ_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": f"{words.count(' ')}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**easq.environ, **(completed if words else {})},
        cwd=easq.home,
        capture_output=True,
        check=False,
    )
    assert done.stdout
    assert done.stderr.decode() == "[] 0\n"


def _commands(group: click.Group) -> list[click.Command]:
    found: list[click.Command] = []
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        found.append(command)
        if isinstance(command, click.Group):
            found += _commands(command)
    return found


def test_every_command_has_two_to_four_examples() -> None:
    for command in _commands(root):
        assert isinstance(command, Command | Group)
        assert 2 <= len(command.examples) <= 4, command.name
        assert all("easq" in example for example in command.examples), command.name


def test_every_command_answers_help_in_the_width_of_a_terminal(easq: Easq) -> None:
    for name in COMMANDS:
        done = easq(name, "--help")
        assert (done.status, done.err) == (0, ""), name
        assert "Examples:" in done.text, name


def test_the_help_lists_every_command_in_its_order(easq: Easq) -> None:
    sections = easq("--help").text.split("\n\n")
    listed = {title: [line.split()[0] for line in lines] for title, *lines in map(str.splitlines, sections)}
    for title, names in SECTIONS.items():
        assert listed[f"{title}:"] == list(names)


def test_an_unknown_command_is_answered_with_the_nearest(easq: Easq) -> None:
    done = easq("ptu")
    assert (done.status, done.out) == (2, b"")
    assert done.err == "easq: no command 'ptu' (did you mean 'put'?)\nhint: easq --help\n"


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ("-V", "no such option '-V'\nhint: easq --help"),
        ("-x", "no such option '-x'\nhint: easq --help"),
        ("--verson", "no such option '--verson' (did you mean '--version'?)\nhint: easq --help"),
        ("-o", "option '-o' requires an argument\nhint: easq --help"),
        ("-p", "option '-p' requires an argument\nhint: easq --help"),
        ("--url", "option '--url' requires an argument\nhint: easq --help"),
        ("put --data", "option '--data' requires an argument\nhint: easq put --help"),
        ("config set --url", "option '--url' requires an argument\nhint: easq config set --help"),
        ("-o xml info", "invalid value for '-o' / '--output': 'xml' is not one of"),
        (
            "get -l ten",
            "invalid value for '-l' / '--length': 'ten' is not a whole number\nhint: easq get --help",
        ),
        ("get --lenght 3", "no such option '--lenght' (did you mean '--length'?)\nhint: easq get --help"),
        ("get --deleet", "no such option '--deleet'\nhint: easq get --help"),
        ("send", "no command 'send'\nhint: easq --help"),
        ("remove 3", "no command 'remove'\nhint: easq --help"),
        ("delet 3", "no command 'delet'\nhint: easq --help"),
        ("stream gte", "no command 'gte' (did you mean 'get'?)\nhint: easq stream --help"),
        ("watch -n 1 -n 2", "-n is given 2 times, and takes one value\nhint: easq watch --help"),
        ("help put x", "easq put has no command 'x'\nhint: easq put --help"),
        ("help ptu", "no command 'ptu' (did you mean 'put'?)\nhint: easq --help"),
    ],
)
def test_a_usage_error_is_one_line_and_one_hint(easq: Easq, args: str, error: str) -> None:
    done = easq(*args.split())
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(f"easq: {error}")
    assert done.err.count("\n") == 2
    hint = done.err.partition("\nhint: ")[2].split()
    assert easq(*hint[1:]).status == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("get", "--request-id", "", "--delete"), "--request-id is empty; leave it out, or give a value"),
        (("stream", "get", "--request-id="), "--request-id is empty; leave it out, or give a value"),
        (("trunc", "--all", "-y", "--url", ""), "--url is empty; leave it out, or give a value"),
        (("--url", "", "trunc", "--all", "-y"), "--url is empty; leave it out, or give a value"),
        (
            ("config", "-p", "", "set", "url", "http://h/x"),
            "--profile is empty; leave it out, or give a value",
        ),
        (
            ("-p", "", "config", "set", "url", "http://h/x"),
            "--profile is empty; leave it out, or give a value",
        ),
        (("put", "-d", "x", "-f", ""), "--file is empty; leave it out, or give a value"),
        (("put", ""), "the argument [PATH]... is empty"),
        (("config", "use", ""), "the argument NAME is empty"),
    ],
)
def test_what_is_given_and_empty_is_refused(easq: Easq, args: Sequence[str], said: str) -> None:
    """A script's variable that is not set: read as "not given", it would delete another item or queue."""
    done = easq(*args)
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(f"easq: {said}\nhint: easq ")
    assert not (easq.home / ".config").exists()


def test_no_option_takes_an_empty_value() -> None:
    """But for an empty payload and an empty reason."""
    taken = set()
    for _, command in _paths(root):
        needed = [param for param in command.params if isinstance(param, click.Argument) and param.required]
        words = ["bash" if isinstance(param.type, click.Choice) else "1" for param in needed]
        for param in command.params:
            if isinstance(param, click.Option) and not (param.is_flag or param.count):
                try:
                    command.parse_args(click.Context(command, obj=App({})), [param.opts[-1], "", *words])
                except click.MissingParameter:
                    raise
                except click.UsageError:
                    pass
                else:
                    taken.add(param.opts[-1])
    assert taken == {"--data", "--reason"}


def _paths(group: click.Group, above: Sequence[str] = ()) -> Iterator[tuple[list[str], click.Command]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        yield [*above, name], command
        if isinstance(command, click.Group) and not command.hidden:
            yield from _paths(command, (*above, name))


def test_every_option_without_its_value_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In this process: the click that is installed raises and words them as it likes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    tried = 0
    for path, command in [([], root), *_paths(root)]:
        hint = f"\nhint: {' '.join(['easq', *path])} --help\n"
        tries = [["--no-such-option"], ["-Z"]]
        for param in command.params:
            if isinstance(param, click.Option) and not param.is_flag and not param.count:
                tries += [[param.opts[-1]]]
        for args in tries:
            assert main.run([*path, *args]) == 2
            out, err = capfd.readouterr()
            assert (out, err.count("\n")) == ("", 2), err
            assert err.startswith("easq: ")
            assert err.endswith(hint)
            tried += 1
    assert tried > 400


@pytest.mark.parametrize(
    "args", ["-o json ptu", "ptu -o json", "ptu -o text -ojson", "get --output=json -l x"]
)
def test_a_usage_error_is_json_wherever_that_was_asked_for(easq: Easq, args: str) -> None:
    done = easq(*args.split())
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith('{"error":{"kind":"usage","exit":2,"http_status":null,')
    assert easq(*args.split(), "-o", "text").err.startswith("easq: ")
    assert easq("put", "--lenght", "--", "-o", "json").err.startswith("easq: ")


def test_of_connection_and_output_options_the_nearest_to_the_end_holds(queue: Easq) -> None:
    done = queue(
        *(
            "--url",
            "http://127.0.0.1:1/x",
            "-o",
            "none",
            "count",
            "--url",
            "http://127.0.0.1:1/y",
            "-o",
            "json",
        ),
        *(
            "--url",
            queue("config", "show", "-o", "json").text.partition('"url":"')[2].partition('"')[0],
            "-o",
            "text",
        ),
    )
    assert (done.status, done.text) == (0, "0\n")


@pytest.mark.parametrize("args", [["help"], ["stream", "help"], ["help", "put"], ["help", "config", "set"]])
def test_help_is_a_command_too(easq: Easq, args: list[str]) -> None:
    asked = [word for word in args if word != "help"]
    done = easq(*args)
    assert (done.status, done.err) == (0, "")
    assert done.text == easq(*asked, "--help").text


def test_help_shows_the_options_of_every_command(easq: Easq) -> None:
    done = easq("help", "options")
    assert (done.status, done.err) == (0, "")
    assert done.text.startswith("Options of every command, before or after its name:\n")
    for option in (param for param in root.params if isinstance(param, SharedOption)):
        assert option.opts[-1] in done.text


def test_version_is_a_command_too(easq: Easq) -> None:
    done = easq("version")
    assert (done.status, done.text, done.err) == (0, f"easq {__version__}\n", "")
    assert easq("version", "-o", "json").text == f'{{"easq":"{__version__}"}}\n'
    lines = easq("version", "-v").text.splitlines()
    assert lines[0] == f"easq {__version__}"
    assert f"click {importlib.metadata.version('click')}" in lines
    assert f"python {platform.python_version()}" in lines


def test_help_and_version_are_shown_in_every_form_of_output(easq: Easq) -> None:
    for args in (["--help"], ["--version"], ["help", "put"]):
        assert easq(*args, env={"EASQ_OUTPUT": "none"}).text == easq(*args).text != ""


def test_an_unknown_option_is_one_line(easq: Easq) -> None:
    done = easq("put", "--lenght", "3")
    assert done.status == 2
    assert done.err.startswith("easq: no such option")
    assert done.err.endswith("\nhint: easq put --help\n")
    assert done.err.count("\n") == 2


def test_a_negative_number_is_an_index_only_where_one_may_stand(easq: Easq) -> None:
    done = easq("config", "set", "refresh", "-1")
    assert (done.status, done.err) == (2, "easq: no such option '-1'\nhint: easq config set --help\n")
    assert easq("search", "-1").err == "easq: '-1' is not an index: an index is never negative\n"


def test_a_usage_error_is_json_where_json_was_asked_for(easq: Easq) -> None:
    done = easq("get", "abc", "-o", "json")
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(
        '{"error":{"kind":"usage","exit":2,"http_status":null,"message":"invalid value'
    )


@pytest.mark.parametrize(
    ("args", "status"),
    [
        ("info --url http://127.0.0.1:1/q --connect-timeout 0.1", None),
        ("search nosuchid", None),
        ("search 5", 404),
        ("predict -d x --via modelarts --endpoint http://127.0.0.1:1 --project p --service s", None),
        ("get", None),
        ("info --url URLx", 404),
    ],
)
def test_a_status_in_json_is_one_that_a_server_gave(
    queue: Easq, url: str, args: str, status: int | None
) -> None:
    done = queue(*args.replace("URL", url).split(), "-o", "json")
    assert done.status != 0
    assert json.loads(done.err.splitlines()[-1])["error"]["http_status"] == status


def test_no_command_shows_the_help_and_is_a_usage_error(easq: Easq) -> None:
    done = easq()
    assert done.status == 2
    assert done.out == b""
    assert done.err.startswith("Usage: easq ")


def test_no_url_says_what_to_do(easq: Easq) -> None:
    done = easq("info")
    assert (done.status, done.out) == (13, b"")
    assert done.err == (
        "easq: no url of a queue is known\n"
        "hint: easq config --url URL --token-file FILE, or --url, or EASQ_URL\n"
    )


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:3030/q", "ftp://h/q", "http:///q", "http://h h/q", "http://h:0/q", "http://u:geheim99@h/q"],
)
def test_a_url_that_is_none_is_a_configuration_error(easq: Easq, url: str) -> None:
    done = easq("info", "--url", url)
    assert (done.status, done.out) == (13, b"")
    assert done.err.startswith("easq: the url ")
    assert "geheim99" not in done.err


def test_no_server_is_unreachable(easq: Easq) -> None:
    done = easq("info", "--url", "http://127.0.0.1:1/q", "--connect-timeout", "0.1s")
    assert (done.status, done.out) == (6, b"")
    assert done.err.startswith("easq: connection to http://127.0.0.1:1/q refused\n")


def test_no_such_queue_is_not_found(easq: Easq, url: str) -> None:
    done = easq("info", "--url", url + "x")
    assert (done.status, done.out) == (8, b"")
    assert done.err.startswith("easq: ")


def test_a_wrong_token_is_an_auth_failure_that_shows_no_token(easq: Easq, serve: Serve) -> None:
    url = serve(storage="memory:", token="the-right-token-1234").url()
    done = easq("info", "--url", url, env={"EASQ_TOKEN": "the-wrong-token-5678"})
    assert (done.status, done.out) == (7, b"")
    assert "the-wrong-token" not in done.err
    assert easq("info", "--url", url).status == 7
    assert easq("info", "--url", url, env={"EASQ_TOKEN": "the-right-token-1234"}).status == 0


def test_no_form_of_talk_shows_the_token(easq: Easq, serve: Serve) -> None:
    token = "canary-0123456789-canary-abcd"
    url = serve(storage="memory:", token=token).url()
    (easq.home / "t").write_text(token)
    runs = [
        easq("info", "--url", url, "--token", token, "-vvv"),
        easq("info", "--url", url, "--token-file", "t", "-vvv"),
        easq("put", "-d", "x", "--url", url, "-vvv", env={"EASQ_TOKEN": token}),
        easq("info", "--url", url + "x", "-vvv", "-o", "json", env={"EASQ_TOKEN": token}),
        easq("info", "--url", "http://127.0.0.1:1/q", "-vvv", "--connect-timeout", "0.1", "--token", token),
        easq("config", "--url", url, "--token", token, "-vvv"),
        easq("config", "show", "--origin"),
        easq("config", "list", "-o", "json"),
        easq("config", "validate", "--connect", "-vvv"),
    ]
    assert [run.status for run in runs] == [0, 0, 0, 8, 6, 0, 0, 0, 0]
    for run in runs:
        assert token not in run.text + run.err


def test_a_token_on_the_command_line_is_warned_about(easq: Easq, url: str) -> None:
    done = easq("info", "--url", url, "--token", "abcdef", "--field", "stream.length")
    assert (done.status, done.text) == (0, "0\n")
    assert done.err == (
        "easq: warning: others can see a token on the command line (ps, history): "
        "use --token-file or EASQ_TOKEN instead\n"
    )


def test_shared_options_stand_before_or_after_the_command_and_the_nearer_one_holds(queue: Easq) -> None:
    assert queue("-o", "json", "info", "--field", "meta.state").text == '{"meta.state":"Normal"}\n'
    assert queue("info", "--field", "meta.state", "-o", "json").text == '{"meta.state":"Normal"}\n'
    assert queue("-o", "json", "info", "-o", "text", "--field", "meta.state").text == "Normal\n"
    assert queue("stream", "-o", "json", "info", "--field", "meta.state").text == '{"meta.state":"Normal"}\n'


def test_an_option_wins_over_the_environment_wherever_it_stands(queue: Easq) -> None:
    environ = {"EASQ_URL": "http://127.0.0.1:1/q", "EASQ_OUTPUT": "json"}
    url = queue("config", "show").text.partition("url : ")[2].partition("\n")[0]
    done = queue("--url", url, "-o", "text", "info", "--field", "meta.state", env=environ)
    assert (done.status, done.text) == (0, "Normal\n")


def test_a_form_of_output_that_is_none_in_the_environment(easq: Easq) -> None:
    done = easq("info", env={"EASQ_OUTPUT": "yaml"})
    assert done.status == 2
    assert done.err == "easq: EASQ_OUTPUT is 'yaml', not one of text, json, table, raw, none\n"


@pytest.mark.parametrize("name", ["group", "user"])
@pytest.mark.parametrize("value", ["a b", "a\r\nX-Y: z", "ü", "x" * 129, "../x"])
def test_a_name_that_no_header_may_carry_is_refused(queue: Easq, name: str, value: str) -> None:
    done = queue("info", f"--{name}", value)
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(f"easq: {name} ")


@pytest.mark.parametrize("header", ["X", "X Y: z", "X: a\r\nY: b", ": x", "X: ü"])
def test_a_header_that_is_none_is_refused(easq: Easq, header: str) -> None:
    done = easq("info", "--header", header)
    assert (done.status, done.out) == (2, b"")
    assert "header" in done.err


def test_a_bug_is_one_line_and_a_traceback_on_request(easq: Easq) -> None:
    code = (
        "import sys, easq.cli.completion as c\n"
        "def broken(root, shell): raise RuntimeError('kaputt')\n"
        "c.script = broken\n"
        "from easq.cli.main import run\n"
        "sys.exit(run(['completion', 'bash']))"
    )

    def run(**environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**easq.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    plain = run()
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr == "easq: bug: RuntimeError: kaputt; set EASQ_DEBUG=1 for the traceback\n"
    full = run(EASQ_DEBUG="1")
    assert full.returncode == 1
    assert full.stderr.startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize("args", [["--help"], ["completion", "bash"], ["info"], ["get"]])
def test_a_stdout_that_nobody_reads_ends_quietly(queue: Easq, args: list[str]) -> None:
    queue("put", "-d", "x")
    read, write = os.pipe()
    os.close(read)
    with queue.start(*args, stdout=write) as process:
        os.close(write)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "args", [["info"], ["--help"], ["put", "--help"], ["--version"], ["completion", "bash"]]
)
def test_a_full_disk_behind_stdout_is_said(queue: Easq, args: list[str], unbuffered: str) -> None:
    environ = {**queue.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full, queue.start(*args, stdout=full, env=environ) as process:
        assert process.stderr is not None
        assert process.stderr.read() == b"easq: cannot write to stdout: No space left on device\n"
        assert process.wait() == 74


def test_a_ctrl_c_while_easq_starts_shows_no_traceback(easq: Easq) -> None:
    (easq.home / "click.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    environ = {**easq.environ, "PYTHONPATH": f"{easq.home}:{easq.environ['PYTHONPATH']}"}
    with easq.start("info", env=environ) as process:
        out, err = process.communicate()
    assert (process.returncode, out, err) == (-signal.SIGINT, b"", b"")


def test_a_ctrl_c_while_easq_ends_shows_no_traceback(easq: Easq) -> None:
    code = (
        "import os, signal, threading\n"
        "def late():\n"
        "    threading.main_thread().join()\n"  # which is over when the interpreter's end begins
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    threading.Event().wait(60)\n"
        "threading.Thread(target=late).start()\n"
        "import easq.__main__\n"
        "easq.__main__.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        env=easq.environ,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        -signal.SIGINT,
        f"easq {__version__}\n".encode(),
        b"",
    )


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_stays_so(queue: Easq, number: signal.Signals) -> None:
    """By nohup, and for background commands of a script."""
    code = f"import os, signal, sys; signal.signal({int(number)}, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    args = [sys.executable, "-c", code, sys.executable, "-m", "easq", "put", "-q", "-f", "-"]
    with Running(
        args, env=queue.environ, cwd=queue.home, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as putting:
        assert putting.stdin is not None
        assert putting.stdout is not None
        putting.stdin.write(b"a\n")
        putting.stdin.flush()
        assert putting.stdout.readline() == b"[OK] 1\n"
        putting.send_signal(number)
        out, _ = putting.communicate(b"b\n")
    assert (putting.returncode, out) == (0, b"[OK] 2\n")


def test_color_is_for_terminals_unless_told_otherwise(easq: Easq) -> None:
    colored = "\x1b[31measq:\x1b[0m no command 'x'"
    assert easq("x", env={"NO_COLOR": ""}).err.startswith("easq: no command 'x'")
    assert easq("x", env={"NO_COLOR": "", "FORCE_COLOR": "1"}).err.startswith(colored)
    assert easq("--color", "always", "info").err.startswith("\x1b[31measq:\x1b[0m no url")
    assert finish(easq.terminal("x", env={"NO_COLOR": ""}))[1].startswith(colored)
    assert finish(easq.terminal("x", env={"NO_COLOR": "", "TERM": "dumb"}))[1].startswith("easq: no command")
    assert finish(easq.terminal("--color", "never", "info", env={"NO_COLOR": ""}))[1].startswith(
        "easq: no url"
    )


def test_an_error_cannot_drive_the_terminal(easq: Easq) -> None:
    status, text = finish(easq.terminal("x\x1b]0;t\x07\r\u202e"))
    assert status == 2
    assert text.startswith(r"easq: no command 'x\x1b]0;t\x07\r\u202e'")
