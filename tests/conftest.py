"""What several folders of tests need."""

import gc
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("deaf", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deaf")  # how long an example takes is the machine's affair
for of_a_workflow in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(of_a_workflow, None)  # what a test has cpsim say is not the workflow's
GUARD_S = 100.0
"""How long anything may take before a test says that it hangs."""

NETCAT = """
import socket, sys
is_unix = "-U" in sys.argv
with socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET) as sock:
    sock.connect(sys.argv[-1] if is_unix else (sys.argv[-2], int(sys.argv[-1])))
    sock.sendall(sys.stdin.buffer.read())
    while data := sock.recv(100):
        sys.stdout.buffer.write(data)
"""
CURL = """
import sys, urllib.request
body = sys.argv[sys.argv.index("-d") + 1].encode() if "-d" in sys.argv else None
print(urllib.request.urlopen(urllib.request.Request(sys.argv[-1], body), timeout=280).read().decode())
"""


def pytest_addoption(parser):
    parser.addoption("--late", type=int, metavar="SEED", help="have threads be late, see tests/support/late.py")


def pytest_configure(config):
    if (seed := config.getoption("--late")) is not None:
        import late  # found only with the configuration of this project

        late.begin(seed)


THOROUGH = {
    "accounting/test_breakdowns.py": "random ledgers, each with every report",
    "accounting/test_large.py": "a cluster, and more than fits into memory",
    "accounts/test_databases.py": "PostgreSQL and Redis as processes",
    "cli/test_secrets.py": "every command, as a process",
    "conformance/test_command.py": "the suite, in processes of its own",
    "conformance/test_foreign_daemons.py": "the suite, once for each daemon",
    "conformance/test_forwarding.py": "daemons that are stopped and killed",
    "conformance/test_planted_daemons.py": "the suite, once for each daemon",
    "conformance/test_own.py": "the suite, once for each tier and setting",
    "conformance/test_quirks.py": "the suite, once for each quirk",
    "conformance/test_strangers.py": "processes, and the suite for each bug of theirs",
    "conformance/test_wrong_daemons.py": "the suite, once for each bug",
    "conformance/test_wrong_ledgers.py": "the suite, once for each bug",
    "daemon/test_main.py": "daemons as processes",
    "faults/test_run_crashes.py": "processes that crash",
    "faults/test_serve_faults.py": "processes that crash",
    "integrations": "job managers and languages of others",
    "judge/test_naive.py": "commands by the ten thousand",
    "judge/test_spread.py": "a cluster, and processes that judge",
    "load": "Locust, in several processes",
    "record/test_record.py": "recorders as processes",
    "replay/test_processes.py": "replays in several processes",
    "robustness": "soaking and fuzzing",
    "run/test_capacity.py": "runs one after the other, in processes of their own",
    "scenario/test_scenario_sites.py": "runs of several sites, one after the other",
    "scenario/test_scenario_virtual.py": "days in virtual time",
    "server/dashboard/test_browser.py": "a browser",
    "server/test_openapi.py": "requests by the hundred that are made up from the OpenAPI document",
    "store/test_kill.py": "a process that is killed again and again",
    "test_bench.py": "the benchmarks, small",
    "test_guides.py": "the container and the unit, as processes",
    "testing/plugin/test_companions.py": "pytest in processes of its own",
    "testing/plugin/test_cost.py": "pytest in processes of its own, with a thousand tests",
    "ui/test_terminal.py": "processes on terminals",
}
"""What the default run leaves out, by file or folder, what takes long there; a single test has the marker itself."""
SAMPLED = {
    "accounting/test_command.py::test_folders_of_files": 3,
    "accounting/test_command.py::test_the_name_of_the_output_says_its_format": 4,
    "accounting/test_expectation.py::test_formats_of_records": 4,
    "accounting/test_moments.py::test_every_moment_is_in_the_day_or_week_of_its_date": 3,
    "accounting/test_moments.py::test_the_ends_of_the_calendar_are_times_like_others": 4,
    "accounting/test_recent_average.py::test_the_query_says_the_same_as_the_formula_step_by_step": 3,
    "accounting/test_reconciliation.py::test_every_finding": 6,
    "accounting/test_reconciliation.py::test_the_rule_that_decided_a_grant": 6,
    "accounting/test_reports.py::test_each_makes_tables_whose_columns_say_their_units": 6,
    "accounts/test_deployed.py::test_what_is_wrong_there_is_found_in_a_run_that_is_judged_again": 4,
    "accounts/test_foreign_server.py::test_credits_are_said_to_be_conserved_only_where_it_shows": 5,
    "accounts/test_foreign_server.py::test_what_is_not_shown_is_not_verified": 3,
    "accounts/test_foreign_server.py::test_what_is_shown_is_judged_all_the_same": 5,
    "accounts/test_view.py::test_whatever_is_hidden_nothing_right_is_found_wrong_and_all_that_is_hidden_is_told": 5,
    "cli/test_cli.py::test_what_cannot_be_done_is_said_in_one_line": 3,
    "config/test_thresholds.py::test_a_threshold_decides_the_exit_status_and_is_in_the_document": 3,
    "conformance/test_plain_server.py::test_a_harmless_shape_gets_no_complaint": 10,
    "conformance/test_plain_server.py::test_whatever_the_secret_is_a_forgery_is_none_that_is_right": 4,
    "conformance/test_planted.py::test_a_fault_is_found": 20,
    "conformance/test_walk.py::test_a_loss_beside_a_known_quirk_is_found": 10,
    "conformance/test_walk.py::test_nothing_can_be_left_out_of_what_is_shown": 2,
    "conformance/test_walk.py::test_nothing_deviates_from_what_is_documented": 2,
    "conformance/test_walk.py::test_quirks_that_are_known_do_not_count": 8,
    "daemon/test_malformed_replies.py::test_what_a_server_says_of_a_batch": 4,
    "daemon/test_malformed_replies.py::test_what_a_server_says_of_a_batch_that_was_given_up": 4,
    "daemon/test_malformed_replies.py::test_what_a_server_says_when_it_is_asked_whether_it_knows_batch_ids": 4,
    "faults/test_reset.py::test_no_fault_keeps_a_reset_from_setting_everything_back": 4,
    "faults/test_reset.py::test_of_one_project_what_it_shares_stays": 4,
    "faults/test_reset.py::test_what_a_fault_holds_is_never_applied": 4,
    "judge/test_apply_delay.py::test_a_servers_clock_that_is_changed_in_a_run_leaves_the_delay_unknown": 6,
    "judge/test_columns.py::test_both_ways_find_the_same_among_outstanding_slots": 4,
    "judge/test_columns.py::test_ordinary_slots_have_the_one_state_that_the_model_allows": 4,
    "judge/test_evidence.py::test_the_lines_of_a_finding_repeat_it": 3,
    "judge/test_judge_again.py::test_a_column_that_fails_leaves_the_other_files": 3,
    "judge/test_judge_again.py::test_what_was_valid_is_valid": 9,
    "judge/test_mutants.py::test_every_mutant_is_found": 16,
    "judge/test_wrong_servers.py::test_wrong_books_are_found_at_a_server": 6,
    "judge/test_wrong_servers.py::test_wrong_books_are_found_behind_a_daemon": 7,
    "net/test_tls.py::test_a_certificate_that_does_not_hold_is_a_definite_failure": 3,
    "replay/test_engine.py::test_slots_keep_their_order_and_one_operation_at_a_time": 3,
    "run/test_known_quirks.py::test_a_loss_in_sums_is_found_beside_quirks_that_break_them": 14,
    "run/test_known_quirks.py::test_a_run_is_valid_but_for_the_quirks_that_its_user_named": 2,
    "scenario/test_scenario_library.py::test_each_gets_its_verdict_in_small": 4,
    "scenario/test_scenario_misbehaviour.py::test_each_is_sent_and_judged_valid_at_a_server": 6,
    "scenario/test_scenario_misbehaviour.py::test_what_the_protocol_leaves_open_may_be_taken": 3,
    "scenario/test_scenario_parts.py::test_each_of_the_library_comes_in_parts": 4,
    "scenario/test_scenario_parts.py::test_parts_are_what_they_are_in_the_whole": 9,
    "scenario/test_scenario_parts.py::test_the_field_is_the_same_on_every_machine_in_any_number_of_parts": 3,
    "server/test_limits.py::test_without_a_descriptor_room_is_made_for_who_comes": 3,
    "store/test_store.py::test_a_store_that_holds_what_is_nested_too_deeply_opens_and_goes_on": 3,
    "system/test_extras.py::test_a_command_says_which_extra_it_needs": 3,
    "system/test_extras.py::test_what_only_tells_needs_no_extra": 3,
    "test_samples.py::test_a_run_folder": 3,
    "test_samples.py::test_a_store_and_its_exports_are_reported_on": 4,
    "test_samples.py::test_what_can_be_replayed_is": 12,
    "testing/plugin/test_frozen_time.py::test_a_replay_in_the_background": 5,
    "torture/test_damaged.py::test_a_damaged_file_is_named": 3,
    "torture/test_torture.py::test_what_is_broken_is_found_soon": 3,
}
"""Tests of many cases that take long together: of each, the default run takes one case of so many."""
WAITING = {"test_forwarding.py", "test_planted_daemons.py", "test_foreign_daemons.py", "test_slurm.py"}
"""Files whose tests wait for other processes more than they compute."""
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


HERE = Path(__file__).parent
collect_ignore = ["examples"]  # they are run as a reader copies them, by test_documents.py


@cache
def is_thorough(path):
    """Whether all tests of a file or folder are thorough."""
    if not path.is_relative_to(HERE):
        return False  # a clause, run as another project would from this folder
    place = path.relative_to(HERE)
    return not THOROUGH.keys().isdisjoint({place.as_posix(), *(folder.as_posix() for folder in place.parents)})


def pytest_ignore_collect(collection_path, config):
    """Import nothing that the default run leaves out: that takes seconds in each of its processes."""
    return True if config.option.markexpr == "not thorough" and is_thorough(collection_path) else None


def pytest_collection_modifyitems(items):
    """Mark what is thorough: by its file or folder, as a case beyond a sample, or for a page in a browser."""
    cases = Counter()
    for item in items:
        place, _, name = item.nodeid.removeprefix("tests/").partition("::")
        test = f"{place}::{name.partition('[')[0]}"
        is_beyond = test in SAMPLED and cases[test] % SAMPLED[test] > 0
        cases[test] += not item.get_closest_marker("thorough")
        if is_beyond or is_thorough(item.path) or "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("thorough")
    items[:] = waiting_early(items)


def waiting_early(items):
    """The tests in an order in which each of four processes begins with some of those that wait long."""
    waiting, others, default = [], [], []
    for item in items:
        if not item.get_closest_marker("thorough"):
            default.append(item)
        else:
            (waiting if item.path.name in WAITING else others).append(item)
    share = -(-len(others) // 4)
    parts = ((*waiting[part::4], *others[part * share : (part + 1) * share]) for part in range(4))
    return [*default, *chain.from_iterable(parts)]


def pytest_collection_finish():
    """Leave what was imported and collected out of garbage collections; the suite under test makes two in each run."""
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown():
    """Freeze again what a replay has unfrozen, but for the youngest garbage."""
    gc.collect(1)
    gc.freeze()


@pytest.fixture
def in_files(monkeypatch):
    """A function that has even the smallest columns in files from then on, of which few rows are looked at."""
    from cpsim.system import external_sort, growing, mapped  # most tests do without

    def begin(rows=7):
        for module in (mapped, growing, external_sort):
            monkeypatch.setattr(module, "LEAST_BYTES", 1)
            monkeypatch.setattr(module, "ROWS", rows)
        monkeypatch.setattr(mapped, "TAKEN_BYTES", 64)
        monkeypatch.setattr(external_sort, "APART", min(4, rows))

    return begin


@pytest.fixture
def no_room(monkeypatch, tmp_path):
    """A function that has no temporary file made from then on."""
    return lambda: monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))


@pytest.fixture(scope="session")
def wait_for():
    """wait_for(condition): what the condition returns, once it is true."""

    def wait(condition):
        guard_s = time.monotonic() + GUARD_S
        while not (found := condition()):
            assert time.monotonic() < guard_s, "what was waited for has not come to pass"
            time.sleep(0.002)
        return found

    return wait


@pytest.fixture
def with_pandas(monkeypatch):
    """A command that is called in this process leaves it pandas, which other tests of the process need."""
    monkeypatch.setattr("cpsim.system.process.do_without_pandas", lambda: None)


@pytest.fixture
def command_line(monkeypatch, with_pandas):
    """Return command_line(*arguments) -> the exit status of cpsim in this process."""
    from cpsim import cli  # most tests do without

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cpsim", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        return exited.value.code

    return call


CLUSTER = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    ports = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", **ports) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a Dask cluster of two processes, which ends with the module: it is busy while it is idle."""
    script = tmp_path_factory.mktemp("cluster") / "cluster.py"
    script.write_text(CLUSTER)
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=script.parent) as dask:
        yield dask.stdout.readline().strip()
        dask.stdin.close()


@pytest.fixture
def cpsim(command_line, capsys):
    """Return cpsim(*arguments) -> (exit status, standard output, standard error)."""
    return lambda *arguments: (command_line(*arguments), *capsys.readouterr())


@pytest.fixture
def left_to_the_collector():
    """What only the garbage collector finds of a context, when it has ended."""

    @contextmanager
    def left():
        left = []
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            yield left
            gc.collect()
            left += gc.garbage
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    return left


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory of the test's own, which is the current one: socket paths stay short."""
    monkeypatch.chdir(tmp_path)
    return Path()


@pytest.fixture(scope="module")
def browser():
    """A browser that keeps a log of what it says and fetches."""
    if BROWSER is None or DRIVER is None:
        pytest.skip("no browser: install chromium and its chromedriver to look at the page")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def speaks_unix(netcat):
    """Whether an `nc` has -U: not every one can."""
    told = subprocess.run([netcat, "-h"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return "-U" in told.stdout + told.stderr


@pytest.fixture(scope="session")
def tools(tmp_path_factory):
    """A PATH with this Python's programs, and stand-ins for `nc` and `curl` where the machine has none that fits."""
    folder = tmp_path_factory.mktemp("tools")
    netcat = shutil.which("nc")
    missing = {} if netcat is not None and speaks_unix(netcat) else {"nc": NETCAT}
    missing |= {} if shutil.which("curl") else {"curl": CURL}
    for name, program in missing.items():
        (folder / f"{name}.py").write_text(program, encoding="utf-8")
        tool = folder / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/{name}.py" "$@"\n', encoding="utf-8")
        tool.chmod(0o755)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
