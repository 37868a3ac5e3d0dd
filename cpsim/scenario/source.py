"""Reading of scenario files: `extends`, `--set`, and the files that a scenario names.

mine.toml, extends = "challenge" ──▶ challenge.toml below, mine.toml above it, --set on top ──▶ Scenario
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cpsim.config import tables
from cpsim.config.catalog import NotFound, find_scenario
from cpsim.scenario.schema import Generated, Logged, Scenario
from cpsim.scenario.values import ScenarioError, SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Tree = dict[str, Any]

DEEPEST: Final = 10
"""Most files in a chain of `extends`."""
TAGS: Final = ("model", "policy")
"""Keys that decide the other keys of a table: if they differ, the upper table replaces the lower one."""


def load(path: Path, settings: Sequence[str] = ()) -> Scenario | Generated | Logged:
    """Read a scenario file.

    Args:
        path: the file.
        settings: overrides of keys, as `population.machines=50000`.

    Raises:
        ScenarioError: it, a file that it extends, or a setting has a mistake; a SettingError if it is no KEY=VALUE.
        OSError: it cannot be read.
    """
    return parse(_text(path), str(path), settings)


def parse(text: str, source: str, settings: Sequence[str] = ()) -> Scenario | Generated | Logged:
    """Read the text of a scenario file.

    Args:
        text: TOML.
        source: its path, for messages, the scenario's name and the files beside it.
        settings: overrides of keys.

    Raises:
        ScenarioError: it has a mistake.
    """
    path = Path(source)
    tree = _extended(_tree(text, source), path, [path])
    has_log = "log" in tree
    tree = _merged(tree, _settings(settings))
    if "log" in tree and not has_log and settings:
        raise SettingError(
            f"{path}: --jobs, --since, --until, --skip-bad and --set log.KEY are for job logs, and this scenario has "
            "no [log]"
        )
    tree["name"] = tree.get("name", safe_name(path))
    place = source if not settings else f"{path.name} with --set {' --set '.join(settings)}"
    try:
        if "generator" in tree:
            return tables.convert(tree, Generated)
        if "log" in tree:
            _place_log(tree["log"], path.parent)
            return tables.convert(tree, Logged)
        _read_times(tree.get("run_time"), path.parent)
        return tables.convert(tree, Scenario)
    except ValueError as error:
        raise ScenarioError(f"{place}: {error}") from error


def of_log(path: Path, settings: Sequence[str] = ()) -> Logged:
    """The scenario that a job log alone is.

    Args:
        path: the log.
        settings: overrides of keys of its `[log]`, as `log.machines=50`.

    Raises:
        ScenarioError: a setting has a mistake; a SettingError if it is none of a `[log]`.
    """
    tree = _settings(settings)
    if set(tree) - {"log"} or not isinstance(tree.get("log", {}), dict):
        raise SettingError(f"{path}: --set of a job log is of a key of [log], such as log.machines=50")
    tree = _merged({"name": safe_name(path), "description": "", "log": {"file": str(path)}}, tree)
    try:
        return tables.convert(tree, Logged)
    except ValueError as error:
        raise ScenarioError(f"{path.name} with --set {' --set '.join(settings)}: {error}") from error


def safe_name(path: Path) -> str:
    """A file's name as a valid prefix of slot ids."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.name.removesuffix(".gz").rpartition(".")[0]) or "scenario"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not UTF-8 text: {error}") from error


def _tree(text: str, source: str) -> Tree:
    try:
        return tables.parse(text)
    except ValueError as error:
        raise ScenarioError(f"{source}: {error}") from error


def _extended(tree: Tree, path: Path, above: list[Path]) -> Tree:
    """A tree merged over the one that it extends."""
    if "extends" not in tree:
        return tree
    named = tree.pop("extends")
    if not isinstance(named, str):
        raise ScenarioError(f"{path}: extends = {named!r}: expected the name or the path of a scenario")
    beside = path.parent / named
    try:
        below = beside if beside.is_file() else find_scenario(named)
    except NotFound as error:
        raise ScenarioError(f"{path}: extends: {error}") from error
    if below.suffix.lower() != ".toml":
        raise ScenarioError(f"{path}: extends = {json.dumps(named)}: expected a scenario (.toml)")
    if below.resolve() in {known.resolve() for known in above} or len(above) >= DEEPEST:
        chain = " -> ".join(known.name for known in (*above, below))
        raise ScenarioError(f"{path}: extends: {chain} has no end, or more than {DEEPEST} files")
    foundation = _extended(_tree(_text(below), str(below)), below, [*above, below])
    _read_times(foundation.get("run_time"), below.parent)
    _place_log(foundation.get("log"), below.parent)
    foundation.pop("name", None)
    return _merged(foundation, tree)


def _merged(below: Tree, above: Tree) -> Tree:
    """Two tables merged key by key, the upper one first; the upper table alone if their models differ."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        if isinstance(value, dict) and isinstance(known, dict) and _alike(known, value):
            merged[key] = _merged(known, value)
        else:
            merged[key] = value
    return merged


def _alike(below: Tree, above: Tree) -> bool:
    return all(above.get(tag, below.get(tag)) == below.get(tag) for tag in TAGS)


def _settings(settings: Sequence[str]) -> Tree:
    """Overrides as a tree; a value is TOML, or else text."""
    tree: Tree = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        for text in (setting, f"{key} = {json.dumps(value)}"):
            try:
                one = tables.parse(text)
                break
            except ValueError:
                continue
        else:
            equals = ""
        if not equals:
            raise SettingError(f"--set {setting}: expected KEY=VALUE, such as population.machines=50000")
        tree = _merged(tree, one)
    return tree


def _place_log(log: object, folder: Path) -> None:
    """Resolve a log's path against the scenario's folder."""
    if isinstance(log, dict) and isinstance(log.get("file"), str):
        log["file"] = str(folder / log["file"])


def _read_times(run_time: object, folder: Path) -> None:
    """Replace a file of run times by its values."""
    if not isinstance(run_time, dict) or run_time.get("model") != "empirical" or "values" in run_time:
        return
    named = run_time.get("file")
    if not isinstance(named, str):
        return
    path = folder / named
    values = [line.split("#")[0].strip() for line in _text(path).splitlines()]
    numbered = [(number, value) for number, value in enumerate(values, 1) if value]
    for number, value in numbered:
        if not re.fullmatch(r"\d+(\.\d+)?( ?(ms|s|min|h|d))?", value) or not float(re.sub(r"[ a-z]", "", value)):
            raise ScenarioError(
                f"{path}, line {number}: {value!r}: expected a time above 0, in seconds or with a unit, such as 90 "
                "or 1.5h"
            )
    if not numbered:
        raise ScenarioError(f"{path}: has no time: expected one per line, in seconds or with a unit")
    del run_time["file"]
    run_time["values"] = [value if value[-1].isalpha() else f"{value}s" for _, value in numbered]
