"""Engines that compute rollups: this process, or the workers of a Dask cluster; and what goes wrong in DuckDB."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import duckdb

from cpsim.accounting.rollups import ROLLUPS
from cpsim.accounting.sources import check_whole
from cpsim.errors import CpsimError
from cpsim.system.cluster import connect, workers_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from cpsim.accounting.books import Books
    from cpsim.accounting.sources import Source

PARTS_A_WORKER: Final = 2


class RollupEngine(Protocol):
    """Computes a rollup into a table of a database that has the views of the same books."""

    def roll_up(self, name: str, books: Books, database: duckdb.DuckDBPyConnection) -> None:
        """Make the table `name` from the rollup of that name."""


class Here:
    """Computes in this process."""

    def roll_up(self, name: str, books: Books, database: duckdb.DuckDBPyConnection) -> None:  # noqa: ARG002
        """Make the table `name` from the rollup of that name."""
        database.execute(f"CREATE TEMP TABLE {name} AS {ROLLUPS[name].query}")


class Cluster:
    """Computes on the workers of a Dask cluster, which must see the files under the same paths.

    Args:
        scheduler: its address, such as tcp://127.0.0.1:8786.

    Raises:
        CpsimError: Dask is not installed, or there is no scheduler or no worker.
    """

    def __init__(self, scheduler: str) -> None:
        self._scheduler = scheduler
        self._client = connect(scheduler)
        self._parts = PARTS_A_WORKER * max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))

    def roll_up(self, name: str, books: Books, database: duckdb.DuckDBPyConnection) -> None:
        """Make the table `name` from the rollup of that name."""
        import pyarrow as pa  # noqa: PLC0415

        numbers = range(self._parts)
        futures = self._client.map(part_of, numbers, name=name, books=books, parts=self._parts, pure=False)
        with workers_errors(self._scheduler):
            parts = pa.concat_tables(self._client.gather(futures))
        database.register("parts", parts)
        database.execute(f"CREATE TEMP TABLE {name} AS {ROLLUPS[name].combined('parts')}")
        database.unregister("parts")

    def close(self) -> None:
        """Disconnect from the cluster."""
        self._client.close()


def part_of(number: int, name: str, books: Books, parts: int) -> pa.Table:
    """One part of a rollup, as a worker computes it."""
    rollup = ROLLUPS[name]
    with (
        tempfile.TemporaryDirectory(prefix="cpsim-") as spill,
        books.open(Path(spill), part=(rollup.by, number, parts)) as database,
    ):
        return database.sql(rollup.query).to_arrow_table()


@contextmanager
def named_errors(source: Source) -> Iterator[None]:
    """Convert the engine's errors to CpsimErrors that name the source, or the file of it that is damaged."""
    name = source.name
    try:
        yield
    except (duckdb.ConversionException, duckdb.OutOfRangeException) as error:
        raise CpsimError(f"{name}: a number is beyond 64 bits: {_first_line(error)}") from error
    except duckdb.OutOfMemoryException as error:
        raise CpsimError(
            f"{name}: not enough memory or disk for this ledger; allow more memory with --memory MB: "
            f"{_first_line(error)}"
        ) from error
    except duckdb.Error as error:
        damage = (duckdb.IOException, duckdb.InvalidInputException, duckdb.SerializationException)
        if type(error) is not duckdb.Error and not isinstance(error, damage):
            raise  # a query is wrong, which may be the user's own
        for file in (source.slots, source.accounts, source.journal, source.received):
            if file is not None:
                check_whole(file)
        raise CpsimError(f"{name} is damaged or cut short: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
