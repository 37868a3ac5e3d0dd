"""Accounts in a database: a file maps a query to each table."""

from __future__ import annotations

import os
import tomllib
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
import pyarrow as pa

from cpsim.accounts.observer import CannotObserve
from cpsim.accounts.view import CONTRACTS, ROWS, TableRows, UnfitTable, View
from cpsim.config.catalog import find
from cpsim.errors import UsageError
from cpsim.system.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import sqlalchemy as sa

MAPPINGS: Final = "reports/accounts/mappings"
"""The content among which there are mappings."""
SHOWN_BYTES: Final = 300
"""What is shown of a database's own message, at most."""


class SqlSource:
    """A database, of which nothing is changed: all queries see it in one transaction that only reads.

    The file is TOML: `url`, the database as SQLAlchemy names it, or `url_variable`, the environment variable that has
    it; and in `[tables]` a query for each table that is shown.

    Args:
        name: the path of the file, or the name of one that comes with the project.

    Raises:
        UsageError: it is not such a file.
        NotFound: there is none.
        MissingExtra: SQLAlchemy is not installed.
    """

    def __init__(self, name: str) -> None:
        require("sql", "--accounts sql:FILE")
        if not name:
            raise UsageError("sql: names no file: write sql:FILE")
        self._name = name
        path = find(MAPPINGS, name)
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} is not TOML: {error}") from error
        self._url, self._variable, self._queries = _checked(path, document)

    def __str__(self) -> str:
        return f"sql:{self._name}"

    def read(self, pause_s: float) -> View:
        """Ask the database."""
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - an extra

        try:
            with connected(self._database(), pause_s) as connection:
                tables = {name: self._asked(connection, name, query) for name, query in self._queries.items()}
            return View.of_documents(tables)
        except UnfitTable as error:
            raise CannotObserve(f"{self}: {error}") from error
        except ModuleNotFoundError as error:
            raise CannotObserve(f"{self}: the driver {error.name} is not installed: pip install {error.name}") from None
        except (SQLAlchemyError, OSError, TypeError, ValueError) as error:  # the latter of arguments in the URL
            raise CannotObserve(f"{self}: {self._said(error)}") from None  # a cause may hold the secret

    def _database(self) -> sa.URL:
        from sqlalchemy.engine import make_url  # noqa: PLC0415 - an extra
        from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

        text = self._url or os.environ.get(self._variable, "")
        where = "its `url`" if self._url else f"the environment variable {self._variable}"
        if not text:
            raise CannotObserve(f"{self}: {where} is not set: it names the database, as postgresql+psycopg://...")
        try:
            return make_url(text)
        except (ArgumentError, ValueError):
            raise CannotObserve(f"{self}: {where} is no URL of a database, such as postgresql+psycopg://...") from None

    def _asked(self, connection: sa.Connection, name: str, query: str) -> pa.Table:
        """The result of a query as a table of a view; one without rows has the columns of the query."""
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - an extra

        rows = TableRows(name, "row")
        try:
            result = connection.execution_options(yield_per=ROWS, no_parameters=True).exec_driver_sql(query)
        except SQLAlchemyError as error:
            raise CannotObserve(f"{self}: the query of the table of {name} failed: {self._said(error)}") from None
        if not result.returns_rows:
            raise CannotObserve(f"{self}: the query of the table of {name} is no query: it returns no rows")
        columns = list(result.keys())
        contract = CONTRACTS[name].schema
        for column in columns:
            if column not in contract.names or columns.count(column) > 1:
                raise CannotObserve(
                    f"{self}: the query of the table of {name} has a column {column!r}: name each of its columns AS "
                    f"another of {', '.join(contract.names)}"
                )
        maps = {field.name for field in contract if pa.types.is_map(field.type)}
        for number, row in enumerate(result, 1):
            values = zip(columns, row, strict=True)
            rows.add({column: _plain(value, is_map=column in maps) for column, value in values}, number)
        table = rows.table()
        return table if len(table) else table.select(columns)

    def _said(self, error: Exception) -> str:
        """What the database says, in one line, without the password."""
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        password = self._database().password
        return (said.replace(password, "***") if password else said)[:SHOWN_BYTES]


def _checked(path: Path, document: dict[str, Any]) -> tuple[str, str, dict[str, str]]:
    """The url, its variable and the queries of a file. Raises UsageError; no message shows the URL."""
    if unknown := document.keys() - {"url", "url_variable", "tables"}:
        raise UsageError(f"{path}: {min(unknown)!r} is unknown: expected url or url_variable, and [tables]")
    url, variable, tables = (document.get(name) for name in ("url", "url_variable", "tables"))
    if (url is None) == (variable is None):
        raise UsageError(f"{path}: expected one of url and url_variable, the environment variable that has the URL")
    for name, value in (("url", url), ("url_variable", variable)):
        if value is not None and not (isinstance(value, str) and value):
            raise UsageError(f"{path}: {name} is not a text")
    if not isinstance(tables, dict) or not tables:
        raise UsageError(f"{path}: expected [tables] with a query for one or more of {', '.join(CONTRACTS)}")
    for name, query in tables.items():
        if name not in CONTRACTS:
            raise UsageError(f"{path}: there is no table {name!r}: expected {', '.join(CONTRACTS)}")
        if not isinstance(query, str):
            raise UsageError(f"{path}: tables.{name} is not a text: expected a query")
    return url or "", variable or "", tables


@contextmanager
def connected(url: sa.URL, pause_s: float) -> Iterator[sa.Connection]:
    """A connection in one transaction that only reads, as far as the database knows such, and is undone at the end.

    Args:
        url: of the database.
        pause_s: seconds that a query may take, where the database can be told.
    """
    import sqlalchemy as sa  # noqa: PLC0415 - an extra

    kind = url.get_backend_name()
    options: dict[str, Any] = {}
    if kind == "sqlite" and url.database and not url.database.startswith("file:"):
        # a file that is not there is not made
        url = url.set(database=f"file:{quote(url.database)}").update_query_dict({"mode": "ro", "uri": "true"})
    if kind == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    engine = sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)
    try:
        with engine.connect().execution_options(**options) as connection:
            for statement in _beginning(kind, pause_s):
                connection.exec_driver_sql(statement)
            yield connection.execution_options(stream_results=True)
            connection.rollback()
    finally:
        engine.dispose()


def _beginning(kind: str, pause_s: float) -> list[str]:
    """The statements that begin the transaction."""
    if kind == "sqlite":
        return ["PRAGMA query_only = ON", f"PRAGMA busy_timeout = {int(pause_s * 1000)}", "BEGIN"]
    if kind == "postgresql":
        return [f"SET LOCAL statement_timeout = {max(1, int(pause_s * 1000))}"]
    if kind in {"mysql", "mariadb"}:
        return ["SET SESSION sql_mode = CONCAT(@@sql_mode, ',ANSI_QUOTES')", "SET TRANSACTION READ ONLY"]
    return []


def _plain(value: object, *, is_map: bool) -> object:
    """A value as JSON would have it: whole decimals are whole numbers, and maps may be JSON's text."""
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return int(value)
    if is_map and isinstance(value, str | bytes):
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return value
    return value
