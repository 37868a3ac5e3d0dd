"""`cpsim quirks` and `cpsim faults`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cpsim.cli.group import cli
from cpsim.cli.options import FaultType, UrlType, control_of, control_token_option, json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cpdaemon.endpoint import UrlEndpoint


@cli.command("quirks")
@json_option
def list_quirks(as_json: bool) -> None:
    """List the quirks: differences of the system in production from its document.

    \b
    cpsim serve --quirk reclaim          with this difference alone
    cpsim serve --profile deployed       with all of them
    cpsim quirks --json
    """
    from cpsim.quirks import QUIRKS

    if as_json:
        print_json([{"quirk": name, "tier": tier, "effect": effect} for name, tier, effect in QUIRKS.values()])
        return
    width = max(map(len, QUIRKS))
    for quirk in QUIRKS.values():
        click.echo(f"{quirk.name:<{width}}  {quirk.tier}  {quirk.effect}")


at_option = click.option(
    "--at",
    "server",
    type=UrlType(),
    required=True,
    envvar="CREDITPIGGY_CONTROL",
    metavar="URL",
    help="URL of the server; by default, the CREDITPIGGY_CONTROL of the environment.",
)


@cli.group("faults", invoke_without_command=True)
@json_option
@click.pass_context
def faults(context: click.Context, as_json: bool) -> None:
    """List the faults that there are, of the daemon and of the server; or add some to a server that runs.

    \b
    cpsim serve --fault daemon.hang:kind=claim,slot=job-*,nth=3
    cpsim serve --fault server.status=503:probability=0.1,from=10,until=20
    cpsim faults --json
    cpsim faults add daemon.error:kind=claim,nth=1 --at http://127.0.0.1:8080
    cpsim faults list --at http://127.0.0.1:8080
    """
    if context.invoked_subcommand is not None:
        return
    from cpsim.faults.spec import ACTIONS, KEYS

    if as_json:
        actions = [
            {"action": name, "value": action.takes or None, "stages": list(action.stages), "effect": action.effect}
            for name, action in ACTIONS.items()
        ]
        print_json({"actions": actions, "keys": {key: attribute.allowed for key, attribute in KEYS.items()}})
        return
    for name, action in ACTIONS.items():
        text = f"{name}={action.takes.upper()}" if action.takes else name
        click.echo(f"{text:<19} {' '.join(action.stages):<13}  {action.effect}")
    click.echo("\nKeys after a colon select commands and times:")
    for key, attribute in KEYS.items():
        click.echo(f"{key:<19} {attribute.allowed}")


@faults.command("list")
@at_option
@control_token_option
@json_option
def list_set(server: UrlEndpoint, control_token_file: Path | None, as_json: bool) -> None:
    """List the faults that are set at a server, how many commands each has selected, and how often it fired.

    \b
    cpsim faults list --at http://127.0.0.1:8080
    """
    _show(control_of(server, control_token_file).faults(), as_json)


@faults.command("add")
@click.argument("added", nargs=-1, required=True, type=FaultType(), metavar="FAULT...")
@at_option
@control_token_option
def add_faults(added: tuple[str, ...], server: UrlEndpoint, control_token_file: Path | None) -> None:
    """Add each FAULT at a server, and list all that are set there.

    \b
    cpsim faults add daemon.error:kind=claim,nth=1 server.late=0.5 --at http://127.0.0.1:8080
    """
    _show(control_of(server, control_token_file).add_faults(added))


@faults.command("remove")
@click.argument("removed", nargs=-1, required=True, type=FaultType(), metavar="FAULT...")
@at_option
@control_token_option
def remove_faults(removed: tuple[str, ...], server: UrlEndpoint, control_token_file: Path | None) -> None:
    """Remove each FAULT at a server, and list what is left; connections that it holds are closed.

    \b
    cpsim faults remove server.late=0.5 --at http://127.0.0.1:8080
    """
    _show(control_of(server, control_token_file).remove_faults(removed))


def _show(found: Sequence[Mapping[str, object]], as_json: bool = False) -> None:  # noqa: FBT002
    if as_json:
        print_json([{name: fault[name] for name in ("fault", "selected", "fired")} for fault in found])
        return
    for fault in found:
        click.echo(f"{fault['fault']}   selected {fault['selected']:,}, fired {fault['fired']:,}")
    if not found:
        click.echo("no faults")
