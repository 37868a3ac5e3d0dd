"""The pytest plugin: fixtures `creditpiggy`, `creditpiggy_async`, `creditpiggy_factory`, and others for a session.

It is loaded in every test run where cpsim is installed, so it imports next to nothing until a test asks for it. The
marker `creditpiggy`, the fixture `creditpiggy_settings`, the options `--cp-...` and the settings `cp_...` configure the
fake; the closest wins, in this order.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from difflib import get_close_matches
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import pytest

from cpsim.clock import real_dates  # also reads the wall time, before a test can change it

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from cpsim.testing import AsyncCreditPiggy, CreditPiggy, CreditPiggyServer
    from cpsim.testing.project import ProjectFixture

MARKER: Final = (
    "creditpiggy(profile='documented', quirks=[], faults=[], flush_interval_s=0.0, allow_refusals=False, "
    "allow_unfired=False, path=None, port=None, mode=None, environment=False): the settings of this test's "
    "CreditPiggy, and whether its addresses are in CREDITPIGGY_... environment variables."
)
ADDRESS: Final = ("path", "port", "mode")
ENDPOINT: Final = pytest.StashKey["dict[str, Any]"]()
"""The settings of the session's endpoint, while it is there."""
FAILED: Final = pytest.StashKey[bool]()
LONGEST_FLUSH_S: Final = 86_400
"""As `cpsim.system.checks.LONGEST_S`, whose imports every run of pytest would wait for."""
NUMBERS: Final = {
    "flush_interval_s": ((int, float), 0, LONGEST_FLUSH_S),
    "port": ((int,), 1, 65_535),
    "mode": ((int,), 0, 0o777),
}
"""The types of each number, the least and the most."""
USED: Final = pytest.StashKey["list[ProjectFixture]"]()


class _Setting(NamedTuple):
    """What a setting must be, and whether it is."""

    must_be: str
    admits: Callable[[Any], bool]


def _is_number(value: object, types: tuple[type, ...], least: float, most: float) -> bool:
    return type(value) in types and least <= cast("float", value) <= most


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _are_names(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(isinstance(each, str) for each in value)


SETTINGS: Final = {
    "profile": _Setting("'documented' or 'deployed'", lambda value: isinstance(value, str)),
    "quirks": _Setting("a list of names; `cpsim quirks` shows them", _are_names),
    "faults": _Setting("a list of faults; `cpsim faults` shows them", lambda value: isinstance(value, list | tuple)),
    "flush_interval_s": _Setting(
        "seconds from 0 to 86,400", lambda value: _is_number(value, (int, float), 0, LONGEST_FLUSH_S)
    ),
    "allow_refusals": _Setting("True or False", _is_flag),
    "allow_unfired": _Setting(
        "True, False, or a list of faults that need not fire", lambda value: isinstance(value, bool | list | tuple)
    ),
    "path": _Setting(
        "the path of a UNIX socket",
        lambda value: value is None or (isinstance(value, str | PathLike) and str(value) > ""),
    ),
    "port": _Setting("a number from 1 to 65,535", lambda value: value is None or _is_number(value, (int,), 1, 65_535)),
    "mode": _Setting(
        "the permissions of the socket, up to 0o777, such as 0o666 (0666 in a file or an option)",
        lambda value: value is None or _is_number(value, (int,), 0, 0o777),
    ),
    "environment": _Setting("True or False", _is_flag),
}


# Options and settings


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options `--cp-...` and settings `cp_...`."""
    group = parser.getgroup("creditpiggy", "CreditPiggy (cpsim)")
    group.addoption("--cp-profile", metavar="NAME", help="its profile: documented or deployed")
    group.addoption("--cp-quirk", action="append", metavar="NAME", help="a quirk besides; again for more")
    group.addoption("--cp-fault", action="append", metavar="FAULT", help="a fault from the start; again for more")
    group.addoption("--cp-flush-interval", metavar="SECONDS", help="how long the daemon keeps commands")
    group.addoption(
        "--cp-allow-refusals", action="store_true", default=None, help="refused and malformed commands fail no test"
    )
    group.addoption("--cp-allow-unfired", action="store_true", default=None, help="faults that never fire fail no test")
    group.addoption(
        "--cp-environment", action="store_true", default=None, help="put its addresses into environment variables"
    )
    group.addoption("--cp-path", metavar="PATH", help="the path of the daemon's UNIX socket")
    group.addoption("--cp-port", metavar="PORT", help="the daemon's TCP port")
    group.addoption("--cp-mode", metavar="MODE", help="the permissions of the socket: 666 lets all users connect")
    parser.addini("cp_profile", "the profile: documented or deployed", default=None)
    parser.addini("cp_quirks", "quirks besides, one a line", type="linelist")
    parser.addini("cp_faults", "faults from the start, one a line", type="linelist")
    parser.addini("cp_flush_interval_s", "seconds that the daemon keeps commands", default=None)
    parser.addini(
        "cp_allow_refusals", "whether refused and malformed commands fail no test", type="bool", default=False
    )
    parser.addini("cp_allow_unfired", "whether faults that never fire fail no test", type="bool", default=False)
    parser.addini("cp_path", "the path of the daemon's UNIX socket", default=None)
    parser.addini("cp_port", "the daemon's TCP port", default=None)
    parser.addini("cp_mode", "the permissions of the socket, in octal digits", default=None)
    parser.addini("cp_environment", "whether its addresses are in environment variables", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and check what is set for all tests."""
    config.addinivalue_line("markers", MARKER)
    if mistake := _mistake(_set_for_all(config)):
        raise pytest.UsageError(f"CreditPiggy: {mistake}")


def _set_for_all(config: pytest.Config) -> dict[str, Any]:
    """What options say, or else the configuration file; nothing of what is left as it is."""
    option, setting = config.getoption, config.getini
    given = {
        "profile": option("cp_profile") or setting("cp_profile"),
        "quirks": option("cp_quirk") or setting("cp_quirks"),
        "faults": option("cp_fault") or setting("cp_faults"),
        "flush_interval_s": _number(option("cp_flush_interval") or setting("cp_flush_interval_s"), float),
        "allow_refusals": option("cp_allow_refusals") or setting("cp_allow_refusals"),
        "allow_unfired": option("cp_allow_unfired") or setting("cp_allow_unfired"),
        "path": option("cp_path") or (setting("cp_path") and str(config.rootpath / setting("cp_path"))),
        "port": _number(option("cp_port") or setting("cp_port"), int),
        "mode": _number(option("cp_mode") or setting("cp_mode"), partial(int, base=8)),
        "environment": option("cp_environment") or setting("cp_environment"),
    }
    return {name: value for name, value in given.items() if value not in (None, [], False)}


def _number(text: str | None, read: Callable[[str], float]) -> object:
    """The number that a text is, or the text."""
    try:
        return None if text is None else read(text)
    except ValueError:
        return text


def _set_for_session(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What is set for all tests, by the fixture `creditpiggy_settings` or else by options and the configuration."""
    settings: dict[str, Any] = request.getfixturevalue("creditpiggy_settings")
    if mistake := _mistake(settings):
        pytest.fail(f"creditpiggy_settings: {mistake}", pytrace=False)
    common = _set_for_all(request.config) | settings
    return {"allow_unfired": common.get("faults", ())} | common  # no test has set those


def _marked(item: pytest.Item) -> dict[str, Any]:
    """What a test's markers say, the closest first; a wrong marker fails the test."""
    settings: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers("creditpiggy"))):
        mistake = f"takes keywords only, not {marker.args[0]!r}" if marker.args else _mistake(marker.kwargs)
        if mistake:
            pytest.fail(f"@pytest.mark.creditpiggy: {mistake}", pytrace=False)
        settings |= marker.kwargs
    return settings


def _mistake(settings: Mapping[str, Any]) -> str | None:
    """The message for invalid settings, or None."""
    for name, value in settings.items():
        if name not in SETTINGS:
            close = get_close_matches(name, SETTINGS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            return f"has no {name}; it has {', '.join(SETTINGS)}{hint}"
        if not SETTINGS[name].admits(value):
            return f"{name} is {value!r}, and must be {SETTINGS[name].must_be}"
    return _unknown(settings) if settings.keys() & {"profile", "quirks", "faults", "allow_unfired"} else None


def _unknown(settings: Mapping[str, Any]) -> str | None:
    """The message for an unknown profile, quirk or fault, or None."""
    from cpsim.errors import CpsimError
    from cpsim.faults.plan import FaultPlan
    from cpsim.faults.spec import Fault
    from cpsim.quirks import chosen

    lists = {name: settings.get(name, ()) for name in ("faults", "allow_unfired")}
    for name, faults in lists.items():
        if not isinstance(faults, bool) and not all(isinstance(fault, str | Fault) for fault in faults):
            return f"{name} is {faults!r}, and must be {SETTINGS[name].must_be}"
    try:
        chosen(settings.get("profile", "documented"), settings.get("quirks", ()))
        for faults in lists.values():
            FaultPlan(() if isinstance(faults, bool) else faults)
    except CpsimError as problem:
        return str(problem)
    return None


# Fixtures


@pytest.fixture(scope="session")
def creditpiggy_settings() -> dict[str, Any]:
    """What is set for all tests, as the marker takes it: override it to compute a path, or to set one for a folder."""
    return {}


@pytest.fixture
def creditpiggy(creditpiggy_factory: Callable[..., CreditPiggy]) -> CreditPiggy:
    """A CreditPiggy of this test's own, empty: `.endpoint` is where to point a job manager.

    A refused or malformed command fails the test at its end; `@pytest.mark.creditpiggy(allow_refusals=True)` allows it.
    """
    return creditpiggy_factory()


@pytest.fixture
def creditpiggy_async(creditpiggy_factory: Callable[..., AsyncCreditPiggy]) -> AsyncCreditPiggy:
    """The same for an asynchronous test: the four `wait_...` are awaited, and nothing else."""
    with real_dates():
        from cpsim.testing import AsyncCreditPiggy

    return creditpiggy_factory(AsyncCreditPiggy)


@pytest.fixture
def creditpiggy_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., ProjectFixture]]:
    """Makes one more CreditPiggy at each call, which ends with the test.

    It takes what `cpsim.testing.CreditPiggy` takes, in the place of what marker and options say. With `beside=another`
    it is one more site of that one's project. Path and port that are set are those of the first.
    """
    with real_dates():
        from cpsim.testing import CreditPiggy

    first, others = _first_and_others(request)
    environment = first.pop("environment", False)
    request.node.stash[FAILED] = False  # it may be run again
    used: list[ProjectFixture] = request.node.stash.setdefault(USED, [])
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())

        def make(kind: type[ProjectFixture] = CreditPiggy, **options: Any) -> ProjectFixture:  # noqa: ANN401
            shared = {"profile", "quirks"} if options.keys() & {"beside", "fake"} else set()  # as that one has them
            settings = others if used or options.keys() & {"beside", "fake", *ADDRESS} else first
            made = kind(**({name: value for name, value in settings.items() if name not in shared} | options))
            _start(made)
            stack.callback(made.stop)
            used.append(made)
            if environment and len(used) == 1:
                for name, value in made.environment.items():
                    patch.setenv(name, value)
            return made

        yield make
    if not request.node.stash[FAILED]:
        _complain(used)


_Failed: Any = pytest.fail.Exception  # pytest has no other name for it


class Complaint(_Failed, AssertionError):  # type: ignore[misc]
    """The end of a test in which commands were refused, or faults never fired."""

    __module__ = "builtins"  # pytest shows its name alone, as it does its own


def _complain(used: list[ProjectFixture]) -> None:
    """Fail for what was refused, and for faults that never fired."""
    if complaints := [complaint for made in used if made.is_original and (complaint := made.complaint())]:
        raise Complaint("\n".join(complaints), pytrace=False)  # type: ignore[call-arg]


def _first_and_others(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a test's first CreditPiggy, which may be at the session's endpoint, and those of all others."""
    marked = _marked(request.node)
    first = _set_for_session(request) | marked
    others = {name: value for name, value in first.items() if name not in {"path", "port", "environment"}}
    taken: dict[str, Any] = request.session.stash.get(ENDPOINT, {})
    is_taken = any(taken.get(name) == first[name] is not None for name in ("path", "port") if name in first)
    if "creditpiggy_endpoint" not in request.fixturenames and not is_taken:
        return first, others
    for name in ADDRESS:
        first.pop(name, None)
        if name in marked:
            where = f"set it by cp_{name} or creditpiggy_settings"
            text = f"{name} is the same for all tests of creditpiggy_endpoint: {where}"
            pytest.fail(f"@pytest.mark.creditpiggy: {text}", pytrace=False)
    return first | {"at": request.getfixturevalue("creditpiggy_endpoint")}, others


def _start(made: ProjectFixture) -> None:
    """Start one, or fail without a traceback if its addresses cannot be had."""
    try:
        made.start()
    except OSError as error:
        raise pytest.fail.Exception(f"CreditPiggy: {error.strerror or error}", pytrace=False) from None


@pytest.fixture(scope="session")
def creditpiggy_endpoint(request: pytest.FixtureRequest) -> Iterator[CreditPiggy]:
    """A CreditPiggy for the session, for a job manager that is started once: at the same addresses for all tests.

    In a test that uses it, itself or through another fixture, `creditpiggy` is there, and begins its accounts anew.
    """
    with real_dates():
        from cpsim.testing import CreditPiggy

    settings = _set_for_session(request)
    settings.pop("environment", False)
    endpoint = CreditPiggy(**settings)
    _start(endpoint)
    request.session.stash[ENDPOINT] = settings
    yield endpoint
    del request.session.stash[ENDPOINT]
    endpoint.stop()


@pytest.fixture(scope="session")
def creditpiggy_server(request: pytest.FixtureRequest) -> Iterator[CreditPiggyServer]:
    """One account server for the session; `with creditpiggy_server.project() as creditpiggy:` isolates a test."""
    with real_dates():
        from cpsim.testing import CreditPiggyServer

    settings = _set_for_session(request)
    for name in ("environment", "path", "port"):
        settings.pop(name, None)
    with CreditPiggyServer(**settings) as server:
        yield server


# Setting up, and failing


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test with an invalid marker, before its setup."""
    if item.get_closest_marker("creditpiggy") is not None:
        _marked(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that would pass, but for what was refused: here it is its own failure, or the expected one."""
    result = yield
    if used := item.stash.get(USED, []):
        from cpsim.system.threads import ThreadFailed

        for made in used:
            made.deliver()
        with suppress(ThreadFailed):  # the teardown raises it
            _complain(used)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add CreditPiggy's report to the report of a failed test."""
    report = yield
    if call.excinfo is not None:
        item.stash[FAILED] = True
    used = item.stash.get(USED, [])
    if report.failed:
        report.sections += [("CreditPiggy", each.report()) for each in used if each.is_original]
    if call.when == "teardown":
        used.clear()
    return report
