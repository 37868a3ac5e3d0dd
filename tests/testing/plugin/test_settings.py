"""Marker, options and configuration: the closest wins, and what cannot be is said without a traceback."""

import pytest
from ports import free_port

QUIRKS = """
    import pytest

    def test_default(creditpiggy):
        assert creditpiggy.fake.accounts.quirks == {default}

    @pytest.mark.creditpiggy(quirks=["reclaim"])
    class TestMarked:
        def test_class(self, creditpiggy):
            assert creditpiggy.fake.accounts.quirks == {{"reclaim"}}

        @pytest.mark.creditpiggy(quirks=["meta-dropped", "float-credits"])
        def test_function(self, creditpiggy):
            assert creditpiggy.fake.accounts.quirks == {{"meta-dropped", "float-credits"}}
"""


def test_the_closest_wins(run, project):
    run(QUIRKS.format(default="set()")).assert_outcomes(passed=3)
    project.makeini("[pytest]\ncp_quirks =\n    expire-live\n    cut-values\n")
    run(QUIRKS.format(default="{'expire-live', 'cut-values'}")).assert_outcomes(passed=3)
    run(QUIRKS.format(default="{'bulk-abort'}"), "--cp-quirk=bulk-abort").assert_outcomes(passed=3)


def test_a_profile(run):
    source = """
        import pytest

        @pytest.mark.creditpiggy(profile="deployed")
        def test_marked(creditpiggy):
            assert len(creditpiggy.fake.accounts.quirks) > 10

        def test_option(creditpiggy):
            assert len(creditpiggy.fake.accounts.quirks) > 10
    """
    run(source, "--cp-profile=deployed").assert_outcomes(passed=2)
    run(source).assert_outcomes(passed=1, failed=1)


def test_faults_and_a_flush_interval(run, project):
    source = """
        import pytest
        from cpdaemon import Client, ReplyLost

        {marker}
        def test_it(creditpiggy):
            with Client(creditpiggy.endpoint) as client:
                client.alloc("job-1")
                with pytest.raises(ReplyLost):
                    client.alloc("job-2")
            assert creditpiggy.pending == 2
            creditpiggy.wait_for_alloc("job-2")
    """
    marked = '@pytest.mark.creditpiggy(faults=["lose-reply:kind=alloc,nth=2"], flush_interval_s=1)'
    run(source.format(marker=marked)).assert_outcomes(passed=1)
    options = ["--cp-fault=lose-reply:kind=alloc,nth=2", "--cp-flush-interval=1"]
    run(source.format(marker=""), *options).assert_outcomes(passed=1)
    project.makeini("[pytest]\ncp_faults = lose-reply:kind=alloc,nth=2\ncp_flush_interval_s = 1\n")
    run(source.format(marker="")).assert_outcomes(passed=1)


ENVIRONMENT = """
    import os
    import subprocess
    import sys
    import pytest

    CHILD = "import os; from cpdaemon import Client; Client(os.environ['CREDITPIGGY_ENDPOINT']).alloc('job-1')"

    {marker}
    def test_it(creditpiggy):
        assert {{name for name in os.environ if name.startswith("CREDITPIGGY_")}} == set(creditpiggy.environment)
        subprocess.run([sys.executable, "-c", CHILD], check=True)
        creditpiggy.assert_outstanding("job-1")

    def test_afterwards():
        assert not any(name.startswith("CREDITPIGGY_") for name in os.environ)
"""


@pytest.mark.parametrize(
    ("marker", "options", "ini"),
    [
        ("@pytest.mark.creditpiggy(environment=True)", [], ""),
        ("", ["--cp-environment"], ""),
        ("", [], "cp_environment = true"),
    ],
)
def test_the_environment_of_programs_in_any_language(run, project, marker, options, ini):
    project.makeini(f"[pytest]\n{ini}\n")
    run(ENVIRONMENT.format(marker=marker), *options).assert_outcomes(passed=2)


def test_the_environment_is_left_alone_unless_asked(run):
    result = run("""
        import os

        def test_it(creditpiggy):
            assert not any(name.startswith("CREDITPIGGY_") for name in os.environ)
    """)
    result.assert_outcomes(passed=1)


MISUSES = [
    ("quirk=['reclaim']", "has no quirk; it has profile, quirks, *did you mean quirks[?]"),
    ("'deployed'", "takes keywords only, not 'deployed'"),
    ("quirks='reclaim'", "quirks is 'reclaim', and must be a list of names; `cpsim quirks` shows them"),
    ("quirks=['reclam']", "no quirk 'reclam'; there are ascii-only*"),
    ("quirks=[['reclaim']]", "quirks is [[][[]'reclaim'[]][]], and must be a list of names; `cpsim quirks` shows them"),
    ("profile='deplyed'", "no profile 'deplyed'; there are documented, deployed"),
    ("profile=None", "profile is None, and must be 'documented' or 'deployed'"),
    ("faults=['hangs']", "fault 'hangs': no action 'hangs'; there are *"),
    ("faults=['hang:nth=0']", "fault 'hang:nth=0': nth is 0, and must be a whole number from 1 up"),
    ("faults=['crash-after-ok']", "fault 'daemon.crash-after-ok' would end the process that runs this fake*"),
    ("faults=[7]", "faults is [[]7[]], and must be a list of faults; `cpsim faults` shows them"),
    ("flush_interval_s=-1", "flush_interval_s is -1, and must be seconds from 0 to 86,400"),
    ("flush_interval_s=float('nan')", "flush_interval_s is nan, and must be seconds from 0 to 86,400"),
    ("flush_interval_s='1'", "flush_interval_s is '1', and must be seconds from 0 to 86,400"),
    ("allow_refusals='no'", "allow_refusals is 'no', and must be True or False"),
    ("flush_interval_s=True", "flush_interval_s is True, and must be seconds from 0 to 86,400"),
    ("path=''", "path is '', and must be the path of a UNIX socket"),
    ("port=0", "port is 0, and must be a number from 1 to 65,535"),
    ("mode=666", "mode is 666, and must be the permissions of the socket, up to 0o777, such as 0o666 *"),
    ("mode='666'", "mode is '666', and must be the permissions of the socket, *"),
]


@pytest.mark.parametrize("fixture", ["creditpiggy", "tmp_path"])
def test_a_marker_that_cannot_be(run, fixture):
    tests = [
        f"@pytest.mark.creditpiggy({arguments})\ndef test_{number}({fixture}): pass\n"
        for number, (arguments, _) in enumerate(MISUSES)
    ]
    good = "@pytest.mark.creditpiggy(quirks={'reclaim'}, flush_interval_s=1)\ndef test_good(creditpiggy): pass\n"
    result = run("\n".join(["import pytest", *tests, good]))
    result.assert_outcomes(passed=1, errors=len(MISUSES))
    for number, (_, message) in enumerate(MISUSES):
        result.stdout.fnmatch_lines([f"*ERROR at setup of test_{number} *", f"@pytest.mark.creditpiggy: {message}"])
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")
    result.stdout.no_fnmatch_line("*During handling*")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cp-quirk=reclam"], "*no quirk 'reclam'; there are *"),
        (["--cp-profile=deplyed"], "*no profile 'deplyed'; there are documented, deployed"),
        (["--cp-fault=hangs"], "*fault 'hangs': no action 'hangs'*"),
        (["--cp-flush-interval=soon"], "*flush_interval_s is 'soon', and must be seconds from 0 to 86,400"),
        (["--cp-port=http"], "*port is 'http', and must be a number from 1 to 65,535"),
        (["--cp-mode=rw"], "*mode is 'rw', and must be the permissions of the socket, *"),
        (["--cp-flush-interval=-1"], "*flush_interval_s is -1.0, and must be seconds from 0 to 86,400"),
    ],
)
def test_an_option_that_cannot_be(run, options, message):
    result = run("def test_it(): pass", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])
    result.stderr.no_fnmatch_line("*Traceback*")


def test_a_setting_that_cannot_be(run, project):
    project.makeini("[pytest]\ncp_profile = deplyed\n")
    result = run("def test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no profile 'deplyed'; there are documented, deployed"])


ADDRESSES = """
    import os
    import pytest
    from pathlib import Path
    {before}
    {marker}
    def test_it(creditpiggy, creditpiggy_factory, creditpiggy_server):
        assert Path(creditpiggy.unix) == Path("s").absolute()
        assert creditpiggy.tcp == "127.0.0.1:{port}"
        others = [creditpiggy_factory(), creditpiggy_factory(beside=creditpiggy)]
        with creditpiggy_server.project() as project:
            for each in (creditpiggy, *others, project):
                assert os.stat(each.unix).st_mode & 0o777 == 0o666
"""
OVERRIDE = """
    @pytest.fixture(scope="session")
    def creditpiggy_settings():
        return {{"path": Path("s"), "port": {port}, "mode": 0o666}}
"""


@pytest.mark.parametrize("how", ["marker", "option", "ini", "fixture"])
def test_where_it_listens(run, project, how):
    port = free_port()
    marker = f"@pytest.mark.creditpiggy(path='s', port={port})" if how == "marker" else ""
    options = [f"--cp-path=s --cp-port={port} --cp-mode=666", "--cp-mode=0666"][how == "marker"].split()
    before = OVERRIDE.format(port=port) if how == "fixture" else ""
    if how == "ini":
        project.makeini(f"[pytest]\ncp_path = s\ncp_port = {port}\ncp_mode = 0666\n")
    result = run(
        ADDRESSES.format(marker=marker, port=port, before=before), *(options if how in {"marker", "option"} else ())
    )
    result.assert_outcomes(passed=1)


def test_addresses_that_cannot_be_had(run):
    result = run("""
        import pytest

        @pytest.fixture(scope="session")
        def creditpiggy_settings():
            return {"prot": 1}

        class TestIt:
            @pytest.fixture(scope="session")
            def creditpiggy_settings(self):
                return {}

            @pytest.mark.creditpiggy(path="no/s")
            def test_path(self, creditpiggy):
                pass

        def test_override(creditpiggy):
            pass
    """)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        [
            "CreditPiggy: cannot listen at *no/s: No such file or directory",
            "creditpiggy_settings: has no prot; it has *; did you mean port?",
        ]
    )


def test_strict_markers_know_it(run):
    source = "import pytest\n@pytest.mark.creditpiggy()\ndef test_it(creditpiggy): pass"
    run(source, "--strict-markers", "--strict-config").assert_outcomes(passed=1)


def test_names_are_listed(run):
    run("", "--markers").stdout.fnmatch_lines(["@pytest.mark.creditpiggy(profile='documented', *"])
    result = run("", "--fixtures")
    names = ("", "_async", "_factory", "_endpoint [[]session scope[]]", "_server", "_settings")
    for name in names:
        result.stdout.fnmatch_lines([f"creditpiggy{name} *"])
    result = run("", "--help")
    result.stdout.fnmatch_lines(["*--cp-profile=NAME*"])
