"""`cpsim run`."""

from __future__ import annotations

import shlex
import sys
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import click

from cpdaemon.endpoint import Endpoint, UrlEndpoint
from cpsim.cli.asserts import (
    against_baseline,
    baseline_option,
    fail_fast_option,
    note_baseline,
    stop_option,
    threshold_option,
    warm_up_option,
)
from cpsim.cli.group import FAILED, INVALID, ExtraCommand, cli
from cpsim.cli.options import (
    FaultType,
    NumberType,
    TargetType,
    accounts_option,
    complete_scenario,
    in_flight_option,
    known_profile_option,
    known_quirk_option,
    known_quirks,
    log_options,
    log_settings,
    output_option,
    pace_at,
    page_option,
    processes_option,
    project_option,
    rate_option,
    secret_file_option,
    secret_in,
    seed_option,
    server_option,
    settings_option,
    slot_prefix_option,
    speed_option,
    timeout_option,
)
from cpsim.cli.results import result_files, result_options
from cpsim.cli.serving import live_metrics, metrics_option
from cpsim.cli.settings import SettableOption, runs_folder
from cpsim.cli.tls import tls_options
from cpsim.system.checks import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cpdaemon.endpoint import TcpEndpoint
    from cpsim.accounts.sources import AccountsSource
    from cpsim.config.thresholds import Threshold
    from cpsim.replay.pace import Pace
    from cpsim.run.ahead import Ahead
    from cpsim.run.folder import OutputFolder
    from cpsim.run.live import LivePage
    from cpsim.run.pipeline import Run
    from cpsim.run.plan import ReplayTarget
    from cpsim.run.summary import Summary


@cli.command(cls=ExtraCommand, extra="run")
@click.argument("scenario", shell_complete=complete_scenario)
@click.option(
    "--target",
    cls=SettableOption,
    setting="target",
    type=TargetType(),
    help="A daemon (PATH or HOST:PORT) or a server (URL); without it, or with embedded, an embedded fake.",
)
@server_option
@project_option
@secret_file_option
@tls_options
@accounts_option
@known_profile_option
@known_quirk_option
@seed_option
@settings_option
@log_options
@click.option("--keep-ids", is_flag=True, help="Name slots as a trace does, or after the jobs of a job log.")
@rate_option
@speed_option
@click.option("--virtual", is_flag=True, help="Let the embedded fake's clock jump from one time to the next.")
@click.option("--asap", is_flag=True, help="Send as fast as possible (the default).")
@click.option(
    "--users",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="A closed model: N users; each waits for an answer before the next operation.",
)
@click.option(
    "--think-time",
    "think_s",
    type=NumberType(0, LONGEST_S),
    metavar="S",
    help="Seconds that each of --users waits after an answer.",
)
@in_flight_option
@processes_option("Processes that replay; they divide the slots and --in-flight among them.")
@timeout_option
@click.option(
    "--fault",
    "faults",
    type=FaultType(),
    multiple=True,
    metavar="FAULT",
    help="Inject a fault into the embedded fake, or the cpsim serve behind --target; see cpsim faults.",
)
@threshold_option
@baseline_option
@stop_option
@fail_fast_option
@warm_up_option
@slot_prefix_option
@output_option
@result_options
@page_option
@metrics_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the summary.")
def run(
    scenario: str,
    target: Endpoint | None,
    server: Endpoint | None,
    project: str | None,
    secret_file: Path | None,
    accounts: AccountsSource | None,
    profile: str | None,
    quirks: tuple[str, ...],
    seed: int | None,
    settings: tuple[str, ...],
    keep_ids: bool,
    rate: str | None,
    speed: float | None,
    virtual: bool,
    asap: bool,
    users: int | None,
    think_s: float | None,
    in_flight: int,
    processes: int,
    timeout_s: float,
    faults: tuple[str, ...],
    thresholds: tuple[Threshold, ...],
    baseline: Path | None,
    stop_on_breach: bool,
    fail_fast: bool,
    warm_up_s: float,
    slot_prefix: str | None,
    output: Path | None,
    junit: Path | None,
    summary_file: Path | None,
    page: TcpEndpoint | None,
    metrics: TcpEndpoint | None,
    as_json: bool,
    **log_part: int | str | None,
) -> None:
    """Replay SCENARIO, measure, and verify what was applied.

    SCENARIO is a name (see cpsim scenarios), a scenario file (.toml), a job log (SWF, sacct -P, jobcomp, HTCondor's
    event log or history), a trace (.csv, .parquet; a run's journal is one), or a program (.py). The exit status is 0
    if the verdict is valid, 1 if invalid or an --assert fails, 2 if unknown.

    \b
    cpsim run smoke
    cpsim run smoke --fault server.status=503:probability=0.1
    cpsim run smoke --target 127.0.0.1:5667
    cpsim run smoke --rate 50..500:5s,500:5s --assert "p99_ms<20" --assert "error_rate<0.001"
    cpsim run smoke --rate 500 --baseline runs/smoke-20260301 --assert "p99_ms<=1.1*baseline"
    cpsim run smoke --target https://cp.example.org/api --project ID --secret-file FILE
    cpsim run challenge --target 127.0.0.1:5667 --project ID --accounts sql:accounts.toml
    cpsim run cluster.swf --virtual --since 30d --jobs 5000 --skip-bad 10
    """
    from cpsim.config.catalog import find_scenario
    from cpsim.run import folder as run_folder
    from cpsim.run.breach import check_told
    from cpsim.run.pipeline import check_virtual
    from cpsim.run.pipeline import run as perform
    from cpsim.run.results import results_of
    from cpsim.run.summary import show, summarise
    from cpsim.scenario import load_workload
    from cpsim.system.mapped import keep_nothing_large
    from cpsim.system.process import prepare_arrow
    from cpsim.ui.terminal import Stages, printed

    prepare_arrow()
    keep_nothing_large()
    thresholds = against_baseline(thresholds, baseline)
    pace = _pace(rate, speed, users, think_s, virtual=virtual, asap=asap)
    path = find_scenario(scenario)
    settings = (*settings, *log_settings(**log_part))
    where = target_at(target, server, project, secret_file, accounts, known_quirks(profile, quirks))
    if virtual:
        check_virtual(where, processes)
        if page is not None:
            raise click.UsageError("--virtual has no --page: when each operation was sent is known at its end")
    if stop_on_breach:
        check_told(thresholds, virtual=virtual)
    if fail_fast and virtual:
        raise click.UsageError("--fail-fast is for a replay that takes its time: leave it out, or --virtual")
    files = result_files(f"cpsim run {scenario}", junit, summary_file)
    context = click.get_current_context()
    folder = run_folder.OutputFolder(output or run_folder.new_name(path, runs_folder(context)))
    with files, folder as written, _telling_of_evidence(written):
        stages = Stages()
        is_watched = fail_fast or page is not None or metrics is not None or stages.is_shown
        with (
            _live(page, written.path) as live,
            _ahead(is_watched, fail_fast=fail_fast) as ahead,
            live_metrics(metrics, ahead) as wiring,
            stages,
        ):
            command = partial(_command, context)
            result = perform(
                lambda: load_workload(path, seed, settings, keep_ids=keep_ids),
                where,
                pace,
                in_flight=in_flight,
                processes=processes,
                timeout_s=timeout_s,
                slot_prefix=slot_prefix,
                faults=faults,
                warm_up_s=warm_up_s,
                stop_on=thresholds if stop_on_breach else (),
                command=command,
                on_stage=stages.begin,
                on_progress=lambda planned, done: stages.progress(planned, done, "" if ahead is None else ahead.text),
                live=live,
                ahead=ahead,
                wiring=wiring,
                folder=written.partial,
            )
            summary = summarise(result)
            summary.check(thresholds)
        files.add(lambda: results_of(result.verdict, printed(partial(show, result, summary)), summary.checked))
        try:
            with Stages() as stages:
                stages.begin("writing the run folder")
                run_folder.write(result, summary, written)
        finally:
            _print(result, summary, written, as_json=as_json)
            note_baseline(baseline, written)
    sys.exit({"valid": 0, "invalid": INVALID, "unknown": FAILED}[result.verdict.ruling] if summary.holds else INVALID)


@contextmanager
def _telling_of_evidence(output: OutputFolder) -> Iterator[None]:
    """Tell of what a run that is cut short leaves."""
    try:
        yield
    finally:
        if not output.is_whole and output.has_evidence:
            click.echo(f"what there is can be judged: cpsim judge {shlex.quote(str(output.partial))}", err=True)


def _live(address: TcpEndpoint | None, folder: Path) -> AbstractContextManager[LivePage | None]:
    """The page of a run while it goes on; none without an address."""
    if address is None:
        return nullcontext()
    from cpsim.run.live import live_page

    return live_page(address, folder)


def _ahead(is_wanted: bool, *, fail_fast: bool) -> AbstractContextManager[Ahead | None]:
    """What judges slots meanwhile; nothing, where nobody would see it."""
    if not is_wanted:
        return nullcontext()
    from cpsim.run.ahead import Ahead

    return Ahead(fail_fast=fail_fast)


def _print(result: Run, summary: Summary, output: OutputFolder, *, as_json: bool) -> None:
    from cpsim.run.documents import json_text, run_document, verdict_document
    from cpsim.run.summary import show
    from cpsim.ui.terminal import console

    if as_json:
        document = run_document(result, summary) | verdict_document(result.evidence, result.verdict)
        click.echo(json_text(document), nl=False)
    else:
        show(result, summary, console)
        if output.is_whole:
            console.print(f"run folder    {output.path}", highlight=False, markup=False)


def _command(context: click.Context, seed: int) -> str:
    """The command line that repeats a run, into a new folder and with new slots."""
    given = context.params | {"seed": seed, "as_json": False}
    given |= dict.fromkeys(("output", "slot_prefix", "page", "metrics", "junit", "summary_file"))
    words = ["cpsim", "run", given["scenario"]]
    for parameter in context.command.params:
        value = given[parameter.name or ""]
        if isinstance(parameter, click.Option) and value != parameter.default:
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and one is not False:
                    words += [parameter.opts[0]] if one is True else [parameter.opts[0], str(one)]
    return shlex.join(words)


def _pace(
    rate: str | None, speed: float | None, users: int | None, think_s: float | None, *, virtual: bool, asap: bool
) -> Pace:
    from cpsim.replay.pace import AsFastAsPossible, Speed, Users, Virtual

    if (rate is not None) + (speed is not None) + virtual + asap + (users is not None) > 1:
        raise click.UsageError("--rate, --speed, --virtual, --asap and --users exclude one another")
    if think_s is not None and users is None:
        raise click.UsageError("--think-time goes with --users N")
    if virtual:
        return Virtual()
    if rate is not None:
        return pace_at(rate)
    if users is not None:
        return Users(users, think_s or 0.0)
    return AsFastAsPossible() if speed is None else Speed(speed)


def target_at(
    target: Endpoint | None,
    server: Endpoint | None,
    project: str | None,
    secret_file: Path | None,
    accounts: AccountsSource | None = None,
    quirks: frozenset[str] = frozenset(),
) -> ReplayTarget | None:
    """The target that the options name; None is the embedded fake. Raises click.UsageError."""
    from cpsim.run.plan import ReplayTarget

    if server is not None and not isinstance(server, UrlEndpoint):
        raise click.UsageError(f"--server must be a URL such as http://127.0.0.1:8080/api, not {server}")
    if target is None:
        if quirks or any(option is not None for option in (server, project, secret_file, accounts)):
            raise click.UsageError(
                "--server, --project, --secret-file, --accounts, --profile and --quirk go with --target"
            )
        return None
    if isinstance(target, UrlEndpoint):
        if server is not None:
            raise click.UsageError("--server goes with a --target that is a daemon; this --target is a server")
        server = target
    if server is None:
        if accounts is not None:
            if project is None or secret_file is not None:
                raise click.UsageError("--accounts behind a daemon needs --project ID, and no --secret-file")
            return ReplayTarget(target, accounts=accounts, accounts_project=project, quirks=quirks)
        if project is not None or secret_file is not None:
            raise click.UsageError("--project and --secret-file are for a server: add --server URL")
        return ReplayTarget(target, quirks=quirks)
    if project is None or secret_file is None:
        raise click.UsageError(f"{server} needs --project ID and --secret-file FILE")
    return ReplayTarget(target, server, (project, secret_in(secret_file)), accounts=accounts, quirks=quirks)
