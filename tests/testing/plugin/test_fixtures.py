"""The fixtures: what a test gets, how it passes, fails, and fails at its end."""

import pytest

EXAMPLE = """
    from manager import run_job

    def test_finished_job_is_credited(creditpiggy):
        run_job(creditpiggy.endpoint, "job-1", on="worker-7")
        creditpiggy.assert_claimed("job-1", machine="worker-7", credits=5, counters={"job/events": 1000})

    def test_another_is_empty(creditpiggy):
        assert creditpiggy.slots == creditpiggy.machines == creditpiggy.users == {}
        assert creditpiggy.journal == []
"""


def test_a_good_job_manager_passes(run, monkeypatch):
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")  # whoever has it installed has its fixtures
    result = run(EXAMPLE, plugins=["no:anyio", "no:asyncio", "no:faker", "no:schemathesis"])
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*CreditPiggy*")


def test_a_failure_shows_differences_history_and_a_section(run):
    result = run("""
        from manager import run_job

        def test_it(creditpiggy):
            with creditpiggy.faults.late(0.01, kind="claim"):
                run_job(creditpiggy.endpoint, "job-1", on="worker-8", credits=4)
            creditpiggy.assert_claimed("job-1", machine="worker-7", credits=5)
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            '>*creditpiggy.assert_claimed("job-1", machine="worker-7", credits=5)',
            "E*AssertionError: slot 'job-1' is not as expected:",
            "E*machine: expected 'worker-7', is 'worker-8'",
            "E*credits: expected 5, is 4",
            "E*history of slot 'job-1':",
            "E*alloc,slot=job-1,credits=4",
            "*- CreditPiggy -*",
            "*last commands of 3 received:",
            "*claim,slot=job-1,machine=worker-8",
            "faults fired:",
            "*daemon.late claim of slot 'job-1'",
        ]
    )
    result.stdout.no_fnmatch_line("*assertions.py*")  # a failure points at the test, not into this project


def test_any_failure_shows_the_section(run):
    result = run("""
        from manager import run_job

        def test_it(creditpiggy):
            run_job(creditpiggy.endpoint, "job-1", on="worker-7")
            assert creditpiggy.slots["job-1"].machine == "worker-8"
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*- CreditPiggy -*", "project 'project'; slots: 1 claimed; quirks: none"])


REFUSED = """
    import pytest
    from cpdaemon import Client

    {marker}
    def test_it(creditpiggy):
        with Client(creditpiggy.endpoint) as client:
            client.claim("job-1", "worker-7")
"""


def test_a_refused_command_is_an_error_at_teardown(run):
    result = run(REFUSED.format(marker=""))
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_it*",
            "1 refused by the accounts:",
            "*claim,slot=job-1,machine=worker-7   refused: slot 'job-1' was never allocated",
            "*allow_refusals=True*",
        ]
    )


def test_a_malformed_command_is_an_error_at_teardown(run):
    result = run("""
        import socket

        def test_it(creditpiggy):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(creditpiggy.endpoint)
                sock.sendall(b"claim,slot=job-1")
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(2) == b"ER"
    """)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_it*", "*'claim,slot=job-1'   malformed"])


def test_what_is_refused_in_the_last_moment_counts(run):
    result = run("""
        import pytest
        from cpdaemon import Client

        @pytest.mark.creditpiggy(flush_interval_s=3600)
        def test_it(creditpiggy):
            with Client(creditpiggy.endpoint) as client:
                client.claim("job-1", "worker-7")
    """)
    result.assert_outcomes(passed=1, errors=1)


@pytest.mark.parametrize(
    ("marker", "options", "ini"),
    [
        ("@pytest.mark.creditpiggy(allow_refusals=True)", [], ""),
        ("", ["--cp-allow-refusals"], ""),
        ("", [], "cp_allow_refusals = true"),
    ],
)
def test_refusals_can_be_allowed(run, project, marker, options, ini):
    project.makeini(f"[pytest]\n{ini}\n")
    run(REFUSED.format(marker=marker), *options).assert_outcomes(passed=1)


def test_a_marker_takes_back_what_an_option_allows(run):
    marker = "@pytest.mark.creditpiggy(allow_refusals=False)"
    run(REFUSED.format(marker=marker), "--cp-allow-refusals").assert_outcomes(passed=1, errors=1)


def test_a_test_that_has_failed_is_not_told_twice(run):
    result = run("""
        from cpdaemon import Client

        def test_it(creditpiggy):
            with Client(creditpiggy.endpoint) as client:
                client.claim("job-1", "worker-7")
            assert 1 == 2
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["refused: 1:", "*claim,slot=job-1,machine=worker-7   refused: *"])


def test_more_than_one_site(run):
    result = run("""
        import pytest
        from manager import run_job

        def test_it(creditpiggy, creditpiggy_factory):
            other = creditpiggy_factory()
            second_site = creditpiggy_factory(beside=other, flush_interval_s=0.01)
            run_job(creditpiggy.endpoint, "job-1", on="worker-7")
            run_job(other.endpoint, "job-1", on="worker-8")
            run_job(second_site.endpoint, "job-2", on="worker-9")
            creditpiggy.assert_claimed("job-1", machine="worker-7")
            other.assert_claimed("job-1", machine="worker-8")
            other.wait_for_claim("job-2")
            assert list(other.slots) == ["job-1", "job-2"]
            assert list(creditpiggy.slots) == ["job-1"]

        @pytest.mark.creditpiggy(profile="deployed")
        def test_beside(creditpiggy, creditpiggy_factory):
            assert creditpiggy_factory(beside=creditpiggy).fake.accounts.quirks

        def test_refused(creditpiggy_factory):
            run_job(creditpiggy_factory().endpoint, "job-1", on="worker-7")
            bad = creditpiggy_factory()
            run_job(bad.endpoint, "job-1", on="worker-7")
            run_job(bad.endpoint, "job-1", on="worker-7")
    """)
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["3 refused by the accounts:"])


def test_one_server_for_the_session(run):
    result = run(
        """
        import pytest
        from manager import run_job

        servers = set()

        @pytest.mark.parametrize("number", range(3))
        def test_it(creditpiggy_server, number):
            servers.add(creditpiggy_server.url)
            assert len(servers) == 1
            with creditpiggy_server.project() as creditpiggy:
                assert creditpiggy.slots == {}
                run_job(creditpiggy.endpoint, "job-1", on="worker-7")
                creditpiggy.assert_claimed("job-1", machine="worker-7")
                assert "meta-dropped" in creditpiggy.fake.accounts.quirks

        def test_refused(creditpiggy_server):
            with creditpiggy_server.project() as creditpiggy:
                run_job(creditpiggy.endpoint, "job-1", on="worker-7")
                run_job(creditpiggy.endpoint, "job-1", on="worker-7")

        def test_fails(creditpiggy_server):
            with creditpiggy_server.project() as creditpiggy:
                run_job(creditpiggy.endpoint, "job-1", on="worker-7")
                assert 1 == 2
    """,
        "--cp-quirk=meta-dropped",
    )
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(["E*3 refused by the accounts:*"])
    result.stdout.fnmatch_lines(["E*last commands of 3 received:"])


ENDPOINT = """
    import asyncio
    import pytest
    from cpdaemon import Client
    from manager import run_job

    @pytest.fixture(scope="session")
    def manager(creditpiggy_endpoint):  # one that is started once
        return creditpiggy_endpoint.endpoint

    @pytest.mark.parametrize("number", range(2))
    def test_it(creditpiggy, manager, number):
        assert creditpiggy.endpoint == manager
        assert creditpiggy.slots == {}
        run_job(manager, "job-1", on="worker-7")
        creditpiggy.assert_claimed("job-1", machine="worker-7")

    def test_async(creditpiggy_async, manager):
        run_job(manager, "job-1", on="worker-7")
        asyncio.run(creditpiggy_async.wait_for_claim("job-1"))

    def test_without_the_manager(creditpiggy, creditpiggy_factory):
        run_job(creditpiggy.endpoint, "job-1", on="worker-7")

    @pytest.mark.creditpiggy(quirks=["reclaim"], faults=["lose-reply"])
    def test_settings(creditpiggy, creditpiggy_factory, manager):
        assert creditpiggy.fake.accounts.quirks == {"reclaim"}
        assert [fault.action for fault in creditpiggy.faults] == ["lose-reply"]
        assert creditpiggy_factory().endpoint != creditpiggy.endpoint == manager
        creditpiggy.faults.clear()

    def test_settings_end_with_their_test(creditpiggy, manager):
        assert not creditpiggy.fake.accounts.quirks
        assert not list(creditpiggy.faults)

    def test_refused(creditpiggy, manager):
        with Client(manager) as client:
            client.claim("job-1", "worker-7")

    def test_fails(creditpiggy, manager):
        run_job(manager, "job-2", on="worker-7")
        assert creditpiggy.slots == {}

    def test_after_those(creditpiggy, manager):
        assert creditpiggy.journal == []

    @pytest.mark.creditpiggy(mode=0o666)
    def test_of_its_own(creditpiggy, manager):
        pass
"""


@pytest.mark.parametrize("options", [[], ["--cp-path=s"]])
def test_one_endpoint_for_the_session(run, options):
    result = run(ENDPOINT, *options)
    result.assert_outcomes(passed=8, failed=1, errors=2)
    result.stdout.fnmatch_lines_random(
        [
            "@pytest.mark.creditpiggy: mode is the same for all tests of creditpiggy_endpoint: set it by cp_mode or *",
            "*claim,slot=job-1,machine=worker-7   refused: *",
            "last commands of 3 received:",
        ]
    )


def test_a_scenario_in_a_test(run):
    result = run("""
        from manager import run_job

        def test_it(creditpiggy):
            with creditpiggy.replay("smoke"):
                run_job(creditpiggy.endpoint, "job-1", on="worker-7")
            creditpiggy.assert_claimed("job-1", machine="worker-7")
    """)
    result.assert_outcomes(passed=1)


def test_a_unittest_case_can_use_the_fixture(run):
    result = run("""
        import unittest
        import pytest
        from manager import run_job

        class TestIt(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def _creditpiggy(self, creditpiggy):
                self.creditpiggy = creditpiggy

            def test_it(self):
                run_job(self.creditpiggy.endpoint, "job-1", on="worker-7")
                self.creditpiggy.assert_claimed("job-1")

            def test_refused(self):
                run_job(self.creditpiggy.endpoint, "job-1", on="worker-7")
                run_job(self.creditpiggy.endpoint, "job-1", on="worker-7")
    """)
    result.assert_outcomes(passed=2, errors=1)


def test_a_thread_of_the_fake_that_fails_fails_the_test(run):
    result = run("""
        import threading
        from manager import run_job
        from cpsim.system.threads import on_thread_failure

        def boom(_):
            raise RuntimeError("boom")

        def test_it(creditpiggy):
            creditpiggy.fake.accounts.on_applied = boom
            failed = threading.Event()
            with on_thread_failure(lambda _: failed.set()):
                try:
                    run_job(creditpiggy.endpoint, "job-1", on="worker-7")
                except OSError:
                    pass
                assert failed.wait(60)
    """)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ThreadFailed: thread cpsim-daemon failed: RuntimeError: boom"])
