"""The command line's root. Commands import their modules lazily, so that --help is fast."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from itertools import takewhile
from typing import Any, Final, NoReturn

import click

from cpdaemon.errors import CreditPiggyError
from cpsim.cli.settings import announce
from cpsim.system.docstrings import docstring
from cpsim.system.extras import require

PROGRAM: Final = "cpsim"
INVALID: Final = 1
FAILED: Final = 2
WRONG_USAGE: Final = 64
LISTS: Final = ("completion", "faults", "quirks", "reports", "runs", "scenarios")
"""Commands that only print: it is no failure if the reader of their output has read enough."""


class _OutputClosed(Exception):
    """The reader of standard output has closed it; the argument is the exit status."""


class CommandGroup(click.Group):
    """A group that distinguishes a closed pipe from an invalid run; click exits with 1 for both."""

    group_class = type

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        only_prints = not {*ctx.help_option_names, "--list"}.isdisjoint(takewhile("--".__ne__, ctx.args))
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _OutputClosed(0 if only_prints or ctx.find_root().invoked_subcommand in LISTS else FAILED) from error

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command; where Python has left out its docstring, which is its help, it is read from the source."""
        if cmd.help is None and cmd.callback is not None:
            cmd.help = docstring(cmd.callback)
        super().add_command(cmd, name)


class ExtraCommand(click.Command):
    """A command that needs an extra; it checks for the extra before it parses options, which may need it too.

    Args:
        extra: the extra's name.
    """

    def __init__(self, *args: Any, extra: str, **kwargs: Any) -> None:  # noqa: ANN401 - those of click
        super().__init__(*args, **kwargs)
        self.extra = extra

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        own = list(takewhile("--".__ne__, args))
        if not ctx.resilient_parsing and not set(ctx.help_option_names) & set(own):
            require(self.extra_for(own), ctx.command_path)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; what was not typed is printed first, with where it comes from."""
        announce(ctx)
        return super().invoke(ctx)

    def extra_for(self, args: list[str]) -> str:  # noqa: ARG002 - an override uses them
        """The extra that the command needs with these arguments."""
        return self.extra


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="creditpiggy-sim")
def cli() -> None:
    """Test harness and simulator for CreditPiggy.

    \b
    cpsim run smoke                  replay a synthetic workload against an embedded CreditPiggy
    cpsim run challenge --target /var/run/creditapi.socket
    cpsim judge RUNFOLDER            the verdict on a run again, from what it has left
    cpsim runs                       past runs: list, show, compare, trend, prune
    cpsim verify 127.0.0.1:5667      does this daemon do what the protocol says?
    cpsim serve                      a fake daemon and server to point a job manager at
    cpsim exec -- make test          tests in any language, with a fake of their own around them
    cpsim proxy --listen A --target B --fault FAULT    faults in front of a real daemon or server
    cpsim daemon --config FILE       store commands and forward them to a server
    """


if cli.help is None:
    assert cli.callback is not None
    cli.help = docstring(cli.callback)


def main() -> NoReturn:
    """Run the command line; an error is one line on standard error, never a traceback."""
    from cpsim.errors import CpsimError, UsageError, reason
    from cpsim.ui.logs import LINES

    LINES.format = "text"  # until a command has parsed its options
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    try:
        cli.main(prog_name=PROGRAM, standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(WRONG_USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(FAILED)
    except _OutputClosed as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(*error.args)
    except (click.Abort, KeyboardInterrupt):
        click.echo("cpsim: interrupted", err=True)
        sys.exit(FAILED)
    except MemoryError as error:
        LINES.error(f"{reason(error)}; do less at once, or allow the process more")
        sys.exit(FAILED)
    except OSError as error:
        why = error.strerror or str(error)
        LINES.error(f"{error.filename}: {why}" if error.filename else why)
        sys.exit(FAILED)
    except UsageError as error:
        LINES.error(str(error))
        sys.exit(WRONG_USAGE)
    except (CpsimError, CreditPiggyError) as error:
        LINES.error(str(error))
        sys.exit(FAILED)
    sys.exit(0)
