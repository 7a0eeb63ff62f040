"""Usage errors in one line: what is wrong with a command line, and the nearest known name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import click

from easq.errors import UsageError

#: commands and options that delete something or answer for the user; they are never suggested for an unknown word
DESTRUCTIVE = frozenset(
    (
        "delete",
        "trunc",
        "end",
        "rm",
        "unset",
        "--delete",
        "--all",
        "--force",
        "--yes",
        "--recover",
        "--auto-evict",
    )
)

#: arguments that are indexes; for their commands `-5` is a negative index, not an option
_INDEXES = {"index", "indexes", "item"}


def nearest_command(word: str, group: click.Group, ctx: click.Context) -> str:
    """Return ` (did you mean 'x'?)` with the command of `group` nearest to `word`, or an empty string."""
    hidden = {name for name, command in group.commands.items() if command.hidden}
    return _nearest(word, (name for name in group.list_commands(ctx) if name not in hidden))


def usage_error(error: click.ClickException, args: Sequence[str]) -> UsageError:
    """Return click's `error` about `args` as a UsageError of one line, with a hint."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"{ctx.command_path if ctx else 'easq'} --help"
    if isinstance(error, click.NoSuchOption) and ctx:
        if any(param.name in _INDEXES for param in ctx.command.params):
            negative_number = next((arg for arg in args if arg[:1] == "-" and arg[1:].isdigit()), None)
            if negative_number:
                return UsageError(f"{negative_number!r} is not an index: an index is never negative")
        known = (
            name for param in ctx.command.params if isinstance(param, click.Option) for name in param.opts
        )
        name = error.option_name
        return UsageError(f"no such option {name!r}{_nearest(name, known)}", hint=hint)
    message = error.format_message()
    message = message[:1].lower() + message[1:].rstrip(".")
    return UsageError(" ".join(message.split()), hint=hint)


def asked_output(args: Sequence[str]) -> str | None:
    """Return the value of -o in `args`, for a command line that cannot be parsed as a whole."""
    asked = None
    for word, following in pairwise((*args, "")):
        if word == "--":
            break
        if word in ("-o", "--output"):
            asked = following
        elif word.startswith("--output="):
            asked = word.removeprefix("--output=")
        elif word.startswith("-o"):
            asked = word.removeprefix("-o")
    return asked


def _nearest(word: str, known: Iterable[str]) -> str:
    from easq.config.keys import did_you_mean

    return did_you_mean(word, (name for name in known if name not in DESTRUCTIVE))
