"""The pytest plugin: fixtures `creditpiggy`, `creditpiggy_async`, `creditpiggy_factory` and `creditpiggy_server`.

It is loaded in every test run where cpsim is installed, so it imports next to nothing until a test asks for it. The
marker `creditpiggy`, the options `--cp-...` and the settings `cp_...` configure the fake; the closest wins.
"""

from __future__ import annotations

from contextlib import ExitStack
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import pytest

from cpsim.clock import real_dates  # also reads the wall time, before a test can change it
from cpsim.system.checks import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from cpsim.testing import AsyncCreditPiggy, CreditPiggy, CreditPiggyServer
    from cpsim.testing.project import ProjectFixture

MARKER: Final = (
    "creditpiggy(profile='documented', quirks=[], faults=[], flush_interval_s=0.0, allow_refusals=False, "
    "environment=False): the settings of this test's CreditPiggy, and whether its addresses are in CREDITPIGGY_... "
    "environment variables."
)
SETTINGS: Final = {
    "profile": "'documented' or 'deployed'",
    "quirks": "a list of names; `cpsim quirks` shows them",
    "faults": "a list of faults; `cpsim faults` shows them",
    "flush_interval_s": "seconds from 0 to 86,400",
    "allow_refusals": "True or False",
    "environment": "True or False",
}
FAILED: Final = pytest.StashKey[bool]()
USED: Final = pytest.StashKey["list[ProjectFixture]"]()


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
    group.addoption(
        "--cp-environment", action="store_true", default=None, help="put its addresses into environment variables"
    )
    parser.addini("cp_profile", "the profile: documented or deployed", default=None)
    parser.addini("cp_quirks", "quirks besides, one a line", type="linelist")
    parser.addini("cp_faults", "faults from the start, one a line", type="linelist")
    parser.addini("cp_flush_interval_s", "seconds that the daemon keeps commands", default=None)
    parser.addini(
        "cp_allow_refusals", "whether refused and malformed commands fail no test", type="bool", default=False
    )
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
        "flush_interval_s": _number(option("cp_flush_interval") or setting("cp_flush_interval_s")),
        "allow_refusals": option("cp_allow_refusals") or setting("cp_allow_refusals"),
        "environment": option("cp_environment") or setting("cp_environment"),
    }
    return {name: value for name, value in given.items() if value not in (None, [], False)}


def _number(text: str | None) -> object:
    """The number that a text is, or the text."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _settings(item: pytest.Item) -> dict[str, Any]:
    """What a test's markers say, the closest first, and else what is set for all; a wrong marker fails the test."""
    settings = _set_for_all(item.config)
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
        if not _admits(name, value):
            return f"{name} is {value!r}, and must be {SETTINGS[name]}"
    return _unknown(settings) if settings.keys() & {"profile", "quirks", "faults"} else None


def _admits(name: str, value: object) -> bool:
    """Whether a setting can be such a value."""
    match name:
        case "profile":
            return isinstance(value, str)
        case "quirks":
            return isinstance(value, list | tuple | set | frozenset) and all(isinstance(each, str) for each in value)
        case "faults":
            return isinstance(value, list | tuple)
        case "flush_interval_s":
            return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LONGEST_S
        case _:
            return isinstance(value, bool)


def _unknown(settings: Mapping[str, Any]) -> str | None:
    """The message for an unknown profile, quirk or fault, or None."""
    from cpsim.errors import CpsimError
    from cpsim.faults.plan import FaultPlan
    from cpsim.faults.spec import Fault
    from cpsim.quirks import chosen

    faults = settings.get("faults", ())
    if not all(isinstance(fault, str | Fault) for fault in faults):
        return f"faults is {faults!r}, and must be {SETTINGS['faults']}"
    try:
        chosen(settings.get("profile", "documented"), settings.get("quirks", ()))
        FaultPlan(faults)
    except CpsimError as problem:
        return str(problem)
    return None


# Fixtures


@pytest.fixture
def creditpiggy(creditpiggy_factory: Callable[..., CreditPiggy]) -> CreditPiggy:
    """A CreditPiggy of this test's own, empty: `.endpoint` is where to point a job manager.

    A refused or malformed command fails the test at its end; `@pytest.mark.creditpiggy(allow_refusals=True)` allows it.
    """
    return creditpiggy_factory()


@pytest.fixture
def creditpiggy_async(creditpiggy_factory: Callable[..., AsyncCreditPiggy]) -> AsyncCreditPiggy:
    """The same for an asynchronous test: what waits is awaited."""
    with real_dates():
        from cpsim.testing import AsyncCreditPiggy

    return creditpiggy_factory(AsyncCreditPiggy)


@pytest.fixture
def creditpiggy_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., ProjectFixture]]:
    """Makes one more CreditPiggy at each call, which ends with the test.

    It takes what `cpsim.testing.CreditPiggy` takes, in the place of what marker and options say. With `beside=another`
    it is one more site of that one's project.
    """
    with real_dates():
        from cpsim.testing import CreditPiggy

    settings = _settings(request.node)
    environment = settings.pop("environment", False)
    request.node.stash[FAILED] = False  # it may be run again
    used: list[ProjectFixture] = request.node.stash.setdefault(USED, [])
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())

        def make(kind: type[ProjectFixture] = CreditPiggy, **options: Any) -> ProjectFixture:  # noqa: ANN401
            shared = {"profile", "quirks"} if options.keys() & {"beside", "fake"} else set()  # as that one has them
            made = kind(**({name: value for name, value in settings.items() if name not in shared} | options))
            made.start()
            stack.callback(made.stop)
            used.append(made)
            if environment and len(used) == 1:
                for name, value in made.environment.items():
                    patch.setenv(name, value)
            return made

        yield make
    complaints = [complaint for made in used if made.is_original and (complaint := made.complaint())]
    if complaints and not request.node.stash[FAILED]:
        hint = "@pytest.mark.creditpiggy(allow_refusals=True) lets such a test pass"
        pytest.fail("\n".join([*complaints, f"({hint})"]), pytrace=False)


@pytest.fixture(scope="session")
def creditpiggy_server(request: pytest.FixtureRequest) -> Iterator[CreditPiggyServer]:
    """One account server for the session; `with creditpiggy_server.project() as creditpiggy:` isolates a test."""
    with real_dates():
        from cpsim.testing import CreditPiggyServer

    settings = _set_for_all(request.config)
    settings.pop("environment", False)
    with CreditPiggyServer(**settings) as server:
        yield server


# Setting up, and failing


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test with an invalid marker, before its setup."""
    if item.get_closest_marker("creditpiggy") is not None:
        _settings(item)


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
