"""easq help: the help of a command, or the options that every command takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import SharedOption, command

if TYPE_CHECKING:
    from easq.cli.app import App

#: the word that stands for the options of every command
OPTIONS = "options"
_VALUES = (
    ("DURATION", "500ms, 3s, 1m30s or 2h; a number alone is seconds."),
    ("SIZE", "512, 10k, 8MiB or 1G: bytes, in steps of 1024."),
    ("K=V", "Name and value of a tag."),
    ("K: V", "Name and value of a header."),
)


@command("help", examples=("easq help", "easq help put", "easq help config set", "easq help options"))
@click.argument("words", nargs=-1, metavar="[COMMAND...]")
def help(app: App, words: tuple[str, ...]) -> None:
    """Show the help of a command.

    `easq help options` shows the options that every command takes.
    """
    ctx = click.get_current_context()
    assert ctx.parent is not None, "it is a command of a group"
    app.printer.help(_options(ctx) if words == (OPTIONS,) else _help(ctx.parent, words))


def _help(ctx: click.Context, words: tuple[str, ...]) -> str:
    """Return the help of the command that `words` name, beginning at the group of `ctx`.

    Raises click.UsageError for words that name none.
    """
    for word in words:
        if not isinstance(ctx.command, click.Group):
            raise click.UsageError(f"{ctx.command_path} has no command {word!r}", ctx)
        name, found, _ = ctx.command.resolve_command(ctx, [word])
        assert found is not None
        ctx = click.Context(found, info_name=name, parent=ctx)
    return ctx.get_help()


def _options(ctx: click.Context) -> str:
    formatter = ctx.make_formatter()
    shared = [param for param in ctx.command.params if isinstance(param, SharedOption)]
    with formatter.section("Options of every command, before or after its name"):
        formatter.write_dl([record for param in shared if (record := param.get_help_record(ctx))])
    with formatter.section("Values"):
        formatter.write_dl(_VALUES)
    return formatter.getvalue().rstrip("\n")
