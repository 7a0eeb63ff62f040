"""The root command: registration of every command, the alias `stream`, and main()."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from easq import __version__
from easq.cli.app import App, environment, exit_status, signals_raise
from easq.cli.completion import COMPLETE_VARIABLE
from easq.cli.options import Group, shared_options
from easq.errors import EasqError, Exit, UsageError

#: the commands, in the order of the help: each is a file of that name, read when it is wanted. A command file imports
#: click and its options at the top, everything else in its bodies (measured: all of them are 30 ms, a fifth of a put)
COMMANDS = (
    *(
        "config",
        "info",
        "put",
        "get",
        "delete",
        "trunc",
        "watch",
        "predict",
        "endpoints",
        "commit",
        "negative",
    ),
    *("search", "count", "end", "wait", "work", "serve", "bench", "demo", "completion"),
)


class Commands(Group):
    """A group of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, from its file."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module(f"easq.cli.{cmd_name}"), cmd_name)
        return found


class Root(Commands):
    """The root group; its help ends with the exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, then the exit codes."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), code.meaning) for code in Exit])


@click.group(
    cls=Root,
    examples=(
        "easq config --url http://127.0.0.1:3030/api/predict/qservice",
        "easq put -d '[{}]'",
        "easq get -l 10 --timeout 3s",
        "easq watch -k --commit output | jq .",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="easq", message="%(prog)s %(version)s")
@shared_options
def root() -> None:
    """A client for queues of asynchronous inference (EAS queue service)."""


@click.group("stream", cls=Commands, hidden=True, examples=("easq stream put -d 10s", "easq stream get -l10"))
@shared_options
def stream() -> None:
    """The same commands under eascmd's name."""


root.add_command(stream)


#: the arguments that are indexes; only there a negative number was meant as one
_INDEXES = {"index", "indexes", "item"}

#: objects made before the collector looks for garbage, and how often it looks at older ones; Python: 700, 10, 10
_COLLECT_AFTER = (50_000, 20, 20)


def main() -> NoReturn:
    """Run the command line and leave with its exit status.

    Looking for garbage that is not there is a sixth of `easq put -d x`: while modules are loaded, which makes objects
    that stay, and once more for all of them at the end, when everything of worth has been closed.
    """
    gc.set_threshold(*_COLLECT_AFTER)
    status = run(sys.argv[1:])
    gc.freeze()
    sys.exit(status)


def run(args: Sequence[str]) -> int:
    """The exit status of `easq ARGS`; whatever went wrong has been said in a line."""
    environ = environment()
    if environ.get(COMPLETE_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(root, {}, "easq", COMPLETE_VARIABLE, environ[COMPLETE_VARIABLE])
    app = App(environ)
    try:
        with signals_raise():
            return _run(app, list(args))
    except BaseException as error:
        return _failed(app, error)


def _run(app: App, args: list[str]) -> int:
    try:
        with root.make_context("easq", args, obj=app) as ctx:
            root.invoke(ctx)
        app.printer.close()
    except click.exceptions.Exit as done:
        _flush_click()
        return done.exit_code
    except click.ClickException as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(error.format_message(), err=True)
            return int(Exit.USAGE)
        _find_output(app, args)
        raise _usage_error(error, args) from error
    finally:
        app.close()
    return int(Exit.DONE)


def _failed(app: App, error: BaseException) -> int:
    from easq.render.printer import OutputClosed

    printer = app.printer
    if isinstance(error, OSError) and _is_echo(error):
        error = printer.failed(error)
    try:
        if not isinstance(error, OutputClosed):
            printer.flush()
    except (OutputClosed, EasqError) as closed:
        error = closed
    if isinstance(error, EasqError):
        printer.error(error)
    elif isinstance(error, OutputClosed):
        printer.abandon()
    elif not isinstance(error, KeyboardInterrupt):
        printer.bug(error)
    return exit_status(error)


def _is_echo(error: OSError) -> bool:
    """Whether click's own writing of a help text raised it, or our flushing of that."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"] in ("click.utils", __name__)


def _usage_error(error: click.ClickException, args: Sequence[str]) -> UsageError:
    """click's complaint in our words: one line and what to do next."""
    message = error.format_message()
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.NoSuchOption) and ctx and any(p.name in _INDEXES for p in ctx.command.params):
        negative_number = next((arg for arg in args if arg[:1] == "-" and arg[1:].isdigit()), None)
        if negative_number:
            return UsageError(f"{negative_number!r} is not an index: an index is never negative")
    message = message[:1].lower() + message[1:].rstrip(".")
    return UsageError(" ".join(message.split()), hint=f"{ctx.command_path if ctx else 'easq'} --help")


def _find_output(app: App, args: Sequence[str]) -> None:
    """The App knows `-o json`, though the command line it stands in could not be read."""
    for first, second in zip(args, (*args[1:], ""), strict=True):
        if first in ("-ojson", "--output=json") or (first in ("-o", "--output") and second == "json"):
            app.options["output"] = "json"


def _flush_click() -> None:
    """What click wrote on stdout is out, or OSError is raised here and not at the interpreter's end."""
    if sys.stdout is not None:
        sys.stdout.flush()
