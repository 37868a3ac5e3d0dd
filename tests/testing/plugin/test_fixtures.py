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


def test_a_refused_command_fails_its_test(run):
    result = run(REFUSED.format(marker=""))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*= FAILURES =*",
            "*_ test_it _*",
            "1 refused by the accounts:",
            "*claim,slot=job-1,machine=worker-7   refused: slot 'job-1' was never allocated",
            "*allow_refusals=True*",
            "*- CreditPiggy -*",
        ]
    )
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_a_malformed_command_fails_its_test(run):
    result = run("""
        import socket

        def test_it(creditpiggy):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(creditpiggy.endpoint)
                sock.sendall(b"claim,slot=job-1")
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(2) == b"ER"
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*'claim,slot=job-1'   malformed"])


def test_what_is_refused_in_the_last_moment_counts(run):
    result = run("""
        import pytest
        from cpdaemon import Client

        @pytest.mark.creditpiggy(flush_interval_s=3600)
        def test_it(creditpiggy):
            with Client(creditpiggy.endpoint) as client:
                client.claim("job-1", "worker-7")
    """)
    result.assert_outcomes(failed=1)


def test_what_is_refused_after_the_test_is_an_error_of_its_teardown(run):
    result = run("""
        import pytest
        from cpdaemon import Client

        @pytest.fixture
        def client(creditpiggy):
            with Client(creditpiggy.endpoint) as client:
                yield client
                client.claim("job-1", "worker-7")

        def test_it(client):
            pass

        @pytest.mark.creditpiggy(faults=["server.late=3600:kind=bulk"])  # which holds it until the daemon stops
        def test_held(creditpiggy):
            with Client(creditpiggy.endpoint) as client:
                client.claim("job-1", "worker-7")
    """)
    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_it*", "1 refused by the accounts:"])
    result.stdout.fnmatch_lines(["*job-1' was never allocated*"] * 2)


EXPECTED = """
    import unittest
    import pytest
    from cpdaemon import Client

    def claim(creditpiggy):
        with Client(creditpiggy.endpoint) as client:
            client.claim("job-1", "worker-7")

    @pytest.mark.xfail(strict=True)
    def test_strict(creditpiggy):
        claim(creditpiggy)

    @pytest.mark.xfail(strict=True, raises=AssertionError)
    def test_raises(creditpiggy):
        claim(creditpiggy)

    def test_imperative(creditpiggy, request):
        request.applymarker(pytest.mark.xfail(strict=True))
        claim(creditpiggy)

    @pytest.mark.xfail(strict=True, raises=ValueError)
    def test_another_failure(creditpiggy):
        claim(creditpiggy)

    @pytest.mark.xfail(strict=True)
    def test_passes(creditpiggy):
        pass

    def test_skips(creditpiggy):
        claim(creditpiggy)
        pytest.skip("after all")

    class TestIt(unittest.TestCase):
        @pytest.fixture(autouse=True)
        def _creditpiggy(self, creditpiggy):
            self.creditpiggy = creditpiggy

        def test_fails(self):
            claim(self.creditpiggy)
            self.assertEqual(1, 2)

        def test_skips(self):
            claim(self.creditpiggy)
            self.skipTest("after all")

        @pytest.mark.xfail(strict=True)
        def test_strict(self):
            claim(self.creditpiggy)
"""


def test_a_refusal_is_the_failure_that_is_expected(run):
    result = run(EXPECTED, "-rA")
    result.assert_outcomes(xfailed=4, failed=3, skipped=2)
    result.stdout.fnmatch_lines_random(
        [
            "FAILED test_it.py::test_another_failure*",
            "FAILED test_it.py::test_passes*",
            "FAILED test_it.py::TestIt::test_fails - AssertionError: 1 != 2",
        ]
    )


RERUNS = """
    import pytest
    from _pytest.runner import runtestprotocol

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(item, nextitem):
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for attempt in range(2):
            item._initrequest()
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            if not any(report.failed for report in reports):
                break
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        return True
"""


def test_what_is_run_again_begins_anew(run, project):
    project.makeconftest(RERUNS)  # as plugins do it that run what has failed again
    result = run("""
        from manager import run_job
        attempts = []

        def test_it(creditpiggy):
            attempts.append(creditpiggy)
            run_job(creditpiggy.endpoint, "job-1", on="worker-7")
            if len(attempts) == 1:
                run_job(creditpiggy.endpoint, "job-1", on="worker-7")

        def test_twice(creditpiggy):
            run_job(creditpiggy.endpoint, "job-1", on="worker-7")
            run_job(creditpiggy.endpoint, "job-1", on="worker-7")

        def test_attempts():
            assert len(attempts) == 2
    """)
    result.assert_outcomes(passed=2, failed=1)


UNFIRED = """
    import pytest
    from manager import run_job

    @pytest.mark.creditpiggy(faults=["hang:slot=jbo-*"{allow_one}]{allow})
    def test_marked(creditpiggy):
        run_job(creditpiggy.endpoint, "job-1", on="worker-7")

    def test_context(creditpiggy):
        with creditpiggy.faults.lose_reply(kind="claim", nth=2):
            run_job(creditpiggy.endpoint, "job-1", on="worker-7")
        creditpiggy.faults.add("down:from=3600")

    def test_fires(creditpiggy):
        creditpiggy.faults.add("late=0:kind=claim", "late=0:kind=claim,probability=1e-9")
        run_job(creditpiggy.endpoint, "job-1", on="worker-7")

    def test_forgotten(creditpiggy):
        creditpiggy.faults.add("hang:slot=no")
        creditpiggy.reset()
"""


def test_a_fault_that_never_fired_fails_its_test(run):
    result = run(UNFIRED.format(allow="", allow_one=""))
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        [
            "faults that never fired: 1:",
            "  *hang:slot=jbo-[*]: no command has met it",
            "(allow_unfired=True lets such a test pass)",
            "faults that never fired: 2:",
            "  *lose-reply:kind=claim,nth=2: 1 commands have met it, and it fires from number 2 on",
            "  *down:from=3600: its time has not come",
        ]
    )


def test_a_fault_may_not_fire(run, project):
    one = UNFIRED.format(allow=", allow_unfired=['hang:slot=jbo-*']", allow_one="")
    run(one).assert_outcomes(passed=3, failed=1)
    two = UNFIRED.format(allow=", allow_unfired=['hang:slot=jbo-*']", allow_one=", 'error:slot=no'")
    run(two).assert_outcomes(passed=2, failed=2)
    both = UNFIRED.format(allow=", allow_unfired=True", allow_one=", 'error:slot=no'")
    run(both).assert_outcomes(passed=3, failed=1)
    run(UNFIRED.format(allow="", allow_one=""), "--cp-allow-unfired").assert_outcomes(passed=4)
    project.makeini("[pytest]\ncp_allow_unfired = true\ncp_faults = error:slot=no\n")
    run(UNFIRED.format(allow="", allow_one="")).assert_outcomes(passed=4)


def test_a_fault_of_all_tests_may_not_fire(run):
    result = run(
        """
        def test_it(creditpiggy, creditpiggy_server):
            with creditpiggy_server.project():
                pass

        def test_at_an_endpoint(creditpiggy, creditpiggy_endpoint):
            assert list(creditpiggy.faults)

        def test_its_own(creditpiggy, creditpiggy_endpoint):
            creditpiggy.faults.add("error:slot=mine")
        """,
        "--cp-fault=error:slot=no",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["faults that never fired: 1:", "  daemon.error:slot=mine: no command has met it"])


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
    run(REFUSED.format(marker=marker), "--cp-allow-refusals").assert_outcomes(failed=1)


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
    result.assert_outcomes(passed=2, failed=1)
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

    @pytest.mark.creditpiggy(quirks=["reclaim"], faults=["late=0"])
    def test_settings(creditpiggy, creditpiggy_factory, manager):
        assert creditpiggy.fake.accounts.quirks == {"reclaim"}
        assert [fault.action for fault in creditpiggy.faults] == ["late"]
        assert creditpiggy_factory(faults=[]).endpoint != creditpiggy.endpoint == manager
        run_job(manager, "job-1", on="worker-7")

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
    result.assert_outcomes(passed=7, failed=2, errors=1)
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
    result.assert_outcomes(passed=1, failed=1)


def test_a_thread_of_the_fake_that_fails_fails_the_test(run):
    result = run("""
        import threading
        import pytest
        from manager import run_job
        from cpsim.server.service import AccountServer
        from cpsim.system.threads import on_thread_failure

        def boom(*_):
            raise RuntimeError("boom")

        @pytest.fixture
        def broken(monkeypatch):
            monkeypatch.setattr(AccountServer, "apply", boom)

        def test_it(broken, creditpiggy):
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
