"""`cpsim quirks` and `cpsim faults`."""

from __future__ import annotations

import click

from cpsim.cli.group import cli


@cli.command("quirks")
def list_quirks() -> None:
    """List how the system in production differs from its document.

    \b
    cpsim serve --quirk reclaim          with this difference alone
    cpsim serve --profile deployed       with all of them
    """
    from cpsim.quirks import QUIRKS

    width = max(map(len, QUIRKS))
    for quirk in QUIRKS.values():
        click.echo(f"{quirk.name:<{width}}  {quirk.tier}  {quirk.effect}")


@cli.command("faults")
def list_faults() -> None:
    """List what can go wrong, at the daemon and at the server.

    \b
    cpsim serve --fault daemon.hang:kind=claim,slot=job-*,nth=3
    cpsim serve --fault server.status=503:probability=0.1,from=10,until=20
    """
    from cpsim.faults import ACTIONS, KEYS

    for name, action in ACTIONS.items():
        text = f"{name}={action.value.upper()}" if action.value else name
        click.echo(f"{text:<19} {' '.join(action.stages):<13}  {action.effect}")
    click.echo("\nAfter a colon, what it is for:")
    for key, attribute in KEYS.items():
        click.echo(f"{key:<19} {attribute.allowed}")
