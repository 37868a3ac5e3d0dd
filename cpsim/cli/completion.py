"""`cpsim completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from cpsim.cli.group import PROGRAM, cli

SHELLS = ("bash", "zsh", "fish")


@cli.command()
@click.argument("shell", type=click.Choice(SHELLS), metavar="SHELL")
def completion(shell: str) -> None:
    """Print a script that completes, in SHELL (bash, zsh or fish), commands, options and names.

    The names are those of scenarios, reports, quirks and faults.

    \b
    eval "$(cpsim completion bash)"                                     in ~/.bashrc; zsh likewise
    cpsim completion fish > ~/.config/fish/completions/cpsim.fish
    """
    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(cli, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())
