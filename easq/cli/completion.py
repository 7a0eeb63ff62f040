"""easq completion: the completion script of a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.app import COMPLETE_VARIABLE
from easq.cli.command import command

if TYPE_CHECKING:
    from easq.cli.app import App

SHELLS = ("bash", "zsh", "fish")


@command(
    "completion",
    examples=(
        'eval "$(easq completion bash)"',
        'eval "$(easq completion zsh)"',
        "easq completion fish > ~/.config/fish/completions/easq.fish",
    ),
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(app: App, shell: str) -> None:
    """Print a completion script for a shell.

    The script asks easq itself for completions, and never uses the network.
    """
    app.printer.write(script(click.get_current_context().find_root().command, shell).encode())
    app.printer.flush()


def script(root: click.Command, shell: str) -> str:
    """Return the script that completes `root` in `shell`, from click's own template."""
    from click.shell_completion import ShellComplete, get_completion_class

    make = get_completion_class(shell)
    assert make is not None
    # The method of the base class: that of bash runs the installed bash to check its version.
    return ShellComplete.source(make(root, {}, "easq", COMPLETE_VARIABLE)).strip() + "\n"
