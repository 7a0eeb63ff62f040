"""Shared options, the types of arguments, and the two classes every command is made of.

Connection and output options may stand before or after the command: each stores what was given in the one App
of the run, the nearer one last. A command reads them from there and never as parameters.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from easq.cli.app import OUTPUTS, App
from easq.model import MAX_WIRE_INDEX, NEWEST

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]  # generic for mypy, and a plain class in click 8.1
else:
    ParamType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

#: `watch --commit`: after the user's answer, once the item was written, or never
ASK, OUTPUT, NONE = "ask", "output", "none"
#: bytes of indexes on stdin: three million of the longest
_MAX_INDEXES_BYTES = 64 * 1024 * 1024
#: characters of a summary above which click cuts it; none is so long
_SUMMARY_LENGTH = 1000
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN_IN_HEADER = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
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
def _errors_know(ctx: click.Context) -> Iterator[None]:
    """Set the context of usage errors raised inside: click's parser leaves it out for an option without a value."""
    try:
        yield
    except click.UsageError as error:
        error.ctx = error.ctx or ctx
        raise


class Command(click.Command):
    """A command with examples; what is wrong with the environment is said before it runs."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **{**attributes, "add_help_option": False})
        self.params += [HELP, *_shared_params()]
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `args`. Raises click.UsageError.

        Also raises it for a second value of an option that takes one, and for an empty value.
        """
        with _errors_know(ctx):
            # parsed twice, for the order of all options: click keeps the values of each option, or only the last
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
        """Run the body once the App has found nothing wrong with the environment."""
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
    """A group of commands that suggests the nearest one for a word that is none."""

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
        with _errors_know(ctx):
            values_given, _, order = self.make_parser(ctx).parse_args(args=list(args))
            rest = super().parse_args(ctx, args)
            if not ctx.resilient_parsing:
                _refuse_empty(values_given, order, ctx)
            return rest

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` name. Raises click.UsageError with the nearest one for a word that names none."""
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
        width = max(len(name) for names in sections.values() for name in names)
        for title, names in sections.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{width}}", self._summary(ctx, name)) for name in names])

    def sections(self, ctx: click.Context) -> Mapping[str, Sequence[str]]:
        """Return the names of the commands that are not hidden, by the title of their section."""
        shown = (name for name in self.list_commands(ctx) if not self._command(ctx, name).hidden)
        return {"Commands": tuple(shown)}

    def _summary(self, ctx: click.Context, name: str) -> str:
        return self._command(ctx, name).get_short_help_str(limit=_SUMMARY_LENGTH)

    def _command(self, ctx: click.Context, name: str) -> click.Command:
        command = self.get_command(ctx, name)
        assert command is not None, name
        return command

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

    It comes from a variable that is not set, and would be read as if nothing had been given.
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


# types


class Duration(ParamType):
    """A Go duration or a bare number of seconds; the value is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`value` in seconds."""
        from easq.protocol.durations import parse_duration

        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds < 0:
            self.fail(f"{value!r} is negative", param, ctx)
        return seconds


class WholeNumber(ParamType):
    """A whole number from `lowest` to `highest`."""

    name = "number"

    def __init__(self, lowest: int, highest: int | None = None) -> None:
        self.lowest, self.highest = lowest, highest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return `value` as a number."""
        if isinstance(value, int):
            return value
        if not re.fullmatch(r"[+-]?[0-9]{1,40}", value):
            self.fail(f"{value!r} is not a whole number", param, ctx)
        number = int(value)
        if number < self.lowest or (self.highest is not None and number > self.highest):
            bounds = f"x>={self.lowest}" if self.highest is None else f"{self.lowest}<=x<={self.highest}"
            self.fail(f"{number} is not in the range {bounds}", param, ctx)
        return number


class Rate(ParamType):
    """So many a second, a number above 0."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`value` as a number."""
        try:
            rate = float(value)
        except ValueError:
            rate = 0.0
        if not 0 < rate < inf:  # also what is not a number
            self.fail(f"{value!r} is no number above 0", param, ctx)
        return rate


class Index(ParamType):
    """The index of an item; `lowest` 0 where 0 means the head, `newest` where that word is taken too."""

    name = "index"

    def __init__(self, *, lowest: int = 1, newest: bool = False) -> None:
        self.lowest, self.newest = lowest, newest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """`value` as a number."""
        if isinstance(value, int):
            return value
        if self.newest and value == "newest":
            return NEWEST
        try:
            return parse_index(value, lowest=self.lowest)
        except ValueError as error:
            self.fail(f"{error}{', or newest' if self.newest else ''}", param, ctx)


def parse_index(text: str, *, lowest: int = 1) -> int:
    """`text` as an index. Raises ValueError with what an index is."""
    if text.isascii() and text.isdigit() and len(text) <= 20 and lowest <= int(text) <= MAX_WIRE_INDEX:
        return int(text)
    head = " (0, the head, has no place here)" if text == "0" else ""
    raise ValueError(f"{text!r} is not an index, a whole number from {lowest} to {MAX_WIRE_INDEX}{head}")


class Tag(ParamType):
    """`k=v`; the value is the pair."""

    name = "k=v"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """`value` as name and value of a tag."""
        if isinstance(value, tuple):
            return value[0], value[1]
        problem = tag_problem(*(value.split("=", 1) if "=" in value else (value, None)))
        if problem:
            self.fail(f"{value!r} {problem}", param, ctx)
        name, _, text = value.partition("=")
        return name, text


def tag_problem(name: str, value: str | None) -> str:
    """What is wrong with a tag, empty when nothing is."""
    if value is None:
        return "is no tag: it has no '='"
    if not name:
        return "is no tag: nothing stands before '='"
    if name.startswith("_"):
        return "is no tag: names that begin with '_' are the wire's own"
    if any(c in "\r\n\0" for c in name + value):
        return "is no tag: it holds a line break or NUL"
    if any("\ud800" <= c <= "\udfff" for c in name + value):
        return "is no tag: it is not UTF-8"
    return ""


class Header(ParamType):
    """`K: V`; the value is the pair."""

    name = "k: v"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """`value` as name and value of a header."""
        if isinstance(value, tuple):
            return value[0], value[1]
        name, colon, text = value.partition(":")
        if not colon or not _HEADER_NAME.fullmatch(name.strip()):
            # the value is not shown, as it may be a token; without a colon that may be the whole text
            self.fail("a header is written 'Name: value', with a name of letters, digits and '-'", param, ctx)
        if _FORBIDDEN_IN_HEADER.search(text) or not text.isascii():
            self.fail(f"the value of {name.strip()} holds characters that no header may carry", param, ctx)
        return name.strip(), text.strip()


class HeaderText(ParamType):
    """Text that travels in a header or a path: visible ASCII and spaces."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """`value`, unchanged."""
        if not value.isascii() or not value.isprintable():
            self.fail(f"{value!r} holds characters that no header may carry", param, ctx)
        return str(value)


class PathText(ParamType):
    """What follows the queue's address in a URL: no control characters, no query, no fragment, no way up."""

    name = "suffix"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """`value` with one leading slash."""
        if any(not c.isprintable() or c in "?#\\" for c in value):
            self.fail(f"{value!r} is no path: it holds a control character or one of ?#\\", param, ctx)
        if any(part in (".", "..") for part in value.split("/")):
            self.fail(f"{value!r} is no path: a part of it is . or .., which leads elsewhere", param, ctx)
        text = "/" + value.strip("/")
        return "" if text == "/" else text


DURATION, TAG, HEADER, HEADER_TEXT, PATH_TEXT = Duration(), Tag(), Header(), HeaderText(), PathText()
RATE = Rate()
INDEX, INDEX_OR_HEAD = Index(), Index(lowest=0)
INDEX_OR_NEWEST = Index(lowest=0, newest=True)


# shared options


def keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """What was given on the command line is in the App, beside or over what was given before the command."""
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
    """The options of every command, made once: anew for each of 25 commands they take 8 ms of a start."""
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


def sink_option(function: F) -> F:
    """`function` takes -k, which ends in the App."""
    option: Callable[[F], F] = click.option(
        "-k",
        "--sink",
        is_flag=True,
        expose_value=False,
        callback=keep,
        help="Use the sink, which holds the results.",
    )
    return option(function)


def stream_options(function: F) -> F:
    """`function` takes -k and --rear, which end in the App."""
    option: Callable[[F], F] = click.option(
        "--rear",
        is_flag=True,
        expose_value=False,
        callback=keep,
        help="Use the rear store, which holds undeliverable items (dead letters).",
    )
    return sink_option(option(function))


def payload_options(what: str) -> Callable[[F], F]:
    """`function` takes what is sent, as the parameters of `items.find_items`, and how; `what` is what one is called."""

    def add(function: F) -> F:
        for option in reversed(
            (
                click.option(
                    *("-d", "--data"),
                    cls=SourceOption,
                    convert_source=os.fsencode,
                    metavar="STR",
                    help=f"One {what}, as text; can be repeated.",
                ),
                click.option(
                    *("-f", "--file"),
                    cls=SourceOption,
                    convert_source=str,
                    type=click.Path(readable=False),
                    help=f"File with one {what} per line, - for standard input; can be repeated.",
                ),
                click.argument("paths", nargs=-1, type=click.Path(readable=False), metavar="[PATH]..."),
                click.option(
                    "--input-format",
                    "form",
                    type=click.Choice(("lines", "whole", "json")),
                    help="How input is split: lines, whole, or json (the records of get -o json).  "
                    "[default: lines with -f, whole with PATH and standard input]",
                ),
                click.option(
                    "--path",
                    type=PATH_TEXT,
                    default="",
                    metavar="SUFFIX",
                    help="Path of the model below its URL.",
                ),
                click.option(
                    "--content-type", type=HEADER_TEXT, default="", help=f"Content type of every {what}."
                ),
                click.option(
                    *("-c", "--concurrency"),
                    type=WholeNumber(1, 256),
                    default=1,
                    help=f"{what.capitalize()}s in flight, 1 to 256.  [default: 1]",
                ),
            )
        ):
            function = option(function)
        return function

    return add


def transport_option(function: F) -> F:
    """Add the option --transport to `function`, as the parameter `transport`: `ws` or `http`."""
    option: Callable[[F], F] = click.option(
        "--transport",
        type=click.Choice(("ws", "http")),
        default="ws",
        show_default=True,
        help="WebSocket (ws), or an endless HTTP response (http) for proxies that block WebSocket.",
    )
    return option(function)


def tags_option(text: str) -> Callable[[F], F]:
    """The option --tags as the parameter `tags`, a tuple of pairs."""
    return click.option("--tags", type=TAG, multiple=True, help=text)


def command(name: str, *, examples: Sequence[str]) -> Callable[[Callable[..., Any]], click.Command]:
    """A command with the shared options; its body takes the App first."""

    def make(function: Callable[..., Any]) -> click.Command:
        return click.command(name, cls=Command, examples=examples)(click.pass_obj(function))

    return make


def as_tags(pairs: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Return the pairs of --tags as tags. Raises UsageError for one name with two values."""
    from easq.errors import UsageError

    tags = dict(pairs)
    for name, value in pairs:
        if tags[name] != value:
            raise UsageError(f"tag {name!r} is given twice, as {value!r} and as {tags[name]!r}")
    return tags


def read_indexes(app: App, indexes: Sequence[str]) -> list[int]:
    """The indexes that arguments give, or with the one argument `-` the words on stdin. Raises UsageError."""
    from easq.errors import UsageError

    words = list(indexes)
    if words == ["-"]:
        words = app.read_stdin(_MAX_INDEXES_BYTES).split()
        if not words:
            raise UsageError("no index on stdin")
    try:
        return list(dict.fromkeys(parse_index(word) for word in words))
    except ValueError as error:
        raise UsageError(str(error)) from error
