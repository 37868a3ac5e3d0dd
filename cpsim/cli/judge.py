"""`cpsim judge`."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from cpsim.cli.group import FAILED, INVALID, ExtraCommand, cli
from cpsim.cli.options import accounts_option, known_profile_option, known_quirk_option, known_quirks
from cpsim.cli.paths import PathType
from cpsim.cli.results import result_files, result_options

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from cpsim.accounts.sources import AccountsSource
    from cpsim.judge.verdict import Verdict
    from cpsim.ui.results import ResultFiles


@cli.command(cls=ExtraCommand, extra="run")
@click.argument("folder", metavar="RUNFOLDER", type=PathType())
@accounts_option
@click.option("--project", metavar="ID", help="Project id of the slots that --accounts shows, if the run had none.")
@known_profile_option
@known_quirk_option
@result_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, as verdict.json has it.")
def judge(
    folder: Path,
    accounts: AccountsSource | None,
    project: str | None,
    profile: str | None,
    quirks: tuple[str, ...],
    junit: Path | None,
    summary_file: Path | None,
    as_json: bool,
) -> None:
    """Judge a run again, from the evidence in its run folder; nothing need be running.

    With --accounts, the accounts are read now, and judged in place of those that the run saw. They may be of any time
    after the run: a slot whose time is over by now may have expired or not, and what others have done to the run's
    slots and machines since counts as the run's. The run folder stays as it is.

    With --profile or --quirk, these quirks are known, in place of those that the run was told.

    The exit status is 0 if the verdict is valid, 1 if invalid, 2 if unknown, as that of cpsim run without --assert.

    \b
    cpsim judge runs/smoke-20260301-120000-000000
    cpsim judge copied/from/another/machine --json
    cpsim judge runs/challenge-20260301-120000-000000 --accounts sql:accounts.toml
    """
    if project is not None and accounts is None:
        raise click.UsageError("--project goes with --accounts SOURCE")
    with result_files(f"cpsim judge {folder}", junit, summary_file) as files:
        verdict = _judged(folder, accounts, project, profile, quirks, files, as_json=as_json)
    sys.exit({"valid": 0, "invalid": INVALID, "unknown": FAILED}[verdict.ruling])


def _judged(
    folder: Path,
    accounts: AccountsSource | None,
    project: str | None,
    profile: str | None,
    quirks: tuple[str, ...],
    files: ResultFiles,
    *,
    as_json: bool,
) -> Verdict:
    """Judge a run folder, and print the verdict."""
    from cpsim.accounts.sources import PAUSE_S
    from cpsim.evidence.files import EvidenceFolder
    from cpsim.judge.judge import CHECKERS, checkers_of_others
    from cpsim.judge.judge import judge as judged
    from cpsim.run.folder import json_text, verdict_document
    from cpsim.run.results import results_of
    from cpsim.run.summary import verdict_lines
    from cpsim.system.process import put_off_pandas
    from cpsim.ui.terminal import Stages, console, printed

    put_off_pandas()
    later = None
    if accounts is not None:
        if EvidenceFolder(folder).head().embedded:
            raise click.UsageError("the run had a server of its own, which is gone: nothing else shows its accounts")
        with Stages() as stages:
            stages.begin(f"reading {accounts}")
            later = accounts.read(PAUSE_S)
    known = known_quirks(profile, quirks) if profile or quirks else None
    evidence = EvidenceFolder(folder, later, _now_ns(folder), project=project, quirks=known)
    checkers = [*CHECKERS, *checkers_of_others()]
    with Stages() as stages:
        stages.begin("judging")
        head = evidence.head()
        if later is not None and head.project is None and not head.workload.projects:
            raise click.UsageError("the run knew no project: add --project ID, whose slots --accounts shows")
        verdict = judged(evidence.partitions(), head, checkers)

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
