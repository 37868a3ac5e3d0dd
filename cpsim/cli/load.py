"""`cpsim load`."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

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
    EndpointType,
    NumberType,
    accounts_option,
    complete_scenario,
    in_flight_option,
    known_profile_option,
    known_quirk_option,
    known_quirks,
    output_option,
    page_option,
    project_option,
    rate_option,
    secret_file_option,
    seed_option,
    server_option,
    settings_option,
    slot_prefix_option,
    speed_option,
    timeout_option,
)
from cpsim.cli.results import result_files, result_options
from cpsim.cli.run import target_at
from cpsim.cli.serving import live_metrics, metrics_option
from cpsim.cli.settings import SettableOption, runs_folder
from cpsim.cli.tls import TLS, tls_options
from cpsim.config.thresholds import APPLY_DELAY_PREFIXES, NEED_DUE_TIMES
from cpsim.system.checks import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cpdaemon.endpoint import Endpoint, TcpEndpoint
    from cpsim.accounts.sources import AccountsSource
    from cpsim.config.thresholds import Threshold
    from cpsim.run.capacity import SearchRequest
    from cpsim.ui.results import ResultFiles

START: Final = """
import sys
try:
    import cpsim.replay.wires.connect, locust.main
    locust.main.main()
except KeyboardInterrupt:
    sys.stderr.write("cpsim: interrupted\\n")
    sys.exit(2)
except locust.exception.RPCError as error:
    from cpsim.load.leaving import leave
    leave(f"Locust's master: {error}; choose another port for it by -- --master-bind-port N")
"""
"""Imports the engine before Locust, so that gevent does not patch the engine's modules."""
P99_MS: Final = 50.0
LOOPBACK: Final = "127.0.0.1"
STEP_S: Final = 2.0


class _Load(ExtraCommand):
    """A command whose own options end at `--`; Locust's follow."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options; an unknown one may be Locust's, before `--`."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            message = f"No such option '{error.option_name}' of cpsim load; Locust's own follow --."
            raise click.NoSuchOption(error.option_name, message, error.possibilities, ctx) from error

    def extra_for(self, args: list[str]) -> str:
        """A search runs without Locust."""
        return "run" if "--find-capacity" in args else self.extra


@cli.command(cls=_Load, extra="load")
@click.argument("scenario", shell_complete=complete_scenario)
@click.option(
    "--target",
    cls=SettableOption,
    setting="target",
    type=EndpointType(),
    required=True,
    help="A daemon (PATH or HOST:PORT) or a server (URL).",
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
@rate_option
@speed_option
@in_flight_option
@timeout_option
@click.option("--find-capacity", is_flag=True, help="Search the highest rate that passes --p99-ms; without Locust.")
@click.option(
    "--p99-ms",
    type=NumberType(0.01, 60_000),
    metavar="MS",
    help=f"Limit of the response time at the 99th percentile; {P99_MS:g} by default.",
)
@click.option(
    "--step-time",
    "step_s",
    type=NumberType(0.1, LONGEST_S),
    metavar="S",
    help=f"Minimum seconds of a step at one rate; {STEP_S:g} by default.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Processes that replay: Locust's, or with --find-capacity the search's.",
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
@click.option("--json", "as_json", is_flag=True, help="Print the result of a search as one JSON document.")
@click.argument("locust", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def load(
    context: click.Context,
    scenario: str,
    target: Endpoint,
    server: Endpoint | None,
    project: str | None,
    secret_file: Path | None,
    accounts: AccountsSource | None,
    profile: str | None,
    quirks: tuple[str, ...],
    seed: int | None,
    settings: tuple[str, ...],
    rate: str | None,
    speed: float | None,
    in_flight: int,
    timeout_s: float,
    find_capacity: bool,
    p99_ms: float | None,
    step_s: float | None,
    processes: int | None,
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
    locust: tuple[str, ...],
) -> None:
    """Replay SCENARIO under Locust, with any number of processes and machines; or search a target's capacity.

    Options after -- are Locust's: --headless, --processes N, --master, --worker, --web-port N, ... A worker on another
    machine takes the same command line and -- --worker --master-host HOST; the master must then listen beyond loopback:
    --master-bind-host HOST, and --web-host HOST for its page. The exit status is that of cpsim run.

    With --find-capacity, SCENARIO's slots are replayed in steps of one rate each, without Locust. The search finds the
    highest rate that passes, and why the next rate failed. The exit status is 1 if no rate passed or an --assert fails
    on the figures of the highest, 2 if the search did not finish.

    \b
    cpsim load challenge --target 127.0.0.1:5667
    cpsim load challenge --target 127.0.0.1:5667 -- --headless --processes 2
    cpsim load challenge --target 127.0.0.1:5667 --find-capacity --p99-ms 50
    """
    from cpsim.config.catalog import find_scenario
    from cpsim.evidence import extensions
    from cpsim.judge.judge import checkers_of_others
    from cpsim.run.ahead import REFUSED, why_not_at
    from cpsim.run.breach import check_told
    from cpsim.run.folder import check_absent, new_name
    from cpsim.scenario import load_workload, source

    known = known_quirks(profile, quirks)
    where = target_at(target, server, project, secret_file, accounts, known)
    assert where is not None
    path = find_scenario(scenario)
    _check(context)
    is_worker = "--worker" in locust
    if not is_worker:
        thresholds = against_baseline(thresholds, baseline)
    title = f"cpsim load {scenario}"
    read = partial(load_workload, path, seed, settings)
    if find_capacity:
        from cpsim.run.capacity import SearchRequest

        make_request = partial(
            SearchRequest,
            target=where,
            p99_ms=p99_ms or P99_MS,
            step_s=step_s or STEP_S,
            timeout_s=timeout_s,
            processes=processes or 1,
            slot_prefix=slot_prefix,
        )
        folder = output or new_name(path, runs_folder(context))
        with result_files(title, junit, summary_file) as files:
            status = _search(
                lambda: make_request(read()), thresholds, baseline, folder, files, metrics, as_json=as_json
            )
        sys.exit(status)
    _check_thresholds(thresholds, has_due_times=rate is not None or speed is not None)
    if stop_on_breach:
        check_told(thresholds)
    if fail_fast and (why := why_not_at(where)):
        raise click.UsageError(REFUSED.format(why))
    with nullcontext() if is_worker else result_files(title, junit, summary_file):
        if path.suffix == ".toml":  # with a mistake in it, Locust's processes would wait for each other
            source.load(path, settings)
        else:
            read()
        checkers_of_others()
        extensions.check()
        if output is not None and not is_worker:
            check_absent(output)
    given = {
        "title": title,
        "scenario": str(path),
        "settings": settings,
        "seed": seed,
        "endpoint": str(target),
        "server": None if where.server is None else str(where.server),
        "project": project,
        "secret_file": None if secret_file is None else str(secret_file),
        "accounts": None if accounts is None else str(accounts),
        "quirks": sorted(known),
        "rate": rate,
        "speed": speed,
        "in_flight": in_flight,
        "timeout_s": timeout_s,
        "slot_prefix": slot_prefix,
        "output": None if output is None else str(output),
        "runs": str(runs_folder(context)),
        "page": None if page is None else str(page),
        "metrics": None if metrics is None else str(metrics),
        "thresholds": [asdict(threshold) for threshold in thresholds],
        "baseline": None if baseline is None else str(baseline),
        "stop_on_breach": stop_on_breach,
        "fail_fast": fail_fast,
        "warm_up_s": warm_up_s,
        "junit": None if junit is None else str(junit),
        "summary_file": None if summary_file is None else str(summary_file),
        "tls": {name: str(file) for name in TLS if (file := context.params[name]) is not None},
    }
    _start_locust(given, (*(["--processes", str(processes)] if processes else []), *locust))


def _check(context: click.Context) -> None:
    """Raise click.UsageError if options do not go together."""
    given = {
        name for name in context.params if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }
    locust = context.params["locust"]
    if context.params["find_capacity"]:
        if given & {"warm_up_s", "stop_on_breach", "fail_fast"}:
            raise click.UsageError(
                "--find-capacity has steps of its own: leave out --warm-up, --stop-on-breach and --fail-fast"
            )
        if given & {"rate", "speed", "in_flight"} or locust:
            raise click.UsageError(
                "--find-capacity chooses rates and operations in flight itself, and runs without Locust: leave out "
                + (" ".join(locust) or "--rate, --speed and --in-flight")
            )
        if "page" in given:
            raise click.UsageError("--find-capacity has no --page: each of its steps is a run of its own")
        return
    if given & {"p99_ms", "step_s", "as_json"}:
        raise click.UsageError("--p99-ms, --step-time and --json go with --find-capacity")
    if given >= {"rate", "speed"}:
        raise click.UsageError("--rate and --speed exclude one another")


def _check_thresholds(thresholds: tuple[Threshold, ...], *, has_due_times: bool) -> None:
    """Raise click.UsageError if a load will not have the figure of a threshold."""
    for threshold in thresholds:
        if threshold.metric.startswith(APPLY_DELAY_PREFIXES):
            raise click.UsageError(
                f"--assert {threshold}: under Locust, the apply delay is not measured: each worker has its own clock; "
                "use cpsim run"
            )
        if threshold.metric.startswith(NEED_DUE_TIMES) and not has_due_times:
            raise click.UsageError(f"--assert {threshold}: operations have no due times: add --rate or --speed")


def _start_locust(settings: Mapping[str, object], locust: tuple[str, ...]) -> None:
    """Replace this process by Locust, with the settings of its master and workers."""
    import cpsim

    if "--worker" in locust:
        click.echo("cpsim: a worker: waiting for its master", err=True)
    locustfile = Path(cpsim.__file__).parent / "load" / "locustfile.py"
    options = [
        "-f",
        str(locustfile),
        "--host",
        str(settings["endpoint"]),
        *_listening(locust),
        *locust,
    ]
    os.execve(  # noqa: S606 - no shell is wanted
        sys.executable,
        [sys.executable, "-P", "-c", START, *options],
        os.environ | {"CPSIM_LOAD": json.dumps(settings)},
    )


def _listening(locust: tuple[str, ...]) -> list[str]:
    """The default addresses of Locust's page and master: loopback, not all interfaces."""
    if "--worker" in locust:
        return []
    given = {option.partition("=")[0] for option in locust}
    return [
        word for option in ("--web-host", "--master-bind-host") if option not in given for word in (option, LOOPBACK)
    ]


def _search(
    make_request: Callable[[], SearchRequest],
    thresholds: tuple[Threshold, ...],
    baseline: Path | None,
    folder: Path,
    files: ResultFiles,
    metrics: TcpEndpoint | None,
    *,
    as_json: bool,
) -> int:
    """Search the capacity, write its folder, and print the result; returns the exit status."""
    from cpsim.run import folder as run_folder
    from cpsim.run.capacity import Capacity, find
    from cpsim.run.curve import show
    from cpsim.run.documents import capacity_document, json_text
    from cpsim.run.results import results_of_search
    from cpsim.ui.terminal import Stages, console, printed

    with run_folder.OutputFolder(folder) as written:
        with live_metrics(metrics) as wiring, Stages() as stages:
            stages.begin("making the workload")
            request = make_request()
            found = Capacity(request.p99_ms)
            find(request, found, on_stage=stages.begin, on_progress=stages.progress, wiring=wiring)
        if found.best is not None:
            found.best.summary.check(thresholds)
        files.add(lambda: results_of_search(found, thresholds, printed(partial(show, found))))
        document = capacity_document(found, request)
        try:
            run_folder.write_capacity(found, document, written)
        finally:
            if as_json:
                click.echo(json_text(document), nl=False)
            else:
                show(found, console)
                if written.is_whole:
                    console.print(f"run folder    {written.path}", highlight=False, markup=False)
            note_baseline(baseline, written)
    if found.ended is not None:
        return FAILED
    return 0 if found.best is not None and found.best.summary.holds else INVALID
