"""`cpsim runs`."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from cpsim.cli.asserts import RunType
from cpsim.cli.group import FAILED, CommandGroup, cli
from cpsim.cli.options import EndpointType, complete_scenario, json_option, print_json
from cpsim.cli.paths import PathType
from cpsim.cli.settings import RUNS, SettableArgument
from cpsim.errors import CpsimError, in_one_line
from cpsim.ui.printable import printable_line

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cpsim.evidence.past import PastRun, RunFigures
    from cpsim.run.comparison import ComparedRuns

COLOURS: Final = {"valid": "green", "invalid": "red", "unknown": "yellow"}
AGES: Final = {"h": "hours", "d": "days", "w": "weeks"}
PAGED: Final = 1_000
"""Runs on a page of all, the newest: a page is a file that one can send."""


class _Runs(CommandGroup):
    """A group whose first argument may be the folder that is listed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options; what names no subcommand is meant for the list."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            close = get_close_matches(args[0], self.commands, n=1) if args and not Path(args[0]).exists() else []
            if close:
                ctx.fail(f"{args[0]} is no folder and no subcommand; did you mean {close[0]!r}?")
            args = ["list", *args]
        return super().parse_args(ctx, args)


class _AgeType(click.ParamType[timedelta]):
    """An age: a whole number with a unit."""

    name = "age"

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Parse the value."""
        if isinstance(value, timedelta):
            return value
        digits = value[:-1] if value.isascii() and value[:-1].isdigit() else ""
        try:
            return timedelta(**{AGES[value[-1:]]: int(digits)})
        except (KeyError, ValueError, OverflowError):
            self.fail(f"{value!r} is not an age such as 12h, 30d or 8w", param, ctx)


folder_argument = click.argument(
    "folder",
    cls=SettableArgument,
    setting="runs",
    required=False,
    type=PathType(),
    default=RUNS,
    metavar="[FOLDER]",
)
page_option = click.option(
    "--page",
    type=PathType(dir_okay=False),
    metavar="FILE",
    help="Write it as a page, .html, instead.",
)


@cli.group("runs", cls=_Runs)
def runs() -> None:
    """List past runs, or show, compare, follow and remove them.

    Without a subcommand, as cpsim runs [FOLDER], the runs in a folder are listed, in runs by default; the options are
    those of cpsim runs list.

    \b
    cpsim runs
    cpsim runs show smoke-20260301-120000-000000
    cpsim runs compare runs/before runs/after
    cpsim runs trend smoke
    cpsim runs prune --keep 20
    """


@runs.command("list")
@folder_argument
@json_option
@page_option
def list_runs(folder: Path, as_json: bool, page: Path | None) -> None:
    """List the runs whose folders are in FOLDER, the newest first.

    Rates are operations answered per second, and p99 is that of the response time where operations had due times, else
    of the service time, in milliseconds. Only summaries are read. What is damaged, not whole or being written is listed
    as that, and other folders are left out. Of a search for capacity, the figures are those of the highest rate that
    passed.

    With --page, a page shows the newest thousand, and how each scenario at a target did over time.

    \b
    cpsim runs
    cpsim runs list results/nightly --json
    cpsim runs --page runs.html
    """
    _check_output(page, as_json=as_json)
    found = _found(folder)
    if as_json:
        print_json([run.document() for run in found])
    elif page is not None:
        from cpsim.run import past_page

        _write(page, lambda: past_page.all_runs(found[:PAGED], len(found), folder, page))
    elif not found:
        click.echo(printable_line(f"no runs in {folder}: cpsim run writes them there"))
    else:
        _print_table(
            ["when", "verdict", "scenario", "target", "rate/s", "p99, ms", "run"],
            [[*_begin(run), run.scenario, run.target, *_figures(run), run.name] for run in found],
            numbers={4, 5},
        )
        for run in found:
            if run.problem:
                click.echo(printable_line(f"{run.path.name}: {run.problem}"), err=True)


@runs.command("show")
@click.argument("run", type=RunType())
@json_option
def show_run(run: Path, as_json: bool) -> None:
    """Show RUN: what it did, its verdict and its figures.

    RUN is a run folder, or its name below runs/. The page of the run is report.html in its folder. With --json, what
    cpsim run --json printed is printed again.

    \b
    cpsim runs show runs/smoke-20260301-120000-000000
    """
    from cpsim.evidence import past

    found = past.read(run)
    if found.figures is None and found.search is None:
        raise CpsimError(f"{run}: {found.problem}")
    if as_json:
        click.echo(json.dumps(found.whole_document(), indent=2))
        return
    for name, value in _shown(found):
        click.echo(printable_line(f"{name:<24} {value}"))


@runs.command("compare")
@click.argument("one", type=RunType(), metavar="RUN")
@click.argument("other", type=RunType(), metavar="RUN")
@json_option
@page_option
def compare_runs(one: Path, other: Path, as_json: bool, page: Path | None) -> None:
    """Compare two runs in performance and credits.

    Each RUN is a run folder, or its name below runs/. What differs between what they did comes first: scenario, target,
    pace, faults, machine, versions. A change is in percent of the first run's figure.

    What is noise, two runs do not say. If there are at least five other runs beside the first with the same workload,
    target, pace, faults and machine, then what is usual are their least and greatest figures, and a figure of the
    second that is not outside of these is called usual.

    Credits by machine and user are compared by cpsim report RUN comparison --against RUN.

    \b
    cpsim runs compare smoke-20260301-120000-000000 smoke-20260302-120000-000000
    cpsim runs compare runs/before runs/after --page difference.html
    """
    from cpsim.evidence import past
    from cpsim.run.comparison import ComparedRuns

    _check_output(page, as_json=as_json)
    compared = ComparedRuns.of(past.read(one), past.read(other), past.find(one.parent))
    if as_json:
        print_json(compared.document())
        return
    if page is not None:
        from cpsim.run import past_page

        _write(page, lambda: past_page.compared_runs(compared, page))
        return
    verdicts = ("verdict", compared.one.ruling, compared.other.ruling)
    _print_table(["", compared.one.name, compared.other.name], [verdicts, *compared.differences])
    if not compared.differences:
        click.echo("\nNothing differs in what was done: scenario, target, pace, faults and machine are the same.")
    click.echo()
    _print_figures(compared)


def _as_in_runs(context: click.Context, option: click.Parameter, target: str | None) -> str | None:
    """A target as runs name it."""
    from cpsim.config.settings import EMBEDDED

    return target if target in {None, EMBEDDED} else str(EndpointType()(target, option, context))


@runs.command("trend")
@click.argument("scenario", shell_complete=complete_scenario)
@folder_argument
@click.option(
    "--target",
    metavar="ADDRESS",
    callback=_as_in_runs,
    help="Only runs at this target; embedded for those without one.",
)
@json_option
@page_option
def trend(scenario: str, folder: Path, target: str | None, as_json: bool, page: Path | None) -> None:
    """Follow SCENARIO over time, at each target and pace.

    It shows the runs in FOLDER, the oldest first, and beside each what it did otherwise than the one before: only runs
    that did the same can be compared.

    \b
    cpsim runs trend smoke
    cpsim runs trend challenge results/nightly --target 127.0.0.1:5667 --page trend.html
    """
    from cpsim.run.comparison import changes, over_time

    _check_output(page, as_json=as_json)
    every = _found(folder)
    chosen = [run for run in every if run.scenario == scenario and target in {None, run.target}]
    series = over_time(chosen)
    if not series:
        known = ", ".join(sorted({run.scenario for run in every if run.figures is not None})) or "none"
        at = "" if target is None else f" at {target}"
        raise CpsimError(f"{folder} has no run of {scenario}{at}; it has runs of: {known}")
    if as_json:
        print_json([run.document() for of_series in series.values() for run in of_series])
    elif page is not None:
        from cpsim.run import past_page

        _write(page, lambda: past_page.all_runs(chosen[:PAGED], len(chosen), folder, page, scenario))
    else:
        for (_, where, pace), of_series in series.items():
            click.echo(printable_line(f"{scenario} at {where}, {pace}"))
            rows = [
                [*_begin(run), *_figures(run), change]
                for run, change in zip(of_series, changes(of_series), strict=True)
            ]
            _print_table(["when", "verdict", "rate/s", "p99, ms", "did otherwise"], rows, numbers={2, 3})
            click.echo()


@runs.command("prune")
@folder_argument
@click.option("--keep", type=click.IntRange(0), metavar="N", help="Keep the newest N runs.")
@click.option("--older-than", type=_AgeType(), metavar="AGE", help="Remove only what is older: 12h, 30d, 8w.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(folder: Path, keep: int | None, older_than: timedelta | None, dry_run: bool, yes: bool) -> None:
    """Remove the folders of old runs from FOLDER.

    With --keep and --older-than, what is older goes, but for the newest N. A folder stays that is damaged or not whole,
    that a run is writing, that is a link, or that holds a file which no run writes.

    \b
    cpsim runs prune --keep 20 --dry-run
    cpsim runs prune results/nightly --older-than 30d --keep 5 --yes
    """
    from cpsim.clock import SYSTEM_CLOCK
    from cpsim.run.pruning import remove, superfluous, why_not

    if keep is None and older_than is None:
        raise click.UsageError("say what may go: --keep N, --older-than AGE, or both")
    before = None if older_than is None else _ago(SYSTEM_CLOCK.now_us(), older_than)
    candidates = superfluous(_found(folder), keep, before)
    kept = {run.path: why for run in candidates if (why := why_not(run.path)) is not None}
    going = [run for run in candidates if run.path not in kept]
    for path, why in kept.items():
        click.echo(printable_line(f"{path} stays: {why}"), err=True)
    for run in going:
        click.echo(printable_line(f"{run.path}  {' '.join(_begin(run))}"))
    if not going:
        click.echo("nothing to remove")
    elif dry_run:
        click.echo(f"{_counted(len(going))} would be removed")
    else:
        try:
            is_meant = yes or click.confirm(f"Remove {_counted(len(going))}?")
        except click.Abort as error:
            raise CpsimError("nothing was removed: add --yes where nobody is there to be asked") from error
        if not is_meant:
            click.echo("nothing was removed")
            return
        failed = 0
        for run in going:
            try:
                remove(run.path)
            except (OSError, CpsimError) as error:
                failed += 1
                click.echo(printable_line(f"{run.path} stays: {in_one_line(error)}"), err=True)
        click.echo(f"{_counted(len(going) - failed)} removed")
        if failed:
            sys.exit(FAILED)


def _found(folder: Path) -> list[PastRun]:
    """The runs in a folder; none if it is the default, and there was no run yet. Raises CpsimError."""
    from cpsim.evidence import past

    is_default = click.get_current_context().get_parameter_source("folder") is not ParameterSource.COMMANDLINE
    return [] if is_default and not folder.exists() else past.find(folder)


def _check_output(page: Path | None, *, as_json: bool) -> None:
    """Raise click.UsageError if the output cannot be written."""
    if page is not None and as_json:
        raise click.UsageError("--page and --json exclude one another")
    if page is not None and page.suffix.lower() not in {".html", ".htm"}:
        raise click.UsageError(f"--page {page}: a page is HTML: name it .html")


def _write(page: Path, make: Callable[[], str]) -> None:
    from cpsim.system.replacing import replacing

    text = make()
    try:
        with replacing(page) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CpsimError(f"{page} cannot be written: {error.strerror}") from error
    click.echo(f"{page} is written")


def _ago(now_us: int, age: timedelta) -> datetime:
    """The time so long ago, or the earliest there is. `now_us` is in microseconds since 1970."""
    try:
        return datetime.fromtimestamp(now_us / 1e6, UTC) - age
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _counted(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"


def _begin(run: PastRun) -> list[str]:
    """When a run was, and its verdict."""
    return [run.at.isoformat(" ", "seconds"), run.ruling]


def _figures(run: PastRun) -> list[str]:
    """Rate and p99 of a run."""
    p99_ms = run.times[1].get("p99")
    return ["" if run.rate is None else f"{run.rate:,.0f}", "" if p99_ms is None else f"{p99_ms:,.2f}"]


def _shown(run: PastRun) -> Iterator[tuple[str, str]]:
    """What is shown of a run or a search: names and values."""
    from cpsim.run.comparison import facts
    from cpsim.ui.charts import figure

    yield "run folder", str(run.path)
    yield "verdict", f"{run.ruling}: {run.problem}" if run.problem else run.ruling
    yield "when", run.at.isoformat(" ", "milliseconds")
    yield from facts(run).items()
    if run.search is not None:
        yield "capacity, operations/s", figure(run.rate)
    kind, times = run.times
    known = {kind: times}
    if run.figures is not None:
        count = f"{run.figures.operations:,} in {run.figures.elapsed_s:,.2f} s"
        yield "operations", f"{count}, {run.figures.operations_per_s:,.0f}/s"
        known = {"service": run.figures.service_ms, "response": run.figures.response_ms or {}}
        known["apply delay"] = run.figures.effect_ms or {}
    for name, percentiles in known.items():
        if percentiles:
            yield f"{name}, ms", "  ".join(f"{percentile} {value:,.2f}" for percentile, value in percentiles.items())
    if run.figures is not None:
        yield from _shown_of_accounts(run.figures)
    if run.verdict is not None:
        yield from ((f"  {name}", f"{count:,}") for name, count in run.verdict.anomalies_by_name.items())
        yield from (("not verified", sentence) for sentence in run.verdict.not_verified)
        if run.verdict.repeat:
            yield "repeat with", run.verdict.repeat
    if (page := run.path / "report.html").is_file():
        yield "page", str(page)


def _shown_of_accounts(figures: RunFigures) -> Iterator[tuple[str, str]]:
    for kind, counts in figures.by_kind.items():
        yield f"  {kind}", ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
    yield from ((f"  {count:,} x", error) for error, count in figures.errors.items())
    if figures.slots_by_state is not None:
        yield "slots", ", ".join(f"{count:,} {state}" for state, count in figures.slots_by_state.items()) or "none"
    if figures.credits_granted is not None:
        yield "credits granted", f"{figures.credits_granted:,}"
    for each in figures.asserts:
        yield "assert", f"{each.get('assert')} {'holds' if each.get('holds') else 'fails'}: it was {each.get('value')}"


def _print_figures(compared: ComparedRuns) -> None:
    from cpsim.run.comparison import LEAST_ALIKE
    from cpsim.ui.charts import figure

    rows = []
    for each in (*compared.figures, *compared.accounts):
        change = "" if each.change is None else f"{each.change:+.1%}" if each.change else "same"
        usual = "" if each.usual is None else f"{figure(each.usual[0])} to {figure(each.usual[1])}"
        word = {None: "", True: "usual", False: "not usual"}[each.is_usual]
        rows.append([each.name, figure(each.one), figure(each.other), change, usual, word])
    heads = ["figure", "first", "second", "change", "usual range", ""]
    columns = len(heads) if compared.alike else 4
    _print_table(heads[:columns], [row[:columns] for row in rows], numbers={1, 2, 3})
    if compared.alike:
        click.echo(
            f"\nThe usual range is from the least to the greatest of {compared.alike} other runs like the first."
        )
    else:
        click.echo(
            f"\nWhich differences are noise is not known: there are not {LEAST_ALIKE} other runs like the first."
        )


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> None:
    """Print lines of columns; `numbers` are the columns of these. Verdicts are coloured on a terminal."""
    lines = [[printable_line(text) for text in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for row, line in enumerate(lines):
        cells = []
        for column, (text, width) in enumerate(zip(line, widths, strict=True)):
            padded = text.rjust(width) if column in numbers else text.ljust(width if column < len(line) - 1 else 0)
            cells.append(click.style(padded, fg=COLOURS.get(text.partition(" ")[0])) if row else padded)
        click.echo("  ".join(cells).rstrip())
