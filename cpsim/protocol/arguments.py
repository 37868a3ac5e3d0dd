"""The arguments of commands as typed Arrow columns, for journals and recordings; derived from the table of commands.

| column | type | |
|---|---|---|
| `KIND.NAME` | int64 or string | a kind's argument under a fixed name: `claim.machine` |
| `KIND` | map of int64 or string | a kind's arguments under free names, in the order sent: `counters`, `meta` |
| `frame` | binary | a malformed frame, whole |

A column is null in the rows of other kinds, and where an argument is not given.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from cpdaemon.commands import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cpdaemon.commands import Description

    Rows = Sequence[tuple[str, Mapping[str, str | int] | bytes]]

TYPES: Final = {int: pa.int64(), str: pa.string()}
WHOLE: Final = re.compile("-?[0-9]{1,18}")


def fields(commands: Mapping[str, Description] = COMMANDS) -> list[pa.Field]:
    """Return the columns of the commands' arguments, and that of malformed frames."""
    found = []
    for kind, command in commands.items():
        found += [pa.field(f"{kind}.{field.name}", TYPES[field.value]) for field in command.fields]
        if command.free is not None:
            found.append(pa.field(kind, pa.map_(pa.string(), TYPES[command.free])))
    return [*found, pa.field("frame", pa.binary())]


def of_rows(rows: Rows, commands: Mapping[str, Description] = COMMANDS) -> list[pa.Array]:
    """Return the columns of a sequence of commands.

    Args:
        rows: kind and arguments of each, whole numbers as `int` or text; of a malformed frame its bytes.
        commands: the known commands.
    """
    columns: dict[str, list[object]] = {field.name: [None] * len(rows) for field in fields(commands)}
    for row, (kind, given) in enumerate(rows):
        if isinstance(given, bytes):
            columns[kind][row] = given
        elif kind in commands:
            named = {field.name: field.value for field in commands[kind].fields}
            for name in named.keys() & given.keys():
                columns[f"{kind}.{name}"][row] = named[name](given[name])
            if (free := commands[kind].free) is not None:
                columns[kind][row] = [(name, free(value)) for name, value in given.items() if name not in named]
    return [pa.array(columns[field.name], field.type) for field in fields(commands)]


def readable(kind: str, arguments: Mapping[str, object]) -> tuple[dict[str, str | int], bool]:
    """Return the arguments of a command whose values have the protocol's types, and whether all have.

    Arguments unknown to the protocol are left out: a server ignores them.
    """
    command = COMMANDS.get(kind)
    named = {} if command is None else {field.name: field.value for field in command.fields}
    free = None if command is None else command.free
    found: dict[str, str | int] = {}
    wrong = 0
    for name, value in arguments.items():
        wanted = named.get(name, free)
        if wanted is str:
            found[name] = str(value)
        elif wanted is int:
            if type(value) in {int, str} and WHOLE.fullmatch(str(value)):
                found[name] = int(str(value))
            else:
                wrong += 1
    return found, not wrong
