"""`cpsim quirks` and `cpsim faults`."""

from __future__ import annotations

import click

from cpsim.cli.group import cli
from cpsim.cli.options import json_option, print_json


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


@cli.command("faults")
@json_option
def list_faults(as_json: bool) -> None:
    """List the faults of the daemon and of the server.

    \b
    cpsim serve --fault daemon.hang:kind=claim,slot=job-*,nth=3
    cpsim serve --fault server.status=503:probability=0.1,from=10,until=20
    cpsim faults --json
    """
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
