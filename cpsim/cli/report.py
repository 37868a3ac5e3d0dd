"""`cpsim report` and `cpsim reports`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from cpsim.cli.group import INVALID, ExtraCommand, cli
from cpsim.cli.options import (
    FILE,
    accounts_option,
    check_engine,
    json_option,
    print_json,
    scheduler_option,
    secret_in,
)
from cpsim.cli.paths import PathType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cpsim.accounting import Accounts, Report
    from cpsim.accounts.sources import AccountsSource

SUFFIXES: Final = {".html": "html", ".json": "json", ".md": "markdown", ".xlsx": "excel"}
TEXTS: Final = ("terminal", "json", "markdown")
FOLDERS: Final = ("csv", "parquet", "boinc")
FORMATS: Final = (*TEXTS, "html", "excel", *FOLDERS)


def _complete_name(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The built-in reports that begin with the text, else files."""
    from cpsim.config.catalog import describe_report, find_report, report_names

    names = [name for name in report_names() if name.startswith(incomplete)]
    items = [CompletionItem(name, help=describe_report(find_report(name))[0]) for name in names]
    return items or [CompletionItem(incomplete, type="file")]


def _complete_path(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files; with --accounts, which takes the place of PATH, reports."""
    if context.params.get("accounts") is not None:
        return _complete_name(context, parameter, incomplete)
    return [CompletionItem(incomplete, type="file")]


@cli.command(cls=ExtraCommand, extra="report")
@click.argument("path", required=False, shell_complete=_complete_path)
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=_complete_name)
@accounts_option
@click.option("--since", metavar="TIME", help="Start of the period, included: 2026-03-01, or 2026-03-01T12:00+01:00.")
@click.option("--until", metavar="TIME", help="End of the period, excluded.")
@click.option("--project", "projects", multiple=True, metavar="ID", help="Only this project; may be repeated.")
@click.option(
    "--for", "subjects", multiple=True, metavar="ID", help="The machine or user of a statement; may be repeated."
)
@click.option("--against", metavar="PATH", help="The accounts to compare with.")
@click.option(
    "--expected",
    type=FILE,
    metavar="FILE",
    help="A job manager's own record, which the reconciliation compares: a job log, or a CSV of slots and states.",
)
@click.option(
    "--expected-slot",
    default="{job}",
    show_default=True,
    metavar="TEXT",
    help="How slots are named after the jobs of --expected.",
)
@click.option("--top", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Rows of a leaderboard.")
@click.option("--timezone", default="UTC", show_default=True, metavar="NAME", help="Time zone, such as Europe/Zurich.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="By default from the suffix of --output (.html, .xlsx, .json, .md), else terminal.",
)
@click.option(
    "--output",
    type=PathType(),
    metavar="PATH",
    help="A file; a folder for csv, parquet and boinc. An existing one is replaced.",
)
@click.option(
    "--engine",
    type=click.Choice(["duckdb", "dask"]),
    default="duckdb",
    show_default=True,
    help="Sum in this process, or on a Dask cluster.",
)
@click.option(
    "--memory",
    "memory_mb",
    type=click.IntRange(min=300),
    default=1_200,
    show_default=True,
    metavar="MB",
    help="Memory that this process may take; what does not fit is on disk meanwhile.",
)
@scheduler_option
@click.option("--control-token-file", type=FILE, metavar="FILE", help="File with the token of a control API.")
def report(
    path: str | None,
    names: tuple[str, ...],
    accounts: AccountsSource | None,
    subjects: tuple[str, ...],
    against: str | None,
    expected: Path | None,
    expected_slot: str,
    form: str | None,
    output: Path | None,
    engine: str,
    scheduler: str | None,
    control_token_file: Path | None,
    **options: Any,  # noqa: ANN401 - options of Accounts.load
) -> None:
    """Report on the accounts at PATH: a run folder, a store, an export, or the URL of a running fake.

    Of a folder of run folders, such as runs, the newest run whose accounts were seen is reported on, and named.

    With --accounts SOURCE, which may be anybody's, there is no PATH. What it does not show is left out, and said.

    With --expected, the exit status is 1 if a slot is missing, extra or other than the record has it.

    NAME is a report that `cpsim reports` lists, or a .py file. Without one, the terminal shows a summary; files, and
    --format terminal, have all reports.

    \b
    cpsim report runs
    cpsim report runs/smoke-20260301
    cpsim report runs/smoke-20260301 --output credit.html
    cpsim report runs/smoke-20260301 --format terminal
    cpsim report ledger.db machine-statement --for worker-7
    cpsim report http://127.0.0.1:8080/api leaderboards --top 3
    cpsim report runs/a comparison --against runs/b
    cpsim report ledger.db --format csv --output tables
    cpsim report --accounts sql:accounts.toml leaderboards
    cpsim report ledger.db reconciliation --expected jobs.sacct --expected-slot "slurm-{job}"
    """
    if accounts is not None and path is not None:
        names = (path, *names)
    chosen = _format(form, output, names)
    if (where := path if accounts is None else accounts) is None:
        raise click.UsageError("Missing argument 'PATH': name accounts, or give --accounts SOURCE")
    check_engine(engine, scheduler)
    if "comparison" in names and against is None:
        raise click.UsageError("the comparison needs other accounts: name them with --against PATH")
    if expected is not None and names and "reconciliation" not in names:
        raise click.UsageError("--expected is for the report reconciliation: name it, too")
    from cpsim.accounting import Accounts
    from cpsim.ui.terminal import Stages

    options["token"] = None if control_token_file is None else secret_in(control_token_file, "--control-token-file")
    options["scheduler"] = scheduler
    with ExitStack() as stack:
        with Stages() as stages:
            stages.begin("reading the accounts")
            books = stack.enter_context(Accounts.load(where, **options))
            books.subjects = subjects
            if against is not None:
                books.against = Accounts.load(against, **options)
            if expected is not None:
                stages.begin("reading what is expected")
                books.expect(expected, expected_slot)
            stages.begin("checking that the books balance")
            _ = books.checks
            reports = _build(chosen, books, names, stages.begin)
        _write(chosen, books, reports, output)
        if books.unexpected_slots:
            sys.exit(INVALID)


@cli.command("reports")
@json_option
def list_reports(as_json: bool) -> None:
    """List the built-in reports.

    \b
    cpsim report runs/smoke-20260301 leaderboards
    cpsim report runs/smoke-20260301 my-report.py
    cpsim reports --json
    """
    from cpsim.config.catalog import describe_report, find_report, report_names

    if as_json:
        print_json([{"report": name, "description": describe_report(find_report(name))[0]} for name in report_names()])
        return
    width = max(map(len, report_names()))
    for name in report_names():
        click.echo(f"{name:<{width}}  {describe_report(find_report(name))[0]}")


def _format(form: str | None, output: Path | None, names: Sequence[str]) -> str:
    """The format of the output. Raises click.UsageError if the output cannot take it."""
    if form is None and output is None:
        return "terminal" if names else "summary"
    if form is None:
        assert output is not None
        if output.suffix not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise click.UsageError(f"--output {output} does not say which format: end it in {known}, or add --format")
        return SUFFIXES[output.suffix]
    if output is None and form not in TEXTS:
        where = "DIR" if form in FOLDERS else "FILE"
        raise click.UsageError(f"--format {form} needs --output {where}")
    if output is not None and form in FOLDERS and output.is_file():
        raise click.UsageError(f"--output {output} is a file: {form} is a folder of files")
    if output is not None and form not in FOLDERS and output.is_dir():
        raise click.UsageError(f"--output {output} is a folder: {form} is one file")
    return form


def _build(form: str, accounts: Accounts, names: Sequence[str], on_stage: Callable[[str], None]) -> list[Report]:
    """The reports of an output; beside a summary, those that options ask for."""
    from cpsim.accounting import build

    if form == "boinc":
        return []
    if form == "summary":
        kinds = {"machine": accounts.machines, "user": accounts.users}
        names = [] if accounts.against is None else ["comparison"]
        names += [] if accounts.expectation is None else ["reconciliation"]
        statements = [f"{kind}-statement" for kind in kinds if kinds[kind][kind].isin(accounts.subjects).any()]
        names += statements or [f"{kind}-statement" for kind in kinds if accounts.subjects]  # says who is nobody
        if not names:
            return []
    return build(accounts, [*dict.fromkeys(names)], on_stage)


def _write(form: str, accounts: Accounts, reports: Sequence[Report], output: Path | None) -> None:
    from cpsim.accounting import boinc, files, overview, page, screen
    from cpsim.system.replacing import replacing

    folders = {"csv": files.write_csv, "parquet": files.write_parquet}
    texts = {"json": files.json_text, "markdown": files.markdown, "html": page.html, "terminal": screen.text}
    if output is None and form in {"summary", "terminal"}:
        from cpsim.ui.terminal import console

        (overview if form == "summary" else screen).show(accounts, reports, console)
    elif output is None:
        click.echo(texts[form](accounts, reports), nl=False)
    elif form in texts:
        with replacing(output) as partial:
            partial.write_text(texts[form](accounts, reports), encoding="utf-8")
    elif form == "excel":
        from cpsim.accounting import excel  # openpyxl is for workbooks alone

        excel.write(accounts, reports, output)
    elif form == "boinc":
        boinc.write(accounts, output)
    else:
        folders[form](accounts, reports, output)
    if output is not None:
        click.echo(f"{output} is written")
