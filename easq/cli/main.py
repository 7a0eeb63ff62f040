"""The root command: registration of every command, the alias `stream`, and main()."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import click

from easq import __version__
from easq.cli.app import COMPLETE_VARIABLE, App, environment, exit_status
from easq.cli.command import Group, NoCommand
from easq.cli.signals import signals_raise
from easq.errors import EasqError, Exit

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

#: section of the help -> command -> its summary, the first sentence of its docstring. Each command is a file of its
#: name, imported when it is called: importing all of them would double the time of `easq --help`
SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Queue": {
        "put": "Append items to the queue.",
        "get": "Read items without removing them from the queue.",
        "watch": "Subscribe to the queue and commit items.",
        "delete": "Delete items by index.",
        "trunc": "Delete all items below an index.",
        "count": "Count the items of the queue.",
        "search": "Show the state of one item.",
        "commit": "Commit items by index.",
        "negative": "Mark items as failed, so that they are delivered again.",
    },
    "Model": {
        "predict": "Send requests to the model and print its answers.",
        "work": "Run a worker: process items and write results to the sink.",
        "endpoints": "List the service instances for direct calls.",
        "bench": "Measure the throughput and latency of a queue or a model.",
    },
    "Operate": {
        "info": "Show the attributes of the queue.",
        "wait": "Wait until the queue meets a condition.",
        "end": "End the stream, so that nothing more can be put.",
    },
    "Local": {
        "serve": "Run the queue service on this machine.",
        "demo": "Show the main commands on a temporary service.",
    },
    "Setup": {
        "config": "Save, show and change connection profiles.",
        "completion": "Print a completion script for a shell.",
        "help": "Show the help of a command.",
        "version": "Show the version.",
    },
}
COMMANDS = {name: summary for section in SECTIONS.values() for name, summary in section.items()}


class Commands(Group):
    """A group of all commands."""

    def sections(self, _ctx: click.Context) -> Mapping[str, Mapping[str, str]]:
        """Return the sections of the help."""
        return SECTIONS

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and options that begin with `incomplete`, without importing the commands."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=summary)
            for name, summary in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, hidden ones included."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, imported from its file; None if there is none."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module(f"easq.cli.{cmd_name}"), cmd_name)
        return found


class Root(Commands):
    """The root group; its help ends with the exit codes."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, then the exit codes."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), code.meaning) for code in Exit])


def _show_version(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        ctx.obj.printer.help(f"easq {__version__}")
        ctx.exit()


@click.group(
    cls=Root,
    examples=(
        "easq config --url http://127.0.0.1:3030/api/predict/qservice",
        "easq put -d '[{}]'",
        "easq get -l 10 --timeout 3s",
        "easq watch -k --commit output | jq .",
    ),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def root() -> None:
    """Put, watch, process and serve queues of asynchronous inference (EAS queue service)."""


@click.group("stream", cls=Commands, hidden=True, examples=("easq stream put -d 10s", "easq stream get -l10"))
def stream() -> None:
    """Run the same commands under the name that eascmd gives them."""


root.add_command(stream)


def main() -> NoReturn:
    """Run the command line and leave with its exit status."""
    status = run(sys.argv[1:])
    gc.freeze()  # no garbage collection at exit: all resources are closed
    sys.exit(status)


def run(args: Sequence[str]) -> int:
    """Run `easq ARGS`, print the error if there is one, and return the exit status."""
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
        with root.make_context("easq", list(args), obj=app) as ctx:  # a copy: click empties the list
            root.invoke(ctx)
        app.printer.close()
    except click.exceptions.Exit as done:
        return done.exit_code
    except NoCommand as error:
        app.printer.help(error.message, asked=False)
        return int(Exit.USAGE)
    except click.ClickException as error:
        from easq.cli.usage import asked_output, usage_error

        app.options["output"] = asked_output(args) or app.options.get("output")
        if "token" in args:  # `config set token A B`: click's message quotes the word that is too many
            for word in args[args.index("token") + 1 :]:
                app.printer.hide(word)
        raise usage_error(error, args) from error
    finally:
        app.close()
    return int(Exit.DONE)


def _failed(app: App, error: BaseException) -> int:
    from easq.render.printer import OutputClosed

    printer = app.printer
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
