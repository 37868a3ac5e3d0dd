"""A view of anybody's accounts: the tables and columns that a server may show, and what is verified by each.

Pure: a view is made of Arrow tables, or of the lines of a ledger, wherever they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cpsim.errors import CpsimError
from cpsim.system.mapped_rows import pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Self

    Row = Mapping[str, Any]

TEXT: Final = pa.string()
WHOLE: Final = pa.int64()
NUMBERS: Final = pa.map_(TEXT, WHOLE)
TEXTS: Final = pa.map_(TEXT, TEXT)
PYTHON_TYPES: Final[dict[pa.DataType, type]] = {TEXT: str, WHOLE: int}
WRITTEN: Final = {
    TEXT: "a text, in JSON within quotes",
    WHOLE: "a whole number of 64 bits, without quotes, point or exponent",
    NUMBERS: 'an object of whole numbers, such as {"job/events": 5}',
    TEXTS: 'an object of texts, such as {"site": "here"}',
}
LINK: Final = "link"
"""The `type` of a line of `ledger.jsonl` that repeats whose a machine is."""
ROWS: Final = 65_536
"""Rows of a chunk."""
US: Final = "microseconds since 1970, UTC"


class UnfitTable(CpsimError):
    """A table is not as the contract has it; the message names table and column, what it has and what is expected."""


class NoLedger(UnfitTable):
    """Lines are not those of tables of accounts; the message has the number of the first that is not."""


class ViewColumn(NamedTuple):
    """A column of a table of a view.

    Attributes:
        name: its name.
        type: its type; wider and narrower integers, large and dictionary-encoded texts are cast to it.
        meaning: what it holds, with the unit.
        null: what null means; "" if no row may be null. If all are null then, the column is not shown.
        shows: what is not verified without it, as the beginning of a sentence; "" if nothing is.
        identifies: whether it identifies the row, and so is needed.
    """

    name: str
    type: pa.DataType
    meaning: str
    null: str = ""
    shows: str = ""
    identifies: bool = False


class Contract(NamedTuple):
    """A table of a view.

    Attributes:
        row: what a row is; the `type` of a line of `ledger.jsonl`, and the `kind` in `accounts.parquet`.
        columns: its columns.
        shows: what is not verified without it, as the beginning of a sentence; "" if nothing is.
    """

    row: str
    columns: tuple[ViewColumn, ...]
    shows: str = ""

    @property
    def schema(self) -> pa.Schema:
        """The names and types of all columns."""
        return pa.schema([(column.name, column.type) for column in self.columns])


SALT: Final = b"cpsim.salt"
"""The key of the schema metadata of `accounts.parquet` that has a random text, kept with the accounts."""
NEXT: Final = b"cpsim.next"
"""The key of the schema metadata of a page of `slots.parquet` that has the arguments of the next page, as JSON."""
PROJECT: Final = ViewColumn("project", TEXT, "the project's id; upper and lower case are the same", identifies=True)
CONTRACTS: Final = {
    "slots": Contract(
        "slot",
        (
            PROJECT,
            ViewColumn("slot", TEXT, "the slot's id", identifies=True),
            ViewColumn(
                "state",
                TEXT,
                "`allocated`, `claimed`, `discarded` or `expired`",
                shows="The states of slots, and whether accounts have what claimed slots granted",
            ),
            ViewColumn(
                "machine",
                TEXT,
                "the machine that claimed it",
                "not claimed",
                "Which machines claimed slots, and whether each machine has what its own slots granted",
            ),
            ViewColumn("user", TEXT, "the user who has its credits", "nobody"),
            ViewColumn("reason", TEXT, "the reason of its discard", "not discarded", "The reasons of discards"),
            ViewColumn("credits", WHOLE, "credits that its alloc fixed", "none"),
            ViewColumn("min", WHOLE, "least credits that its alloc allows", "none"),
            ViewColumn("max", WHOLE, "most credits that its alloc allows", "none"),
            ViewColumn(
                "granted",
                WHOLE,
                "credits that its claim granted",
                "not claimed",
                "The credits that claims granted, and whether accounts have these credits",
            ),
            ViewColumn("allocated_us", WHOLE, f"when it was allocated, in {US}; for the apply delay", "unknown"),
            ViewColumn("expires_us", WHOLE, f"when it expires, in {US}", "unknown"),
            ViewColumn(
                "settled_us",
                WHOLE,
                f"when it was claimed or discarded, in {US}; for the apply delay",
                "neither, or unknown",
            ),
            ViewColumn(
                "counters",
                NUMBERS,
                "the sum of each of its counters",
                shows="The counters of slots, and whether accounts have these counters",
            ),
            ViewColumn("meta", TEXTS, "its metadata", shows="The metadata of slots"),
        ),
        "Slots, and whether accounts have what claimed slots granted",
    ),
    "machines": Contract(
        "machine",
        (
            PROJECT,
            ViewColumn("machine", TEXT, "the machine's id", identifies=True),
            ViewColumn(
                "user", TEXT, "the user to whom it is linked", "no user", "Whether nothing waits on linked machines"
            ),
            ViewColumn(
                "credits",
                WHOLE,
                "credits that it earned in the project",
                shows="Whether machines have the credits that their slots granted",
            ),
            ViewColumn(
                "counters",
                NUMBERS,
                "the sum of each counter that it earned in the project",
                shows="Whether machines have the counters of their slots",
            ),
            ViewColumn(
                "waiting_credits",
                WHOLE,
                "the credits among them that wait for a user",
                shows="Whether users have, with what waits on machines, the credits that claims granted",
            ),
            ViewColumn(
                "waiting_counters",
                NUMBERS,
                "the counters among them that wait for a user",
                shows="Whether users have, with what waits on machines, the counters of claimed slots",
            ),
        ),
        "Whether machines have what their slots granted",
    ),
    "users": Contract(
        "user",
        (
            PROJECT,
            ViewColumn("user", TEXT, "the user's id", identifies=True),
            ViewColumn(
                "credits",
                WHOLE,
                "credits of the user in the project",
                shows="Whether users have the credits that their machines earned",
            ),
            ViewColumn(
                "counters",
                NUMBERS,
                "the sum of each of the user's counters in the project",
                shows="Whether users have the counters that their machines earned",
            ),
        ),
        "Whether users have what their machines earned",
    ),
    "projects": Contract(
        "project",
        (
            PROJECT,
            ViewColumn("credits", WHOLE, "credits that its claims granted"),
            ViewColumn("counters", NUMBERS, "the sum of each counter of its claimed slots"),
        ),
    ),
}
"""The tables of a view. What is verified of `projects` others show too: it may be missing, and is compared if not."""
HOLDERS: Final = {name: contract for name, contract in CONTRACTS.items() if name != "slots"}
ACCOUNTS: Final = pa.schema([("project", TEXT), ("kind", TEXT), ("id", TEXT), *list(CONTRACTS["machines"].schema)[2:]])
"""The columns of `accounts.parquet`, which has the rows of all tables but `slots`."""


class TableRows:
    """The rows of a table of a view, made into columns by the chunk, so that few are in memory as objects.

    Args:
        name: of the table, in `CONTRACTS`.
        place: what a row is where it comes from, for messages: "line" or "row".
    """

    def __init__(self, name: str, place: str) -> None:
        self.name = name
        self._place = place
        self._rows: list[Row] = []
        self._numbers: list[int] = []
        self._chunks: list[pa.Table] = []

    def add(self, row: Row, number: int) -> None:
        """Add a row, which may lack columns.

        Raises:
            UnfitTable: a value is of another type; the message has the row's number.
        """
        self._rows.append(row)
        self._numbers.append(number)
        if len(self._rows) == ROWS:
            self._make_chunk()

    def table(self) -> pa.Table:
        """The columns that any row has; all of the contract, if there are no rows.

        Raises:
            UnfitTable: a value is of another type; the message has the row's number.
        """
        self._make_chunk()
        if not self._chunks:
            return CONTRACTS[self.name].schema.empty_table()
        return pa.concat_tables(self._chunks, promote_options="default")

    def _make_chunk(self) -> None:
        shown: set[str] = set().union(*self._rows)
        columns = {column.name: self._values(column) for column in CONTRACTS[self.name].columns if column.name in shown}
        if self._rows:
            self._chunks.append(pa.table(columns or {"": pa.nulls(len(self._rows))}))
        self._rows, self._numbers = [], []

    def _values(self, column: ViewColumn) -> pa.Array:
        """A column, whose values are looked at first: Arrow would make 1 of 1.5 and of true."""
        values = [row.get(column.name) for row in self._rows]
        is_map = pa.types.is_map(column.type)
        wanted = {NoneType, dict if is_map else PYTHON_TYPES[column.type]}
        inner = {NoneType, PYTHON_TYPES[column.type.item_type]} if is_map else set()
        fits = wanted.issuperset(map(type, values))
        if fits and is_map:
            fits = all(inner.issuperset(map(type, value.values())) for value in values if value)
        if fits:
            try:
                return pa.array([value and list(value.items()) for value in values] if is_map else values, column.type)
            except (pa.ArrowException, OverflowError, UnicodeError):  # beyond 64 bits, or half a surrogate pair
                pass
        for number, value in zip(self._numbers, values, strict=True):
            if type(value) not in wanted or not _is_storable(value, column.type, inner):
                raise UnfitTable(
                    f"{self._place} {number}: column `{column.name}` of the table of {self.name} is {value!r:.60}, "
                    f"expected {column.type}: {WRITTEN[column.type]}"
                )
        raise AssertionError(column.name)


def _is_storable(value: object, kind: pa.DataType, inner: set[type]) -> bool:
    if isinstance(value, dict) and not inner.issuperset(map(type, value.values())):
        return False
    try:
        pa.array([list(value.items()) if isinstance(value, dict) else value], kind)
    except (pa.ArrowException, OverflowError, UnicodeError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class View:
    """What a server shows of its accounts: each table has the columns of its contract that are shown, in their types.

    Attributes:
        slots: a row per slot; None if slots are not shown.
        machines: a row per machine and project; None if machines are not shown.
        users: a row per user and project; None if users are not shown.
        projects: a row per project; None if projects are not shown.
        salt: what ids for strangers are made from; "" if it is not shown.
    """

    slots: pa.Table | None = None
    machines: pa.Table | None = None
    users: pa.Table | None = None
    projects: pa.Table | None = None
    salt: str = ""

    @classmethod
    def of_tables(cls, slots: pa.Table | None, accounts: pa.Table | None, *, encoded: bool = False) -> Self:
        """A view of tables in the form of `slots.parquet` and `accounts.parquet`, or of those of a run folder.

        Args:
            slots: a row per slot; None if slots are not shown.
            accounts: a row per machine, user and project, told apart by `kind`, with `id`; None if none is shown.
            encoded: whether texts that are dictionary-encoded stay so.

        Raises:
            UnfitTable: a table is not as the contract has it.
        """
        tables = {} if slots is None else {"slots": slots}
        if accounts is not None:
            kinds, ids = (
                _column("accounts", accounts, ViewColumn(name, TEXT, "", identifies=True)) for name in ("kind", "id")
            )
            assert ids is not None
            for name, contract in HOLDERS.items():
                ours = pc.equal(kinds, contract.row)
                replaced = {"kind", "id", contract.row}
                others = [place for place, each in enumerate(accounts.column_names) if each not in replaced]
                rows = accounts.select(others).filter(ours)
                tables[name] = rows.append_column(contract.row, ids.filter(ours))
        found = cls._of({name: _fitted(name, table, encoded=encoded) for name, table in tables.items()})
        return replace(found, salt=salt_of(accounts))

    @classmethod
    def of_documents(cls, tables: Mapping[str, pa.Table]) -> Self:
        """A view of a table for each name of `CONTRACTS` that is shown; one without rows is shown all the same.

        Raises:
            UnfitTable: a table is not as the contract has it.
        """
        return cls(**{name: _fitted(name, table) for name, table in tables.items()})

    @classmethod
    def of_lines(cls, lines: Iterable[tuple[int, Row]]) -> Self:
        """A view of lines, each with its number: an object whose `type` says of which table it is a row.

        Raises:
            NoLedger: a line is of no table.
            UnfitTable: a table is not as the contract has it.
        """
        tables = {contract.row: TableRows(name, "line") for name, contract in CONTRACTS.items()}
        for number, line in lines:
            kind = line.get("type")
            rows = tables.get(kind) if isinstance(kind, str) else None
            if rows is None and kind == LINK:
                continue
            if rows is None:
                has = f"the `type` {kind!r:.40}" if "type" in line else "no `type`"
                raise NoLedger(f"line {number} has {has}, expected {', '.join(tables)}")
            rows.add(line, number)
        return cls._of({rows.name: _fitted(rows.name, rows.table()) for rows in tables.values()})

    @classmethod
    def _of(cls, tables: dict[str, pa.Table]) -> Self:
        """A view without the tables of which nobody can say whether they are empty or not shown.

        Where nothing was claimed, nobody needs an account. Where it shows what waits on machines, it shows users too.
        """
        slots, machines, users = (tables.get(name) for name in ("slots", "machines", "users"))
        if machines is not None and not len(machines) and _may_have_claims(slots):
            machines = None
        if users is not None and not len(users) and _may_have_claims(slots):
            waits = machines is not None and {"waiting_credits", "waiting_counters"} & set(machines.column_names)
            users = users if waits else None
        projects = tables.get("projects")
        return cls(slots, machines, users, projects if projects is not None and len(projects) else None)

    @property
    def accounts(self) -> pa.Table | None:
        """Machines, users and projects as one table, in the form of `accounts.parquet`; None if none is shown."""
        parts = []
        for name, contract in HOLDERS.items():
            table = getattr(self, name)
            if table is not None:
                columns = {each: table[each] for each in table.column_names if each != contract.row}
                columns["project"], columns["id"] = table["project"], table[contract.row]
                parts.append(pa.table(columns | {"kind": pa.repeat(contract.row, len(table))}))
        if not parts:
            return None
        accounts = pa.concat_tables(parts, promote_options="default")
        chosen = accounts.select([name for name in ACCOUNTS.names if name in accounts.column_names])
        return chosen.replace_schema_metadata({SALT: self.salt} if self.salt else None)

    def shown(self) -> dict[str, list[str]]:
        """The columns of each table that is shown."""
        tables = {name: getattr(self, name) for name in CONTRACTS}
        return {name: table.column_names for name, table in tables.items() if table is not None}

    def restored(self, shown: Mapping[str, Sequence[str]]) -> View:
        """A view that was read again from its tables, as `shown` said of it before: empty ones say too little."""
        tables = {}
        for name, columns in shown.items():
            table = getattr(self, name)
            whole = CONTRACTS[name].schema.empty_table() if table is None else table
            tables[name] = whole.select(columns)
        return View(**tables, salt=self.salt)

    def missing(self) -> Iterator[str]:
        """A sentence for each table and each column that is not shown, if something is not verified without it."""
        for name, contract in CONTRACTS.items():
            table = getattr(self, name)
            if table is None:
                if contract.shows:
                    yield f"{contract.shows}: the server shows no table of {name}."
                continue
            for column in contract.columns:
                if column.shows and column.name not in table.column_names:
                    yield f"{column.shows}: the server's table of {name} has no column `{column.name}`."


def salt_of(accounts: pa.Table | pa.Schema | None) -> str:
    """The salt in the metadata of a table of accounts; "" if there is none."""
    schema = accounts.schema if isinstance(accounts, pa.Table) else accounts
    salt: bytes = ({} if schema is None or schema.metadata is None else schema.metadata).get(SALT, b"")
    return salt.decode()


def _may_have_claims(slots: pa.Table | None) -> bool:
    if slots is None or "state" not in slots.column_names:
        return True
    return any(pc.any(pc.equal(piece["state"], "claimed")).as_py() for piece in pieces(slots.select(["state"])))


def _fitted(name: str, table: pa.Table, *, encoded: bool = False) -> pa.Table:
    """The columns of a table that its contract has, in their types; texts may stay `encoded`.

    Raises:
        UnfitTable: one is missing that identifies rows, or is of another type, or has nulls where none may be.
    """
    columns = {column.name: _column(name, table, column, encoded=encoded) for column in CONTRACTS[name].columns}
    shown = {column: values for column, values in columns.items() if values is not None}
    if all(values.type == table.schema.field(column).type for column, values in shown.items()):
        return table.select(list(shown)).replace_schema_metadata()  # does not look at the rows again
    return pa.table(shown)


def _column(name: str, table: pa.Table, column: ViewColumn, *, encoded: bool = False) -> pa.ChunkedArray | None:
    """A column of a table, in the type of the contract, or `encoded`; None if it is not shown."""
    where = f"column `{column.name}` of the table of {name}"
    places = table.schema.get_all_field_indices(column.name)
    if len(places) > 1:
        raise UnfitTable(f"{where} is there {len(places)} times, expected once")
    if not places:
        if column.identifies:
            raise UnfitTable(
                f"{where} is missing, expected {column.type}; the table has {', '.join(table.column_names) or 'none'}"
            )
        return None
    values = table.column(places[0])
    if not _fits(values.type, column.type):
        raise UnfitTable(f"{where} has the type {values.type}, expected {column.type}")
    if values.type != column.type and not (encoded and _decoded(values.type) == column.type):
        try:
            values = values.cast(column.type)
        except pa.ArrowException as error:
            raise UnfitTable(f"{where} has values that are not {column.type}: {error}") from error
    nulls = values.null_count
    if column.null or not nulls:
        return values
    if nulls < len(values) or column.identifies:
        raise UnfitTable(f"{where} is null in {nulls:,} of {len(values):,} rows, expected a value in each")
    return None


def _decoded(kind: pa.DataType) -> pa.DataType:
    """A type without dictionaries."""
    if pa.types.is_map(kind):
        return pa.map_(_decoded(kind.key_type), _decoded(kind.item_type))
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _fits(has: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a type is the wanted one, but for the width of integers and the encoding of texts."""
    if pa.types.is_dictionary(has):
        return _fits(has.value_type, wanted)
    if pa.types.is_map(wanted):
        is_map = (
            pa.types.is_map(has) and _fits(has.key_type, wanted.key_type) and _fits(has.item_type, wanted.item_type)
        )
        return is_map or pa.types.is_null(has)
    if wanted == WHOLE:
        return bool(pa.types.is_integer(has) or pa.types.is_null(has))
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(has) for is_kind in kinds)
