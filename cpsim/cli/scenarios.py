"""`cpsim scenarios`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cpsim.cli.group import ExtraCommand, cli
from cpsim.cli.options import complete_scenario, json_option, log_options, log_settings, print_json
from cpsim.cli.paths import PathType

if TYPE_CHECKING:
    from pathlib import Path


@cli.group("scenarios", invoke_without_command=True)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the file format, for editors.")
@json_option
@click.pass_context
def scenarios(context: click.Context, schema: bool, as_json: bool) -> None:
    """List the built-in scenarios, with the expected verdict of each.

    \b
    cpsim scenarios show challenge
    cpsim scenarios show black-friday --plot black-friday.svg
    cpsim scenarios write lhc-scale -o lhc-scale.parquet
    """
    if schema:
        from cpsim.system.extras import require

        require("run", "cpsim scenarios --schema")
        from cpsim.scenario.json_schema import json_schema

        click.echo(json_schema(), nl=False)
    elif context.invoked_subcommand is None:
        from cpsim.config.catalog import describe_scenario, find_scenario, scenario_names

        listed = []
        for name in scenario_names():
            description, verdict = describe_scenario(find_scenario(name))
            listed.append({"scenario": name, "verdict": verdict, "description": description})
        if as_json:
            print_json(listed)
            return
        width = max(len(each["scenario"]) for each in listed)
        for each in listed:
            click.echo(f"{each['scenario']:<{width}}  {each['verdict']:<7}  {each['description']}")


@scenarios.command("show", cls=ExtraCommand, extra="run")
@click.argument("scenario", shell_complete=complete_scenario)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key of the scenario, as population.machines=500.",
)
@log_options
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="By default the scenario's seed, or 1.")
@click.option("--plot", type=PathType(dir_okay=False), metavar="FILE", help="Draw it as SVG instead.")
def show(
    scenario: str, settings: tuple[str, ...], seed: int | None, plot: Path | None, **log_part: int | str | None
) -> None:
    """Print SCENARIO, and a chart of when its jobs arrive and end.

    SCENARIO is as for cpsim run.

    \b
    cpsim scenarios show smoke --set population.machines=500
    cpsim scenarios show challenge --plot challenge.svg
    """
    from cpsim.config.catalog import find_scenario
    from cpsim.scenario import load_workload, picture

    if plot is not None and plot.suffix.lower() != ".svg":
        raise click.UsageError(f"--plot {plot}: a picture is SVG: name it .svg")
    path = find_scenario(scenario)
    settings = (*settings, *log_settings(**log_part))
    workload = load_workload(path, seed, settings)
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        plot.write_text(picture.svg(workload), encoding="utf-8")
        return
    if path.suffix.lower() in {".toml", ".py"}:
        click.echo(path.read_text(encoding="utf-8"))
    for setting in settings:
        click.echo(f"# --set {setting}")
    operations, slots = len(workload), len(workload.slot_numbers)
    click.echo(f"{workload.name}, seed {workload.seed}: {operations:,} operations on {slots:,} slots\n")
    for note in workload.notes:
        click.echo(f"note: {note}")
    click.echo(picture.text(workload), nl=False)


@scenarios.command("write", cls=ExtraCommand, extra="run")
@click.argument("scenario", shell_complete=complete_scenario)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key of the scenario, as population.machines=500.",
)
@log_options
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="By default the scenario's seed, or 1.")
@click.option(
    "-o",
    "--output",
    type=PathType(dir_okay=False),
    required=True,
    metavar="FILE",
    help="File to write, .parquet.",
)
def write(
    scenario: str, settings: tuple[str, ...], seed: int | None, output: Path, **log_part: int | str | None
) -> None:
    """Write the workload of SCENARIO as a file that every command takes as a SCENARIO.

    The workload is generated in parts: memory does not grow with its length.

    \b
    cpsim scenarios write lhc-scale --set arrivals.jobs=10_000_000 -o ten-million.parquet
    cpsim run ten-million.parquet
    """
    from cpsim.config.catalog import find_scenario
    from cpsim.errors import CpsimError
    from cpsim.scenario import Scenario, load_workload, source
    from cpsim.scenario.formats import columns
    from cpsim.scenario.generation import parts
    from cpsim.system.process import prepare_arrow

    if output.suffix.lower() != ".parquet":
        raise click.UsageError(f"{output}: a workload is written as Parquet: name it .parquet")
    if output.exists():
        raise CpsimError(f"{output} is there already: name another file with --output")
    prepare_arrow()
    path = find_scenario(scenario)
    settings = (*settings, *log_settings(**log_part))
    found = source.load(path, settings) if path.suffix.lower() == ".toml" else None
    if isinstance(found, Scenario):
        made = parts(found, seed)
    else:
        workload = load_workload(path, seed, settings)
        made = iter([workload])
        for note in workload.notes:
            click.echo(f"note: {note}")
    output.parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"{columns.write(made, output):,} operations in {output}")
