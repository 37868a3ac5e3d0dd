"""Settings that are typed again and again, from variables `CPSIM_*` and the file `cpsim.toml`.

A setting of the command line comes before one of a variable, and that before one of the file. What describes a target
(`OF_TARGET`) belongs to it: a place that names a target says nothing of another one, which was named in a place before
it, and where no target is named, nothing is said of one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from cpsim.config import tables
from cpsim.errors import UsageError
from cpsim.system.checks import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FILE: Final = "cpsim.toml"
PREFIX: Final = "CPSIM_"
OWN: Final = ("CPSIM_LOAD", "CPSIM_TEST_")
"""How variables begin that are no settings: of the processes of a load, and of cpsim's own tests."""
OF_TARGET: Final = frozenset({"server", "project", "secret_file", "accounts", "profile", "quirks"})
EMBEDDED: Final = "embedded"
"""The target that is none: an embedded fake."""
LISTS: Final = frozenset({"quirks"})

Text = Annotated[str, msgspec.Meta(min_length=1, description="text")]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=LONGEST_S, description=f"seconds, above 0 and up to {LONGEST_S:g}")]


class SettingsFile(msgspec.Struct, forbid_unknown_fields=True):
    """`cpsim.toml`. Paths in it are relative to its folder."""

    target: Text | None = None
    server: Text | None = None
    project: Text | None = None
    secret_file: Text | None = None
    accounts: Text | None = None
    profile: Literal["documented", "deployed"] | None = None
    quirks: list[Text] | None = None
    timeout: Seconds | None = None
    runs: Text | None = None


NAMES: Final = SettingsFile.__struct_fields__


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that was found: its value, as it would be typed, and where it comes from."""

    value: str | tuple[str, ...]
    origin: str


def find(environment: Mapping[str, str], folder: Path) -> list[dict[str, Setting]]:
    """The settings of variables, and those of the file, by name.

    The file is looked for in a folder and, within a repository, in the folders above it up to the root of that.

    Args:
        environment: the variables; an empty one counts as none.
        folder: where to look first.

    Raises:
        UsageError: a variable or a key of the file is none that there is, or a value is not allowed.
    """
    return [_of_variables(environment), *filter(None, [_of_file(folder)])]


def chosen(places: Iterable[Mapping[str, Setting]], name: str, typed_target: str | None) -> Setting | None:
    """The setting that counts; None if there is none.

    Args:
        places: where settings come from, the first that counts first, as `find` gives them.
        name: of the setting.
        typed_target: the target on the command line, which comes before all places; None if there is none.
    """
    target, found = typed_target, None
    for place in places:
        own = str(place["target"].value) if "target" in place else target
        target = own if target is None else target
        found = found or (None if name in OF_TARGET and own != target else place.get(name))
    return None if name in OF_TARGET and target in {None, EMBEDDED} else found


def _of_variables(environment: Mapping[str, str]) -> dict[str, Setting]:
    found = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX) or variable.startswith(OWN) or not value:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in NAMES:
            known = ", ".join(f"{PREFIX}{each.upper()}" for each in NAMES)
            close = get_close_matches(name, NAMES, n=1)
            hint = f"; did you mean {PREFIX}{close[0].upper()}?" if close else ""
            raise UsageError(f"{variable} is no variable of cpsim: there are {known}{hint}")
        found[name] = Setting(tuple(value.split()) if name in LISTS else value, variable)
    return found


def _of_file(folder: Path) -> dict[str, Setting]:
    path = next((path for path in _places(folder) if os.path.lexists(path)), None)
    if path is None:
        return {}
    if not path.is_file():
        raise UsageError(f"{path} is no file, or a link that leads to none: put the settings there, or remove it")
    try:
        document = tables.convert(tables.parse(path.read_text(encoding="utf-8-sig")), SettingsFile)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: {why}") from error
    given = {name: value for name in NAMES if (value := getattr(document, name)) is not None}
    return {name: Setting(_typed(name, value, path.parent), str(path)) for name, value in given.items()}


def _places(folder: Path) -> list[Path]:
    """Where the file may be: in a folder, and above it in its repository."""
    here = folder.absolute()
    above = [here, *here.parents]
    root = next((number for number, each in enumerate(above) if (each / ".git").exists()), 0)
    return [folder / FILE, *(each / FILE for each in above[1 : root + 1])]


def _typed(name: str, value: str | float | list[str], folder: Path) -> str | tuple[str, ...]:
    """A value of the file as it would be typed in the current folder."""
    if isinstance(value, list):
        return tuple(value)
    text = f"{value:g}" if isinstance(value, float) else value
    if name in {"secret_file", "runs"}:
        return str(folder / Path(text).expanduser())
    if folder == Path():
        return text
    if name == "accounts" and text.startswith("sql:"):
        return f"sql:{folder / text.removeprefix('sql:')}"
    is_address = "://" in text or text.startswith(("program:", "unix:/", "~"))
    if (name == "accounts" or (name == "target" and "/" in text)) and not is_address:
        return str(folder / text.removeprefix("unix:"))
    return text
