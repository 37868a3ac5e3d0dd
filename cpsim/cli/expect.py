"""`cpsim expect`."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, get_args

import click
from click.shell_completion import CompletionItem

from cpsim.cli.group import INVALID, cli
from cpsim.cli.options import LONGEST_LOOK_S, DurationType, UrlType, control_of, control_token_option

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cpdaemon.endpoint import UrlEndpoint
    from cpsim.net.control import ControlClient

IDLE: Final = "idle"
NAMED: Final = {"settled-once": "slots", "nothing-sent-twice": "kinds"}
"""The rules that take names, and what these are."""


class ExpectationType(click.ParamType[str]):
    """A rule, or with `all_kinds` any expectation."""

    def __init__(self, *, all_kinds: bool = False) -> None:
        self._all_kinds = all_kinds
        self.name = "expectation" if all_kinds else "rule"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Parse the value."""
        names = self._names()
        if value not in names:
            close = get_close_matches(value, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            self.fail(f"no {self.name} {value!r}; there are {', '.join(names)}{hint}", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Those that begin with the text."""
        del ctx, param
        return [CompletionItem(name) for name in self._names() if name.startswith(incomplete)]

    def _names(self) -> Sequence[str]:
        return [*_states(), *rules(), IDLE] if self._all_kinds else rules()


def _states() -> list[str]:
    from cpsim.protocol.slots import State

    return [str(state) for state in State]


def rules() -> Sequence[str]:
    """The names of the rules."""
    from cpsim.net.control import Rule

    return get_args(Rule)


@cli.command()
@click.argument("server", type=UrlType(), metavar="URL")
@click.argument("expectation", type=ExpectationType(all_kinds=True), metavar="EXPECTATION")
@click.argument("names", nargs=-1, metavar="[SLOT|KIND]...")
@click.option("--machine", metavar="ID", help="The machine that claimed the slot.")
@click.option("--credits", type=int, metavar="N", help="The credits granted, or of the alloc while it is not claimed.")
@click.option("--reason", metavar="TEXT", help="The reason of the discard.")
@click.option("--counters", metavar="NAME=N,...", help="Counters of the slot; others are not compared.")
@click.option("--meta", metavar="NAME=TEXT,...", help="Metadata of the slot; others are not compared.")
@click.option(
    "--within",
    "within_s",
    type=DurationType(),
    default="5s",
    show_default=True,
    metavar="TIME",
    help="Time in which it may come to be so: 500ms, 5s, 2min.",
)
@click.option(
    "--project",
    envvar="CREDITPIGGY_PROJECT",
    metavar="ID",
    help="Project id; by default CREDITPIGGY_PROJECT, or the server's only project.",
)
@control_token_option
def expect(
    server: UrlEndpoint,
    expectation: str,
    names: tuple[str, ...],
    within_s: float,
    project: str | None,
    control_token_file: Path | None,
    **terms: Any,  # noqa: ANN401 - the query of a slot's expectation
) -> None:
    """Wait until the server at URL has what is expected, and say what differs if it does not.

    \b
    allocated, claimed, discarded, expired   each SLOT is in this state
    settled-once         one claim or discard came for each SLOT; without SLOT, for all that have any
    no-slot-leaked       no slot is outstanding or expired
    no-claim-before-alloc    no claim came before the slot's alloc
    nothing-sent-twice   no command came again with the same arguments; kinds may be named, as claim
    no-refusals          no command was refused or malformed
    faults-fired         each fault that is set has fired
    idle                 every command that was acknowledged has reached the accounts

    It ends as soon as the expectation holds, or no longer can. The exit status is 0 if it holds, 1 if not, 2 if the
    server cannot be asked, 64 for wrong usage.

    \b
    cpsim expect http://127.0.0.1:8080 claimed job-1 --machine worker-7 --credits 5 --within 5s
    cpsim expect http://127.0.0.1:8080 settled-once
    cpsim expect "$CREDITPIGGY_URL" discarded job-2 job-3 --reason exit-3
    """
    given = [f"--{name}" for name, value in terms.items() if value is not None]
    if expectation in _states():
        if not names:
            raise click.UsageError(f"{expectation} needs a SLOT")
        asked: list[tuple[str, dict[str, object]]] = [
            ("slot", {"slot": name, "state": expectation, **terms}) for name in names
        ]
    elif given:
        raise click.UsageError(f"{' and '.join(given)}: only for {', '.join(_states())}")
    elif names and expectation not in NAMED:
        raise click.UsageError(f"{expectation} takes no names; {' and '.join(NAMED)} do")
    elif expectation == IDLE:
        asked = [(IDLE, {})]
    else:
        asked = [("rule", {"rule": expectation, NAMED.get(expectation, "slots"): ",".join(names) or None})]
    control = control_of(server, control_token_file)
    project = _only_project(control) if project is None else project
    failed = [message for message in _messages(control, project, asked, within_s) if message]
    for message in failed:
        click.echo(message)
    if failed:
        sys.exit(INVALID)
    click.echo(f"{' '.join([expectation, *names])}: as expected")


def _only_project(control: ControlClient) -> str:
    projects = control.projects()
    if len(projects) != 1:
        raise click.UsageError(f"the server has the projects {', '.join(projects)}: name one with --project")
    return projects[0]


def _messages(
    control: ControlClient, project: str, asked: list[tuple[str, dict[str, object]]], within_s: float
) -> list[str]:
    """What differs of each expectation, "" if it holds; together they have `within_s` seconds."""
    from cpsim.clock import SYSTEM_CLOCK

    until_s = SYSTEM_CLOCK.monotonic() + within_s
    messages = []
    for what, query in asked:
        while True:
            left_s = max(0.0, until_s - SYSTEM_CLOCK.monotonic())
            found = control.expect(what, project=project, **query, within_s=min(left_s, LONGEST_LOOK_S))
            if found["final"] or left_s <= LONGEST_LOOK_S:
                break
        messages.append(found["message"])
    return messages
