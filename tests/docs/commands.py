"""`python -m tests.docs.commands`: write docs/commands.md from the commands themselves, every option of each."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from easq.cli.command import SharedOption
from easq.cli.main import root
from tests.support.documents import ROOT

PAGE = ROOT / "docs" / "commands.md"
_HEAD = """# All commands

This page is made from the commands (`python -m tests.docs.commands`); `easq help COMMAND` prints the same text.
[The commands of a queue](queues.md) shows them at work.
"""


def page() -> str:
    """Return the page: each command with its text, options and examples; the common options at the end."""
    lines = [_HEAD]
    with root.make_context("easq", ["help"]) as context:
        for name in root.list_commands(context):
            command = root.get_command(context, name)
            assert command is not None
            if not command.hidden:
                lines += _command(command, f"easq {name}", context, level=2)
        lines += ["## Options of every command", "", "They may stand before or after the command.", ""]
        lines += _options(root, context, shared=True)
    return "\n".join(lines).rstrip("\n") + "\n"


def _command(command: click.Command, path: str, parent: click.Context, *, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    yield from (f"{'#' * level} {path}", "")
    for paragraph in re.split(r"\n{2,}", inspect.cleandoc(command.help or "")):
        yield from (_escaped(paragraph.replace("\b\n", "")), "")
    usage = command.collect_usage_pieces(context)
    yield from ("```text", " ".join([path, *usage]), "```", "")
    yield from _options(command, context, shared=False)
    if examples := getattr(command, "examples", ()):
        yield from ("```sh", *examples, "```", "")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _command(found, f"{path} {name}", context, level=level + 1)


def _options(command: click.Command, context: click.Context, *, shared: bool) -> Iterator[str]:
    records = [
        record
        for param in command.get_params(context)
        if isinstance(param, click.Option) and isinstance(param, SharedOption) == shared
        if (record := param.get_help_record(context)) is not None and "--help" not in param.opts
    ]
    if records:
        yield from ("| option | what it does |", "|---|---|")
        yield from (f"| {_code(_one_line(name))} | {_cell(text)} |" for name, text in records)
        yield ""


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _cell(text: str) -> str:
    return _escaped(_one_line(text)).replace("|", "\\|")


def _code(text: str) -> str:
    """Return a code span for a cell. Sites and GitHub do not agree on how a `|` is written between backticks."""
    if "|" not in text:
        return f"`{text}`"
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _escaped(text: str) -> str:
    return re.sub(r"(?<!\\)([<>*_])", r"\\\1", text)


def main(path: Path = PAGE) -> None:
    """Write the page."""
    path.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
