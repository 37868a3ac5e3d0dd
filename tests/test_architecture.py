"""The rules that keep the project simple, checked on its source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path.relative_to(ROOT) for package in ("cpdaemon", "cpsim") for path in ROOT.glob(f"{package}/**/*.py")
)
PURE = [
    *(Path("cpdaemon", f"{name}.py") for name in ("commands", "wire", "signing", "endpoint", "value", "errors")),
    *(path for path in SOURCES if path.is_relative_to("cpsim/scenario")),
    Path("cpsim/judge/clock_offset.py"),
    Path("cpsim/config/tables.py"),
    Path("cpsim/server/accounts.py"),
    Path("cpsim/server/ledger.py"),
    *(Path("cpsim/judge", f"{name}.py") for name in ("model", "orders", "anomalies", "timeline", "repeat")),
]
IMPURE = {"_socket", "asyncio", "concurrent", "random", "secrets", "select", "selectors", "socket", "threading", "time"}
TOP_LEVEL = {
    *("cpdaemon", "cpsim", "scenarios", "reports", "docs", "tests", "pyproject.toml", "noxfile.py"),
    *("README.md", "CHANGELOG.md", "Containerfile", "CONTRIBUTING.md", "LICENSE", ".ci", ".gitignore"),
}


def imports(path: Path) -> Iterator[str]:
    """The modules that a source file imports anywhere but for type checking."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
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


def test_sockets_of_the_client_library_are_in_one_module() -> None:
    assert {path for path in importers("socket", "ssl") if path.startswith("cpdaemon")} == {"cpdaemon/transport.py"}


def test_no_thread_of_ours_can_end_unseen() -> None:
    starts = {
        str(path)
        for path in SOURCES
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"threading.Thread", "threading.Timer"}
    }
    assert starts == {"cpsim/system/threads.py"}


def test_heavy_libraries_stay_where_they_belong() -> None:
    assert all(path.startswith("cpsim/accounting") for path in importers("pandas", "duckdb"))
    assert all(path.startswith("cpsim/load") for path in importers("locust"))
    assert all(path.startswith("cpsim/scenario") for path in importers("faker"))


def test_asking_for_help_loads_nothing_heavy() -> None:
    heavy = (
        "{'numpy', 'pandas', 'locust', 'faker', 'pyarrow', 'rich', 'uvicorn', 'hdrh', 'jinja2', 'msgspec', 'pytest'}"
    )
    code = f"import sys, cpsim.cli, cpdaemon; print(*sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_one_table_numbers_the_kinds_of_operations() -> None:
    using = importers("cpdaemon.commands.KINDS") - {"cpsim/scenario/workload.py"}
    numbering = {
        path
        for path in using
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if ast.unparse(node) in {"KINDS.index", "len(KINDS)"}
        or (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "KINDS")
    }
    assert not numbering


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_modules_and_functions_stay_readable(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = {node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 80}
    assert not long


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
