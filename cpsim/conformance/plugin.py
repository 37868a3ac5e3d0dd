"""The pytest plugin of the suite: its options, the fixture `cp`, and what each clause came to.

pytest --pyargs cpsim.conformance -p cpsim.conformance.plugin --cp-target 127.0.0.1:5667
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from cpsim.conformance.clause import is_chosen
from cpsim.conformance.examiner import Examiner
from cpsim.conformance.findings import CannotRun, Deviation, NotVerifiable
from cpsim.conformance.target import Target, TargetView, checked_prefix, parse_target, reach, rehearsed
from cpsim.conformance.tidying import tidy
from cpsim.errors import CpsimError
from cpsim.net.listen import Listen

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from cpsim.conformance.clause import Clause

PASSED: Final = "pass"
FAILED: Final = "deviation"
QUIRK: Final = "known quirk"
NOT_VERIFIABLE: Final = "not verifiable"
ERROR: Final = "error"
PLANNED: Final = "planned"
DEVIANT: Final = frozenset((FAILED, QUIRK, ERROR))
"""Results of clauses that did not pass, though they were visible."""

TARGET: Final = pytest.StashKey[Target]()
TARGET_VIEW: Final = pytest.StashKey[TargetView]()
EXAMINER: Final = pytest.StashKey[Examiner]()
MOST_LINES: Final = 200
"""The most lines of a clause's transcript that are kept, the last ones."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's options."""
    group = parser.getgroup("CreditPiggy conformance")
    group.addoption("--cp-target", metavar="ENDPOINT", help="a daemon (PATH or HOST:PORT) or a server (URL)")
    group.addoption("--cp-server", metavar="URL", help="the server behind a daemon")
    group.addoption("--cp-project", metavar="ID", help="project id at the server")
    group.addoption("--cp-secret-file", metavar="FILE", type=Path, help="file with the project's secret")
    group.addoption("--cp-other-project", metavar="ID", help="a second project at the server")
    group.addoption("--cp-other-secret-file", metavar="FILE", type=Path, help="file with its secret")
    group.addoption("--cp-behind", metavar="HOST:PORT", help="be the server there, that the daemon forwards to")
    group.addoption(
        "--cp-target-flush-interval", metavar="S", type=float, default=1.0, help="of the daemon, in seconds"
    )
    group.addoption(
        "--cp-restart-command", metavar="COMMAND", help="stops the daemon (by {signal}) and starts it again"
    )
    group.addoption("--cp-failed-command", metavar="COMMAND", help="prints the commands that the daemon knows refused")
    group.addoption(
        "--cp-target-profile", choices=["documented", "deployed"], default="documented", help="what is known"
    )
    group.addoption(
        "--cp-target-quirk",
        metavar="NAME",
        action="append",
        default=[],
        help="known beside the profile; may be repeated",
    )
    group.addoption("--cp-clause", metavar="PATTERN", action="append", default=[], help="only these: CLAIM-5, 'WIRE-*'")
    group.addoption("--cp-timeout", metavar="S", type=float, default=10.0, help="seconds for a reply or an effect")
    group.addoption("--cp-max-rate", metavar="R", type=float, default=100.0, help="commands/s at most; 0: no limit")
    group.addoption("--cp-slot-prefix", metavar="TEXT", default=Target.slot_prefix, help="begins every id")
    group.addoption(
        "--cp-thorough", action="store_true", help="also send what is risky at a live system, or takes long"
    )
    group.addoption("--cp-dry-run", action="store_true", help="send nothing; write down what would be sent")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Reach the target at once, before processes are started that could not."""
    config = session.config
    if config.getoption("--cp-target") is not None and not config.option.collectonly:
        _target_view(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server behind the daemon."""
    if TARGET_VIEW in config.stash:
        config.stash[TARGET_VIEW].close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the clauses that are not asked for, and let -k know the ids of the others.

    Raises:
        UsageError: the options do not say what is to be examined.
    """
    dropped = []
    if any(clause_of(item) for item in items) and not config.option.collectonly:
        _target(config)
    for item in list(items):
        clause = clause_of(item)
        if clause is None:
            continue
        item.extra_keyword_matches.add(clause.id)
        if not is_chosen(clause, config.getoption("--cp-clause")):
            items.remove(item)
            dropped.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)


@pytest.fixture(scope="session")
def cp_end(request: pytest.FixtureRequest, record_testsuite_property: Callable[[str, object], None]) -> Iterator[None]:
    """The end of the run: what is outstanding is discarded, and what is left is said, in JUnit XML too."""
    yield
    target_view = _target_view(request.config)
    tidy(target_view)
    if target_view.left is not None:
        record_testsuite_property("left", "\n".join(target_view.left.lines()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what is left at the target."""
    left = config.stash[TARGET_VIEW].left if TARGET_VIEW in config.stash else None
    for line in () if left is None else left.lines():
        terminalreporter.write_line(line)


@pytest.fixture
def cp(request: pytest.FixtureRequest, cp_end: None) -> Examiner:  # noqa: ARG001 - it is set up first, and ends last
    """The examiner of the clause, if the target meets its needs."""
    clause = clause_of(request.node)
    assert clause is not None
    target_view = _target_view(request.config)
    missing = target_view.missing(clause.needs)
    if missing:
        raise NotVerifiable("; ".join(f"needs {need}" for need in missing))
    examiner = request.node.stash[EXAMINER] = Examiner(target_view, clause)
    return examiner


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report the result of each clause."""
    clause = clause_of(item)
    error = None if call.excinfo is None else call.excinfo.value
    if clause is None or call.when == "teardown" or (call.when == "setup" and error is None):
        return (yield)
    examiner = item.stash.get(EXAMINER, None)
    result, quirk, text = _finding(item.config, error)
    lines = [] if examiner is None else examiner.transcript[-MOST_LINES:]
    item.user_properties[:] = [
        ("clause", clause.id),
        ("section", clause.section),
        ("level", clause.level.value),
        ("result", result),
        ("quirk", quirk),
        ("detail", text),
        ("transcript", "\n".join(lines)),
    ]
    if examiner is not None:
        item.user_properties += [("measured", f"{what}: {figure}") for what, figure in examiner.measured.items()]
    if isinstance(error, Deviation):
        item.user_properties += [("expected", error.expected), ("got", error.got)]
    raised = call.excinfo
    if isinstance(error, Deviation | NotVerifiable | CannotRun):
        call.excinfo = None  # or pytest would format a traceback, and that takes longer than most clauses
    report = yield
    call.excinfo = raised
    if result == FAILED or isinstance(error, CannotRun):
        report.outcome = "failed"
        report.longrepr = "\n".join([f"{clause.id}: {clause.sentence}", text, *lines])
    elif result == NOT_VERIFIABLE:
        report.outcome = "skipped"
        report.longrepr = (report.location[0], report.location[1] or 0, text)
    elif result == QUIRK:
        report.outcome = "skipped"
        report.wasxfail = f"known quirk {quirk}"
    return report


def _finding(config: pytest.Config, error: BaseException | None) -> tuple[str, str, str]:
    """The result of a clause, the quirk, and a sentence."""
    if error is None:
        return (PLANNED if config.getoption("--cp-dry-run") else PASSED), "", ""
    if isinstance(error, NotVerifiable):
        return NOT_VERIFIABLE, "", str(error)
    if isinstance(error, Deviation):
        target = _target(config)
        known = error.quirk and (target.profile == "deployed" or error.quirk in target.quirks)
        return (QUIRK if known else FAILED), error.quirk, str(error)
    if isinstance(error, CannotRun):
        return ERROR, "", str(error)
    return ERROR, "", f"{type(error).__name__}: {error}"


def clause_of(item: pytest.Item) -> Clause | None:
    """The clause that a test checks, or None."""
    return getattr(item.function, "clause", None) if isinstance(item, pytest.Function) else None


def _target(config: pytest.Config) -> Target:
    """The target of the options, or of `examine`."""
    if TARGET not in config.stash:
        option = config.getoption
        if option("--cp-target") is None:
            raise pytest.UsageError("--cp-target ENDPOINT is missing: a daemon (PATH or HOST:PORT) or a server (URL)")
        try:
            target = parse_target(
                option("--cp-target"),
                server=option("--cp-server"),
                project=option("--cp-project"),
                secret_file=option("--cp-secret-file"),
                other_project=option("--cp-other-project"),
                other_secret_file=option("--cp-other-secret-file"),
                behind=None if option("--cp-behind") is None else Listen(option("--cp-behind")),
            )
            prefix = checked_prefix(option("--cp-slot-prefix"))
            if not (option("--cp-timeout") > 0 and option("--cp-max-rate") >= 0):
                raise ValueError("--cp-timeout must be above 0, and --cp-max-rate 0 or more")  # noqa: TRY301
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
        config.stash[TARGET] = replace(
            target,
            profile=option("--cp-target-profile"),
            quirks=frozenset(option("--cp-target-quirk")),
            timeout_s=option("--cp-timeout"),
            max_rate=option("--cp-max-rate") or None,
            slot_prefix=prefix,
            flush_interval_s=option("--cp-target-flush-interval"),
            restart_command=option("--cp-restart-command"),
            failed_command=option("--cp-failed-command"),
            thorough=option("--cp-thorough"),
        )
    return config.stash[TARGET]


def _target_view(config: pytest.Config) -> TargetView:
    """The view of the target."""
    if TARGET_VIEW not in config.stash:
        target = _target(config)
        if target.behind is not None and "PYTEST_XDIST_WORKER" in os.environ:
            raise pytest.UsageError("--cp-behind: only one process can be the server there: leave out -n")
        if config.getoption("--cp-dry-run"):
            config.stash[TARGET_VIEW] = rehearsed(target)
        else:
            try:
                config.stash[TARGET_VIEW] = reach(target, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
            except CpsimError as problem:
                pytest.exit(str(problem), returncode=2)
    return config.stash[TARGET_VIEW]
