"""`cpsim judge`."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from cpsim.cli.group import FAILED, INVALID, ExtraCommand, cli
from cpsim.cli.options import (
    accounts_option,
    check_engine,
    known_profile_option,
    known_quirk_option,
    known_quirks,
    processes_option,
    scheduler_option,
)
from cpsim.cli.paths import PathType
from cpsim.cli.results import result_files, result_options

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rich.console import Console

    from cpsim.accounts.sources import AccountsSource
    from cpsim.judge.verdict import Verdict
    from cpsim.run.spread import Spread
    from cpsim.ui.results import ResultFiles


@cli.command(cls=ExtraCommand, extra="run")
@click.argument("folder", metavar="RUNFOLDER", type=PathType())
@accounts_option
@click.option("--project", metavar="ID", help="Project id of the slots that --accounts shows, if the run had none.")
@known_profile_option
@known_quirk_option
@processes_option("Processes that judge; they divide the slots among them.")
@click.option(
    "--engine",
    type=click.Choice(["local", "dask"]),
    default="local",
    show_default=True,
    help="Judge on this machine, or on a Dask cluster.",
)
@scheduler_option
@result_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, as verdict.json has it.")
def judge(
    folder: Path,
    accounts: AccountsSource | None,
    project: str | None,
    profile: str | None,
    quirks: tuple[str, ...],
    processes: int,
    engine: str,
    scheduler: str | None,
    junit: Path | None,
    summary_file: Path | None,
    as_json: bool,
) -> None:
    """Judge a run again, from the evidence in its run folder; nothing need be running.

    With --accounts, the accounts are read now, and judged in place of those that the run saw. They may be of any time
    after the run: a slot whose time is over by now may have expired or not, and what others have done to the run's
    slots and machines since counts as the run's. The run folder stays as it is.

    With --profile or --quirk, these quirks are known, in place of those that the run was told.

    With --engine dask, the workers of a cluster judge, which see the run folder under the same path. The verdict is the
    same, whoever judges.

    The exit status is 0 if the verdict is valid, 1 if invalid, 2 if unknown, as that of cpsim run without --assert.

    \b
    cpsim judge runs/smoke-20260301-120000-000000
    cpsim judge copied/from/another/machine --json
    cpsim judge runs/challenge-20260301-120000-000000 --accounts sql:accounts.toml
    cpsim judge runs/challenge-20260301-120000-000000 --engine dask --scheduler tcp://127.0.0.1:8786
    """
    if project is not None and accounts is None:
        raise click.UsageError("--project goes with --accounts SOURCE")
    check_engine(engine, scheduler)
    if scheduler is not None and processes > 1:
        raise click.UsageError("--processes judge on this machine, and --engine dask elsewhere: leave one of them out")
    known = known_quirks(profile, quirks) if profile or quirks else None
    with result_files(f"cpsim judge {folder}", junit, summary_file) as files:
        verdict = _judged(folder, accounts, project, known, files, _spread(processes, scheduler), as_json=as_json)
    sys.exit({"valid": 0, "invalid": INVALID, "unknown": FAILED}[verdict.ruling])


def _judged(
    folder: Path,
    accounts: AccountsSource | None,
    project: str | None,
    quirks: frozenset[str] | None,
    files: ResultFiles,
    spread: AbstractContextManager[Spread | None],
    *,
    as_json: bool,
) -> Verdict:
    """Judge a run folder, and print the verdict."""
    from cpsim.accounts.sources import PAUSE_S
    from cpsim.evidence.files import EvidenceFolder
    from cpsim.run.documents import json_text, verdict_document
    from cpsim.run.results import results_of
    from cpsim.run.spread import FolderToJudge, judge_folder
    from cpsim.run.summary import verdict_lines
    from cpsim.system.mapped import keep_freed
    from cpsim.system.process import prepare_arrow
    from cpsim.ui.terminal import SELDOM_S, Stages, console, printed

    prepare_arrow()
    keep_freed()
    later = None
    if accounts is not None:
        if EvidenceFolder(folder).head().embedded:
            raise click.UsageError("the run had a server of its own, which is gone: nothing else shows its accounts")
        with Stages() as stages:
            stages.begin(f"reading {accounts}")
            later = accounts.read(PAUSE_S)
    chosen = FolderToJudge(folder, later, _now_ns(folder), project, quirks)
    with Stages() as stages:
        stages.begin("judging")
        evidence = chosen.opened()
        if later is not None:
            head = evidence.head()
            if head.project is None and not head.workload.projects:
                raise click.UsageError("the run knew no project: add --project ID, whose slots --accounts shows")
        with spread as judging:
            head, verdict = judge_folder(
                chosen,
                evidence,
                judging,
                lambda done: stages.count(done, evidence.count, f"{done:,}/{evidence.count:,} partitions", SELDOM_S),
            )

    def show(console: Console) -> None:
        for line in verdict_lines(verdict, head.command):
            console.print(line, highlight=False)

    files.add(lambda: results_of(verdict, printed(show)))
    text = json_text(verdict_document(head, verdict))
    if as_json:
        click.echo(text, nl=False)
    else:
        show(console)
        earlier = folder / "verdict.json"
        if earlier.is_file() and earlier.read_bytes() != text.encode():
            console.print(f"              [yellow]not as at the end of the run[/]: see {earlier}", highlight=False)
    return verdict


def _spread(processes: int, scheduler: str | None) -> AbstractContextManager[Spread | None]:
    """Who judges: None for this process."""
    from contextlib import nullcontext

    from cpsim.run.spread import on_cluster, on_this_machine

    if scheduler is not None:
        return on_cluster(scheduler)
    return nullcontext() if processes == 1 else on_this_machine(processes)


def _now_ns(folder: Path) -> int:
    """Nanoseconds since a run began, at most, by this machine's clock; far ahead if the run folder does not say."""
    from cpsim.clock import SYSTEM_CLOCK
    from cpsim.evidence.files import ANY_TIME_NS

    try:
        started = datetime.fromisoformat(json.loads((folder / "run.json").read_text(encoding="utf-8"))["started"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ANY_TIME_NS
    passed_us = SYSTEM_CLOCK.now_us() - int(started.timestamp() * 1e6)
    return passed_us * 1000 if passed_us >= 0 else ANY_TIME_NS
