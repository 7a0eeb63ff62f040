"""The help of every command, at every width, in plain words."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from easq.cli.command import SharedOption
from easq.cli.main import root
from easq.cli.param_types import Duration

#: third persons, articles and prepositions: a summary is an order, such as "Append items to the queue."
_NO_VERBS = frozenset(("a", "an", "the", "its", "what", "where", "this", "be", "say", "so", "of"))


def _contexts(ctx: click.Context) -> Iterator[click.Context]:
    """Yield the context of every command, the group's own first."""
    yield ctx
    if isinstance(ctx.command, click.Group):
        for name in ctx.command.list_commands(ctx):
            found = ctx.command.get_command(ctx, name)
            assert found is not None
            if not found.hidden:
                yield from _contexts(click.Context(found, info_name=name, parent=ctx))


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_help_is_cut_or_shows_types_of_click(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for ctx in _contexts(click.Context(root, info_name="easq")):
        text = ctx.get_help().partition("\n\n")[2]  # behind the usage, where click writes [ARGS]...
        for cut in ("...\n", "…", "INTEGER", "RANGE", "<=x", "x>=", "may be repeated", "Everywhere"):
            assert cut not in text, (ctx.command_path, cut)
        assert "\nOptions of every command: easq help options.\n" in f"{text}\n", ctx.command_path


def test_every_summary_fits_a_line_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for ctx in _contexts(click.Context(root, info_name="easq")):
        if not isinstance(ctx.command, click.Group):
            continue
        lines = ctx.get_help().splitlines()
        assert max(map(len, lines[: lines.index("Examples:")])) <= 80
        for name in ctx.command.list_commands(ctx):
            command = ctx.command.get_command(ctx, name)
            assert command is not None
            summary = command.get_short_help_str(limit=1000)
            assert command.hidden or any(line.endswith(f" {summary}") for line in lines), summary


def test_every_summary_begins_with_a_verb_and_is_one_sentence() -> None:
    for ctx in _contexts(click.Context(root, info_name="easq")):
        summary = ctx.command.get_short_help_str(limit=1000)
        verb = summary.split()[0].rstrip(",")
        assert verb.istitle(), summary
        assert verb.lower() not in _NO_VERBS, summary
        assert not verb.endswith("s"), summary
        assert (ctx.command.help or "").partition("\n\n")[0].count(".") == 1, ctx.command_path
        assert summary.endswith("."), summary


def test_every_option_is_explained_and_every_duration_has_a_unit() -> None:
    for ctx in _contexts(click.Context(root, info_name="easq")):
        for param in ctx.command.get_params(ctx):
            if not isinstance(param, click.Option):
                continue
            record = param.get_help_record(ctx)
            assert record is not None
            assert record[1][:1].isupper(), (ctx.command_path, param.opts)
            assert len(record[1].split("  [")[0].split()) >= 2, (ctx.command_path, param.opts)
            if isinstance(param.type, Duration):
                has_unit = any(f"{number}{unit}" in record[1] for number in range(10) for unit in "smh")
                assert has_unit, (ctx.command_path, param.opts)


def test_the_options_of_every_command_are_in_no_other_help() -> None:
    for ctx in _contexts(click.Context(root, info_name="easq")):
        options = ctx.get_help().partition("\nOptions:\n")[2].partition("\n\n")[0]
        words = set(options.replace(",", " ").split())
        shared = [param for param in ctx.command.params if isinstance(param, SharedOption)]
        assert len(shared) == 17
        written = {option for param in shared for option in param.opts if option in words}
        # named in the text of others
        assert written <= {"--token-file", "-o"}, ctx.command_path
