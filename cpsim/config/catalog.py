"""The built-in scenarios, reports, and mappings and programs for accounts.

They are content, not code: inside the package in a wheel, beside it in a checkout.
"""

from __future__ import annotations

import ast
import difflib
import tomllib
from pathlib import Path
from typing import Final

from cpsim.errors import CpsimError, UsageError

_PACKAGE: Final = Path(__file__).parents[1]
_SUFFIXES: Final = {
    "scenarios": ".toml",
    "reports": ".py",
    "reports/accounts/mappings": ".toml",
    "reports/accounts/programs": ".py",
}
_FILE_SUFFIXES: Final = {".toml", ".swf", ".gz", ".py", ".csv", ".parquet"}


class NotFound(CpsimError, LookupError):
    """An unknown name, or a missing file."""


class NoSuchName(NotFound, UsageError):
    """An unknown name."""


def find_scenario(name_or_path: str) -> Path:
    """The file of a built-in scenario, or of the user's.

    Args:
        name_or_path: a name such as "smoke", or a path to a file of any kind that `load_workload` reads.

    Raises:
        NotFound: the name or file does not exist; the message lists the names and suggests the nearest.
    """
    return find("scenarios", name_or_path)


def scenario_names() -> list[str]:
    """The names of the built-in scenarios, sorted."""
    return names("scenarios")


def describe_scenario(path: Path) -> tuple[str, str]:
    """The description and the expected verdict of a built-in scenario; read without its models."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    return document["description"], document.get("verdict", "valid")


def find_report(name_or_path: str) -> Path:
    """The file of a built-in report, or of the user's.

    Args:
        name_or_path: a name such as "leaderboards", or a path to a `.py` file.

    Raises:
        NotFound: the name or file does not exist; the message lists the names and suggests the nearest.
    """
    return find("reports", name_or_path)


def report_names() -> list[str]:
    """The names of the built-in reports: the summary, then the others, sorted."""
    return sorted(names("reports"), key=lambda name: (name != "summary", name))


def describe_report(path: Path) -> tuple[str, str]:
    """The title of a report, and the rest of its docstring; read without running it.

    Raises:
        CpsimError: the file is not Python.
    """
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except (SyntaxError, ValueError) as error:
        raise CpsimError(f"{path} is not Python: {error}") from error
    title, _, rest = (text or path.stem).partition("\n")
    return title.removesuffix("."), " ".join(rest.split())


def find(kind: str, name_or_path: str) -> Path:
    """The file of a name or path; see `find_scenario`.

    Args:
        kind: a folder of content: "scenarios", "reports", "reports/accounts/mappings" or "reports/accounts/programs".
        name_or_path: a path if it has a separator or a suffix, or names a file in the working directory; else a name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    known = names(kind)
    if name_or_path not in known and ("/" in name_or_path or path.suffix.lower() in _FILE_SUFFIXES or path.exists()):
        raise NotFound(f"{name_or_path}: {_why_unusable(path)}")
    if name_or_path in known:
        return _folder(kind) / f"{name_or_path}{_SUFFIXES[kind]}"
    close = difflib.get_close_matches(name_or_path, known, n=1)
    suggestion = f'; did you mean "{close[0]}"?' if close else ""
    allowed = f"a path or one of {', '.join(known)}" if known else "a path, for none comes with the project"
    raise NoSuchName(f'no {kind.rpartition("/")[2][:-1]} "{name_or_path}": expected {allowed}{suggestion}')


def _why_unusable(path: Path) -> str:
    if not path.exists():
        return "no such file"
    if not path.is_dir():
        return "not a regular file, which can be read more than once"
    journal = path / "journal.parquet"
    return f"a folder, not a file; a run is replayed from {journal}" if journal.is_file() else "a folder, not a file"


def names(kind: str) -> list[str]:
    """The names of all content of a kind, sorted."""
    return sorted(path.stem for path in _folder(kind).glob(f"*{_SUFFIXES[kind]}"))


def _folder(kind: str) -> Path:
    packaged = _PACKAGE / "_content" / kind
    if packaged.is_dir():
        return packaged
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / kind).is_dir():
        return checkout / kind
    raise NotFound(f"cpsim was installed without its {kind}: install it again from a wheel or a whole checkout")
