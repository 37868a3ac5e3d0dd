"""The rules that keep the project simple, checked on its source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path.relative_to(ROOT) for package in ("cpdaemon", "cpsim") for path in ROOT.glob(f"{package}/**/*.py")
)
PURE = [
    *(
        Path("cpdaemon", f"{name}.py")
        for name in ("commands", "wire", "http", "signing", "endpoint", "value", "errors")
    ),
    *(path for path in SOURCES if path.is_relative_to("cpsim/scenario")),
    Path("cpsim/config/tables.py"),
    *(path for path in SOURCES if path.is_relative_to("cpsim/quirks")),
    Path("cpsim/protocol/slots.py"),
    Path("cpsim/server/accounts.py"),
    Path("cpsim/server/ledger.py"),
    *(path for path in SOURCES if path.is_relative_to("cpsim/judge")),
]
IMPURE = {"_socket", "asyncio", "concurrent", "random", "secrets", "select", "selectors", "socket", "threading", "time"}
LOOSE = {"__init__", "__main__", "clock", "errors", "pytest_plugin"}
"""The modules of cpsim outside a room."""
FLOORS = (
    {"cli"},
    {"load", "testing"},
    {"run", "conformance", "accounting", "record"},
    {"fake"},
    {"judge", "replay", "server", "daemon"},
    {"evidence", "accounts"},
    {"scenario", "quirks"},
    {"faults", "store", "metrics", "config", "net", "ui"},
    {"protocol"},
    {"system"},
    {"errors", "clock"},
    {"cpdaemon"},
)
"""The rooms, from the top. What a room needs is below it."""
SIDEWAYS = {
    ("ui", "metrics"): "progress is what is counted of a replay",
    ("evidence", "accounts"): "what was seen of the accounts is a view of them",
}
ENTRIES = {"__main__": "cli", "pytest_plugin": "testing"}
"""Entry points, and the room on whose floor each stands."""
NAMING = {
    "cpdaemon/commands.py": "the table, and a class for each row",
    "cpsim/accounting/expectation.py": "outcomes of jobs, of which one has the name of a command",
    "cpsim/accounting/sources.py": "columns of the ledger, of which two have names of commands",
    "cpsim/conformance/clauses": "each clause is about commands of its own",
    "cpsim/conformance/books.py": "the accounts of a machine, of which one has the name of a command",
    "cpsim/judge/anomalies.py": "the judge's reading of the protocol",
    "cpsim/judge/columns.py": "likewise, for ordinary slots",
    "cpsim/judge/granted.py": "a column of counters",
    "cpsim/judge/model.py": "likewise",
    "cpsim/judge/shapes.py": "likewise, for slots that are alike",
    "cpsim/run/virtual.py": "how long slots live, which is an argument of one command",
    "cpsim/scenario/formats/log_workload.py": "outcomes of jobs, of which one has the name of a command",
    "cpsim/scenario/workload.py": "the order in which the digest of a workload has always been made",
    "cpsim/server/control/export.py": "columns of the ledger, of which two have names of commands",
    "cpsim/server/control/expectations.py": "fields of a slot, of which two have names of commands",
    "cpsim/server/control/rules.py": "rules about which command may follow which",
    "cpsim/quirks": "each quirk is about commands of its own",
    "cpsim/testing/assertions.py": "fields of a slot, of which two have names of commands",
}
"""Where a command's name is told from another's, and why."""
LONG_FUNCTIONS = {
    "cpsim/cli/daemon.py: daemon": "a command and its options",
    "cpsim/cli/load.py: load": "likewise",
    "cpsim/cli/run.py: run": "likewise",
    "cpsim/cli/serve.py: serve": "likewise",
    "cpsim/cli/verify.py: verify": "likewise",
    "cpsim/run/pipeline.py: run": "the pipeline, step by step",
}
MANY_PARAMETERS = {
    "cpsim/accounting/accounts.py: load": "the options of a report, which notebooks give by name",
    "cpsim/daemon/site.py: __init__": "the settings of a daemon, given by name",
    "cpsim/fake/fake.py: __init__": "the settings of a fake, which tests give by name",
    "cpsim/judge/slots.py: judge_slot": "a slot, its history, and how far to search for what explains it",
    "cpsim/run/pipeline.py: run": "what a run is made of",
    "cpsim/server/control/expectations.py: expect_slot": "the query of a request",
    "cpsim/testing/project.py: __init__": "the settings of a fixture, given by name",
}
LARGE_CLASSES = {
    "cpsim/accounting/accounts.py: Accounts": "the frames that reports and notebooks ask for, a few lines each",
    "cpsim/conformance/examiner.py: Examiner": "what a clause can send and see, a few lines each",
    "cpsim/conformance/forwarding.py: Forwarding": "likewise, through a daemon and at the server behind it",
    "cpsim/daemon/courier.py: Courier": "one attempt, and what follows from each outcome of it",
    "cpsim/daemon/listener.py: Listener": "one loop over sockets, whose speed is the daemon's",
    "cpsim/daemon/site.py: Daemon": "what a daemon is made of, and the order in which it starts, drains and stops",
    "cpsim/daemon/spool.py: Spool": "what one file holds, and each change of it in one commit",
    "cpsim/fake/fake.py: Fake": "both tiers, put together and taken apart",
    "cpsim/faults/plan.py: FaultPlan": "one list of faults, and the methods by which each is named",
    "cpsim/net/http/connection.py: Connection": "order, bounds and time of what one connection brings",
    "cpsim/server/control/inspection.py: Inspector": "the control API is made of its methods",
    "cpsim/server/ledger.py: Ledger": "the rules, in one place",
    "cpsim/server/service.py: AccountServer": "each change of the accounts, under one lock",
    "cpsim/store/log.py: Log": "one writer, and what it owes to whoever waits for a commit",
    "cpsim/testing/project.py: ProjectFixture": "what a fixture shows, a few lines each",
}
TOP_LEVEL = {
    *("cpdaemon", "cpsim", "scenarios", "reports", "docs", "tests", "pyproject.toml", "noxfile.py"),
    *("README.md", "CHANGELOG.md", "Containerfile", "CONTRIBUTING.md", "LICENSE", ".ci", ".gitignore"),
}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(parsed(path)))


@cache
def imports(path: Path) -> list[str]:
    """The modules that a source file imports anywhere but for type checking."""
    typing_only = {
        id(inner)
        for node in nodes(path)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    names: list[str] = []
    for node in nodes(path):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def importers(*modules: str) -> set[str]:
    """The source files that import one of the modules or something below it."""
    return {
        str(path)
        for path in SOURCES
        if any(name == module or name.startswith(f"{module}.") for name in imports(path) for module in modules)
    }


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[0] == "cpdaemon"], ids=str)
def test_the_client_library_needs_only_the_standard_library(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(path)}
    assert tops <= sys.stdlib_module_names | {"cpdaemon"}


@pytest.mark.parametrize("path", PURE, ids=str)
def test_pure_modules_touch_neither_the_world_nor_the_clock(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(path)} & IMPURE
    attributes = {ast.unparse(node) for node in nodes(path) if isinstance(node, ast.Attribute)}
    drawn = {name for name in attributes if name.startswith("np.random.")}
    assert drawn <= {"np.random.PCG64", "np.random.SeedSequence"}
    assert not {name for name in attributes if name.endswith((".now", ".today", ".utcnow"))}


def test_the_judge_shares_no_code_with_the_judged() -> None:
    assert not {
        path for path in importers("cpsim.server", "cpsim.daemon", "cpsim.fake") if path.startswith("cpsim/judge/")
    }


def test_the_two_tiers_meet_only_in_the_fake() -> None:
    assert not {path for path in importers("cpsim.server") if path.startswith("cpsim/daemon")}
    assert not {path for path in importers("cpsim.daemon") if path.startswith("cpsim/server")}
    assert all(path.startswith("cpsim/fake/") for path in importers("cpsim.server") & importers("cpsim.daemon"))


def test_time_is_a_parameter() -> None:
    assert importers("time") == {"cpsim/clock.py", "cpdaemon/transport.py"}


def test_sockets_of_the_client_library_are_in_one_module() -> None:
    assert {path for path in importers("socket") if path.startswith("cpdaemon")} == {"cpdaemon/transport.py"}
    assert {path for path in importers("ssl") if path.startswith("cpdaemon")} == {"cpdaemon/tls.py"}


def test_no_thread_of_ours_can_end_unseen() -> None:
    starts = {
        str(path)
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"threading.Thread", "threading.Timer"}
    }
    assert starts == {"cpsim/system/threads.py"}


def test_heavy_libraries_stay_where_they_belong() -> None:
    assert all(path.startswith("cpsim/accounting") for path in importers("pandas", "duckdb"))
    assert all(path.startswith("cpsim/load") for path in importers("locust"))
    assert all(path.startswith("cpsim/scenario") for path in importers("faker"))
    assert importers("prometheus_client") == {"cpsim/metrics/exposition.py"}
    top = parsed(Path("cpsim/metrics/exposition.py")).body
    assert not [each for each in top if isinstance(each, ast.ImportFrom) and "prometheus" in str(each.module)]


def test_asking_for_help_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'pandas', 'locust', 'faker', 'pyarrow', 'rich', 'uvloop', 'jinja2', 'msgspec', 'pytest'}"
    code = f"import sys, cpsim.cli, cpdaemon; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_one_table_numbers_the_kinds_of_operations() -> None:
    using = importers("cpdaemon.commands.KINDS") - {"cpsim/scenario/workload.py"}
    numbering = {
        path
        for path in using
        for node in nodes(path)
        if (isinstance(node, ast.Attribute | ast.Call) and ast.unparse(node) in {"KINDS.index", "len(KINDS)"})
        or (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "KINDS")
    }
    assert not numbering


def room(module: str) -> str:
    """The room of a module, by its dotted name."""
    package, *rest = module.split(".")
    name = rest[0] if package == "cpsim" and rest else package
    return ENTRIES.get(name, name)


def test_imports_go_down_the_floors() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = set()
    for path in SOURCES:
        own = room(".".join(path.with_suffix("").parts))
        for node in nodes(path):
            if not isinstance(node, ast.ImportFrom) or node.module is None or node.module == "cpsim":
                continue
            other = room(node.module)
            if other not in floor or own in {other, "cpsim"} or floor[own] < floor[other]:
                continue
            if floor[own] > floor[other] or (own, other) not in SIDEWAYS:
                wrong.add(f"{path} imports {node.module}")
    assert not wrong


def test_every_module_has_a_room() -> None:
    assert {path.stem for path in SOURCES if len(path.parts) == 2 and path.parts[0] == "cpsim"} == LOOSE
    rooms = {path.parts[1] for path in SOURCES if len(path.parts) > 2}
    assert rooms == set().union(*FLOORS) - {"errors", "clock", "cpdaemon"}


def told_apart(path: Path, kinds: frozenset[str]) -> Iterator[str]:
    """Where source branches on a command's name: a comparison, a case, a key, an index."""
    for node in nodes(path):
        looked_at: list[ast.AST | None] = []
        if isinstance(node, ast.Compare):
            looked_at = [each for each in (node.left, *node.comparators) if not isinstance(each, ast.Call)]
        elif isinstance(node, ast.match_case):
            looked_at = [node.pattern]
        elif isinstance(node, ast.Dict):
            looked_at = list(node.keys)
        elif isinstance(node, ast.Subscript):
            looked_at = [node.slice] if isinstance(node.slice, ast.Constant) and node.slice.value in kinds else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "index":
            looked_at = list(node.args)
        found = {each.value for part in looked_at if part for each in ast.walk(part) if isinstance(each, ast.Constant)}
        if found & kinds:
            yield ast.unparse(node)[:80]


def test_only_the_rules_tell_commands_apart_by_name() -> None:
    from cpdaemon.commands import KINDS

    telling = {str(path): found for path in SOURCES if (found := list(told_apart(path, frozenset(KINDS))))}
    allowed = {path for path in telling if any(Path(path).is_relative_to(place) for place in NAMING)}
    assert not {path: found for path, found in telling.items() if path not in allowed}
    assert {place for place in NAMING if not any(Path(path).is_relative_to(place) for path in telling)} <= {
        "cpdaemon/commands.py"
    }


def test_an_engine_is_put_together_in_one_place() -> None:
    makers = {
        str(path)
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Engine"
    }
    assert makers == {"cpsim/replay/sender.py"}


def test_a_name_means_one_thing() -> None:
    """A section of a scenario has the section's own name."""
    defined: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                defined.setdefault(node.name, set()).add(str(path))
    assert not {name: paths for name, paths in defined.items() if len(paths - {"cpsim/scenario/schema.py"}) > 1}


def test_modules_functions_and_classes_stay_readable() -> None:
    long, many, large = set(), set(), set()
    for path in SOURCES:
        assert (ROOT / path).read_text(encoding="utf-8").count("\n") <= 500, path
        for node in nodes(path):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            lines = (node.end_lineno or 0) - node.lineno + 1
            if isinstance(node, ast.ClassDef):
                large |= {f"{path}: {node.name}"} if lines > 250 else set()
                continue
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            long |= {f"{path}: {node.name}"} if lines > 70 else set()
            is_wide = len(names) - (names[:1] in (["self"], ["cls"])) > 8 and not path.is_relative_to("cpsim/cli")
            many |= {f"{path}: {node.name}"} if is_wide else set()
    assert (long, many, large) == (set(LONG_FUNCTIONS), set(MANY_PARAMETERS), set(LARGE_CLASSES))


def test_every_public_name_is_there() -> None:
    import cpdaemon

    assert all(hasattr(cpdaemon, name) for name in cpdaemon.__all__)


def test_the_top_level_is_fixed_and_speaks_of_the_project_alone() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    tracked = listing.stdout.splitlines()
    assert {name.partition("/")[0] for name in tracked} <= TOP_LEVEL
    for name in tracked:
        text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        assert "/work" + "/" not in text, name
        assert ".." + "/shared" not in text, name


def test_the_installed_package_is_what_is_tested(request: pytest.FixtureRequest) -> None:
    import os

    import cpsim

    if "CPSIM_TEST_INSTALLED" in os.environ:
        assert not Path(cpsim.__file__).is_relative_to(request.config.rootpath / "cpsim")
