"""The classes of commands and groups, and the options of every command.

The options of every command may stand before or after its name: each stores its value in the App of the run, and the
one after the name overrides the one before. A command reads these options from the App, never as parameters.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import click
from click.core import ParameterSource

from easq.cli.app import OUTPUTS
from easq.cli.param_types import DURATION, HEADER

#: length above which click cuts a summary, in characters; no summary is longer
_SUMMARY_LENGTH = 1000


#: parameters whose empty value means something: an empty payload or reason, a word of a command that is run, and the
#: value of `config set`, which refuses it with a hint of its own
_MAY_BE_EMPTY = frozenset(("data", "reason", "cmd", "value"))


class SharedOption(click.Option):
    """An option of every command, shown by `easq help options` alone."""


class SourceOption(click.Option):
    """An option that names payloads. A command gets the values of all such options as `given`, in the order given.

    `convert_source` converts each value: to bytes for a payload itself, to text for the name of a file.
    """

    def __init__(self, *args: Any, convert_source: Callable[[str], bytes | str], **attributes: Any) -> None:
        super().__init__(*args, **{**attributes, "multiple": True})
        self.convert_source = convert_source


class NoCommand(click.UsageError):
    """Raised for a group that is called without a command; the message is the help of the group."""


@contextmanager
def _with_error_context(ctx: click.Context) -> Iterator[None]:
    """Set the context of usage errors raised inside: click's parser leaves it out for an option without a value."""
    try:
        yield
    except click.UsageError as error:
        error.ctx = error.ctx or ctx
        raise


class Command(click.Command):
    """A command with examples. It checks the environment before it runs."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **{**attributes, "add_help_option": False})
        self.params += [HELP, *_shared_params()]
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `args`. Raises click.UsageError.

        Also raises it for a second value of an option that takes one, and for an empty value.
        """
        with _with_error_context(ctx):
            # parsed twice: click itself does not keep the order of different options
            values_given, _, order = self.make_parser(ctx).parse_args(args=list(args))
            rest = super().parse_args(ctx, args)
            if not ctx.resilient_parsing:
                _refuse_repeated(order, ctx)
                _refuse_empty(values_given, order, ctx)
        if sources := [param for param in self.params if isinstance(param, SourceOption)]:
            values = {param: iter(ctx.params.pop(str(param.name))) for param in sources}
            ctx.params["given"] = tuple(
                param.convert_source(next(values[param]))
                for param in order
                if isinstance(param, SourceOption)
            )
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the body after the check of the environment."""
        ctx.obj.start()
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options."""
        _format_options(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and where the shared options are shown."""
        _format_end(self.examples, formatter)
        super().format_epilog(ctx, formatter)


class Group(click.Group):
    """A group of commands that suggests the nearest command for an unknown word."""

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **{**attributes, "add_help_option": False})
        self.params += [HELP, *_shared_params()]
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `args`. Raises click.UsageError, and NoCommand for no arguments where a command is needed."""
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            raise NoCommand(ctx.get_help(), ctx)
        with _with_error_context(ctx):
            values_given, _, order = self.make_parser(ctx).parse_args(args=list(args))
            rest = super().parse_args(ctx, args)
            if not ctx.resilient_parsing:
                _refuse_empty(values_given, order, ctx)
            return rest

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` name. Raises click.UsageError for an unknown word."""
        if args and self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            from easq.cli.usage import nearest_command

            raise click.UsageError(f"no command {args[0]!r}{nearest_command(args[0], self, ctx)}", ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, then the options."""
        self.format_commands(ctx, formatter)
        _format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands of each section with the first sentence of their help, which is never cut."""
        sections = self.sections(ctx)
        width = max(len(name) for summaries in sections.values() for name in summaries)
        for title, summaries in sections.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{width}}", summary) for name, summary in summaries.items()])

    def sections(self, _ctx: click.Context) -> Mapping[str, Mapping[str, str]]:
        """Return the summaries of the commands that are not hidden, by title of the section and name."""
        shown = ((name, command) for name, command in sorted(self.commands.items()) if not command.hidden)
        return {"Commands": {name: command.get_short_help_str(_SUMMARY_LENGTH) for name, command in shown}}

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and where the shared options are shown."""
        _format_end(self.examples, formatter)
        super().format_epilog(ctx, formatter)


def _refuse_repeated(order: Sequence[click.Parameter], ctx: click.Context) -> None:
    """Raise click.UsageError for an option in `order` that takes one value and is given twice.

    The options for connection and output are exempt: their last value counts, so that an alias can be overridden.
    """
    for param, count in Counter(order).items():
        if count == 1 or not isinstance(param, click.Option) or param.callback is keep:
            continue
        if not (param.multiple or param.count or param.is_flag):
            raise click.UsageError(f"{param.opts[-1]} is given {count} times, and takes one value", ctx)


def _refuse_empty(values: Mapping[str, Any], order: Sequence[click.Parameter], ctx: click.Context) -> None:
    """Raise click.UsageError for an option or argument in `order` whose value is empty.

    An empty value often comes from a variable that is not set. It would be read as if the option were missing.
    """
    for param in order:
        name = str(param.name)
        value = values.get(name)
        given = value if isinstance(value, (list, tuple)) else (value,)
        if name in _MAY_BE_EMPTY or "" not in given:
            continue
        if isinstance(param, click.Option):
            raise click.UsageError(f"{param.opts[-1]} is empty; leave it out, or give a value", ctx)
        raise click.UsageError(f"the argument {param.human_readable_name} is empty", ctx)


def _format_options(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    records = [
        record
        for param in command.get_params(ctx)
        if isinstance(param, click.Option) and not isinstance(param, SharedOption)
        if (record := param.get_help_record(ctx)) is not None
    ]
    with formatter.section("Options"):
        formatter.write_dl(records)


def _format_end(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """Write the examples, and where the shared options are shown."""
    with formatter.section("Examples"):
        for example in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
    formatter.write_paragraph()
    formatter.write_text("Options of every command: easq help options.")


def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Store the value of an option in the App. It is added to the value given before the command, or replaces that
    value.
    """
    if ctx.obj is None or param.name is None:
        return
    if ctx.get_parameter_source(param.name) is not ParameterSource.COMMANDLINE:
        return
    options: MutableMapping[str, Any] = ctx.obj.options
    if param.name == "verbose":
        options["verbose"] = options.get("verbose", 0) + value
    elif param.multiple:
        options[param.name] = (*options.get(param.name, ()), *value)
    else:
        options[param.name] = value


def _shared(*names: str, **attributes: Any) -> click.Option:
    return SharedOption(names, expose_value=False, callback=keep, **attributes)


def _show_help(ctx: click.Context, _param: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        ctx.obj.printer.help(ctx.get_help())
        ctx.exit()


HELP = click.Option(
    ("-h", "--help"),
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_help,
    help="Show this message and exit.",
)


def _complete_profiles(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from easq.config.profiles import config_path, load
    from easq.errors import ConfigError

    try:
        return [name for name in load(config_path(os.environ)).profiles if name.startswith(incomplete)]
    except ConfigError:
        return []


@cache
def _shared_params() -> Sequence[click.Parameter]:
    """Return the options of every command. They are made once: making them for each of 25 commands took 8 ms of a
    start.
    """
    return (
        _shared(
            "-p",
            "--profile",
            metavar="NAME",
            shell_complete=_complete_profiles,
            help="Profile to use.  [default: the current profile]",
        ),
        _shared("--url", metavar="URL", help="URL of the queue; the URL of a sink ends in /sink."),
        _shared("--token", metavar="TOKEN", help="Token. Other users can see it in ps; prefer --token-file."),
        _shared("--token-file", type=click.Path(readable=False), help="File with the token."),
        _shared("--group", metavar="GROUP", help="Consumer group.  [default: default_group]"),
        _shared("--user", metavar="USER", help="Name of the consumer in its group.  [default: default_user]"),
        _shared("--header", type=HEADER, multiple=True, help="Additional request header; can be repeated."),
        _shared("--cacert", type=click.Path(readable=False), help="PEM file of CA certificates to trust."),
        _shared("--insecure", is_flag=True, help="Do not verify TLS certificates."),
        _shared("--connect-timeout", type=DURATION, help="Maximum time to connect.  [default: 5s]"),
        _shared("--request-timeout", type=DURATION, help="Maximum time of one HTTP request.  [default: 30s]"),
        _shared("-o", "--output", type=click.Choice(OUTPUTS), help="Output format.  [default: text]"),
        _shared("-q", "--quiet", is_flag=True, help="Hide progress and totals."),
        _shared("-v", "--verbose", count=True, help="Log requests; -vv also headers, -vvv also bodies."),
        _shared(
            "--color", type=click.Choice(("auto", "always", "never")), help="Use colors.  [default: auto]"
        ),
        _shared("--no-input", is_flag=True, help="Never ask; fail where an answer is needed."),
        _shared("-y", "--yes", is_flag=True, help="Answer yes to every question."),
    )


def command(name: str, *, examples: Sequence[str]) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator that makes a command of a function. The first parameter of the function is the App."""

    def make(function: Callable[..., Any]) -> click.Command:
        return click.command(name, cls=Command, examples=examples)(click.pass_obj(function))

    return make
