"""Beside others: event loops, workers, forks, and programs of their own."""

import subprocess
import sys

ASYNC_MANAGER = """
import asyncio

async def run_job(endpoint, job, on):
    for frame in (f"alloc,slot={job},credits=5", f"claim,slot={job},machine={on}"):
        reader, writer = await asyncio.open_unix_connection(endpoint)
        writer.write(frame.encode() + b"\\n")
        assert await reader.read() == b"OK"
        writer.close()
        await writer.wait_closed()
"""

ASYNC_TESTS = """
    import asyncio
    import pytest
    from async_manager import run_job
    from cpsim.testing import AsyncCreditPiggy

    @pytest.fixture
    async def job(creditpiggy_async):
        return asyncio.create_task(run_job(creditpiggy_async.endpoint, "job-1", on="worker-7"))

    async def test_it(creditpiggy_async, job):
        assert (await creditpiggy_async.wait_for_claim("job-1")).granted == 5
        await job
        await creditpiggy_async.wait_until_idle()
        creditpiggy_async.assert_claimed("job-1", machine="worker-7")

    async def test_sync_fixture(creditpiggy):
        await run_job(creditpiggy.endpoint, "job-1", on="worker-7")
        creditpiggy.assert_claimed("job-1", machine="worker-7")

    async def test_context():
        async with AsyncCreditPiggy() as creditpiggy:
            await run_job(creditpiggy.endpoint, "job-1", on="worker-7")
            creditpiggy.assert_claimed("job-1", machine="worker-7")

    async def test_refused(creditpiggy_async):
        await run_job(creditpiggy_async.endpoint, "job-1", on="worker-7")
        await run_job(creditpiggy_async.endpoint, "job-1", on="worker-7")
"""


def test_pytest_asyncio(run, project):
    project.makepyfile(async_manager=ASYNC_MANAGER)
    project.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    run(ASYNC_TESTS, plugins=["cpsim", "asyncio"], apart=True).assert_outcomes(passed=3, failed=1)


def test_an_event_loop_without_a_plugin(run, project):
    project.makepyfile(async_manager=ASYNC_MANAGER)
    result = run("""
        import asyncio
        from async_manager import run_job

        def test_it(creditpiggy_async):
            async def test():
                job = asyncio.create_task(run_job(creditpiggy_async.endpoint, "job-1", on="worker-7"))
                await creditpiggy_async.wait_for_claim("job-1")
                await job

            asyncio.run(test())
            creditpiggy_async.assert_claimed("job-1", machine="worker-7")
    """)
    result.assert_outcomes(passed=1)


def test_xdist(run):
    result = run(
        """
        import os
        import pytest
        from cpdaemon import Client
        from manager import run_job

        @pytest.mark.parametrize("number", range(20))
        def test_it(creditpiggy, creditpiggy_server, number):
            assert os.environ["PYTEST_XDIST_WORKER"]
            run_job(creditpiggy.endpoint, "job-1", on=f"worker-{number}")
            creditpiggy.assert_claimed("job-1", machine=f"worker-{number}")
            with creditpiggy_server.project() as project:
                run_job(project.endpoint, "job-1", on=f"worker-{number}")
                project.assert_claimed("job-1", machine=f"worker-{number}")

        def test_fails(creditpiggy):
            run_job(creditpiggy.endpoint, "job-1", on="worker-7")
            creditpiggy.assert_claimed("job-1", machine="worker-8")

        def test_refused(creditpiggy):
            with Client(creditpiggy.endpoint) as client:
                client.claim("job-1", "worker-7")

        @pytest.mark.creditpiggy(quirks=["reclam"])
        def test_misuse(creditpiggy):
            pass
    """,
        "-n2",
        apart=True,
        plugins=["cpsim", "xdist"],
    )
    result.assert_outcomes(passed=20, failed=2, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*- CreditPiggy -*",
            "E*machine: expected 'worker-8', is 'worker-7'",
            "*claim,slot=job-1,machine=worker-7   refused: slot 'job-1' was never allocated",
            "*no quirk 'reclam'; there are *",
        ]
    )
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


FORK = """
    import multiprocessing
    import os
    import warnings
    import pytest
    from manager import run_job

    pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

    def test_fork(creditpiggy, creditpiggy_server):
        pid = os.fork()
        if pid == 0:
            run_job(creditpiggy.endpoint, "job-1", on="worker-7")
            creditpiggy.stop()
            creditpiggy_server.stop()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        run_job(creditpiggy.endpoint, "job-2", on="worker-7")
        creditpiggy.assert_settled_once("job-1", "job-2")
        with creditpiggy_server.project() as project:
            run_job(project.endpoint, "job-1", on="worker-7")

    def test_multiprocessing(creditpiggy):
        workers = [
            multiprocessing.get_context(method).Process(
                target=run_job, args=(creditpiggy.endpoint, f"job-{method}", "worker-7")
            )
            for method in ("fork", "spawn")
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        creditpiggy.assert_settled_once("job-fork", "job-spawn")

    def test_afterwards(creditpiggy):
        run_job(creditpiggy.endpoint, "job-1", on="worker-7")
        creditpiggy.assert_claimed("job-1")
"""


def test_forks(run):
    result = run(FORK, "-s", "--tb=native", apart=True)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*3 passed*"])


def test_unittest_without_pytest(project):
    project.makepyfile(
        test_it="""
        import unittest
        from cpsim.testing import CreditPiggy
        from manager import run_job

        class TestIt(unittest.TestCase):
            def test_with(self):
                with CreditPiggy() as creditpiggy:
                    run_job(creditpiggy.endpoint, "job-1", on="worker-7")
                    creditpiggy.assert_claimed("job-1", machine="worker-7")

            def setUp(self):
                self.creditpiggy = self.enterContext(CreditPiggy())

            def test_set_up(self):
                run_job(self.creditpiggy.endpoint, "job-1", on="worker-7")
                self.creditpiggy.assert_claimed("job-1", machine="worker-7")

            def test_fails(self):
                run_job(self.creditpiggy.endpoint, "job-1", on="worker-7")
                self.creditpiggy.assert_claimed("job-1", machine="worker-8")

            def test_refused(self):
                run_job(self.creditpiggy.endpoint, "job-1", on="worker-7")
                run_job(self.creditpiggy.endpoint, "job-1", on="worker-7")
        """
    )
    command = [sys.executable, "-m", "unittest", "test_it"]
    result = subprocess.run(command, cwd=project.path, capture_output=True, text=True, check=False)
    assert "Ran 4 tests" in result.stderr
    assert "FAILED (failures=2)" in result.stderr
    assert "machine: expected 'worker-8', is 'worker-7'" in result.stderr
    assert "slot 'job-1' was already allocated" in result.stderr


PROGRAM = """
import os, socket
for frame in (b"alloc,slot=job-1", b"claim,slot=job-1,machine=worker-7"):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.environ["CREDITPIGGY_ENDPOINT"])
        sock.sendall(frame)
        assert sock.recv(2) == b"OK"
"""


def test_a_program_of_its_own(run, project):
    (project.path / "program.py").write_text(PROGRAM, encoding="utf-8")
    result = run("""
        import subprocess
        import sys

        def run(creditpiggy):
            subprocess.run([sys.executable, "program.py"], env=creditpiggy.environment, check=True)
            creditpiggy.assert_claimed("job-1", machine="worker-7")

        def test_it(creditpiggy):
            run(creditpiggy)

        def test_at_a_server(creditpiggy_server):
            with creditpiggy_server.project() as project:
                run(project)
    """)
    result.assert_outcomes(passed=2)
