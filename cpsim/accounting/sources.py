"""Sources of accounts: a run folder or a folder of those, a fake's store, an export, or a running fake."""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from cpdaemon.endpoint import UrlEndpoint, parse_endpoint
from cpsim.accounting import partial
from cpsim.accounts.pages import slot_pages
from cpsim.accounts.sources import PAUSE_S
from cpsim.clock import SYSTEM_CLOCK
from cpsim.errors import CpsimError
from cpsim.evidence import past
from cpsim.evidence.files import EVIDENCE, LEDGER, EvidenceFolder
from cpsim.evidence.past import RUN, SEARCH, RunState
from cpsim.net.control import ControlClient
from cpsim.net.http.client import fetch
from cpsim.protocol import arguments as typed
from cpsim.system.checks import WrongArgument
from cpsim.system.parquet import opened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cpsim.accounts.sources import AccountsSource
    from cpsim.accounts.view import View
    from cpsim.evidence.past import PastRun

SLOT_COLUMNS: Final = {
    **dict.fromkeys(("project", "slot", "state", "machine", "user", "reason"), "VARCHAR"),
    **dict.fromkeys(("credits", "min", "max", "granted", "allocated_us", "expires_us", "settled_us"), "BIGINT"),
    "counters": "MAP(VARCHAR, BIGINT)",
    "meta": "MAP(VARCHAR, VARCHAR)",
}
ACCOUNT_COLUMNS: Final = {
    **dict.fromkeys(("project", "kind", "id", "user"), "VARCHAR"),
    "credits": "BIGINT",
    "counters": "MAP(VARCHAR, BIGINT)",
    "waiting_credits": "BIGINT",
    "waiting_counters": "MAP(VARCHAR, BIGINT)",
}
JOURNAL_COLUMNS: Final = {
    **dict.fromkeys(("slot", "kind", "outcome"), "VARCHAR"),
    **dict.fromkeys(("sent_us", "answered_us"), "BIGINT"),
}
ARGUMENT_COLUMNS: Final = {"arguments", *(field.name for field in typed.fields())}
"""A journal has some of these, or, of an earlier version, the first."""
RECEIVED_COLUMNS: Final = ("project", "slot", "kind", "outcome", "error")
RECEIVED: Final = pa.schema(
    [
        *((name, pa.string()) for name in RECEIVED_COLUMNS),
        ("at_us", pa.int64()),
        ("readable", pa.bool_()),
        *typed.fields(),
    ]
)
"""A row per command that a server received; `readable` unless an argument is not of the type that the protocol has."""
SQLITE: Final = b"SQLite format 3\0"
SPOOL: Final = b"spoo"
"""What marks a daemon's spool (see `cpsim.store.log`), which holds commands and no accounts."""
TIMEOUT_S: Final = 60.0
READINGS: Final = 3
"""How often the tables of a server are read, at most, until nothing has changed meanwhile."""


@dataclass(frozen=True, slots=True)
class Source:
    """Accounts as files.

    Attributes:
        kind: "run folder", "store", "export", "running server" or "accounts".
        name: path or URL, as the user gave it; of a folder of runs, that of the run.
        slots: Parquet with a row per slot, as `cpsim.server.control.export` has it.
        accounts: Parquet with a row per machine and user, if there is any.
        journal: Parquet with a row per operation that a client sent, or None.
        received: Parquet with a row per command that the server received, or None.
        totals: the server's totals of each project, or None.
        run: `run.json`, of a run folder.
        now_us: the server's time, or None.
        note: sentences on what is missing.
        has_times: whether it is known when slots were allocated and settled.
    """

    kind: str
    name: str
    slots: Path
    accounts: Path | None = None
    journal: Path | None = None
    received: Path | None = None
    totals: dict[str, dict[str, Any]] | None = None
    run: dict[str, Any] | None = None
    now_us: int | None = None
    note: str = ""
    has_times: bool = True


def gather(where: str | Path | AccountsSource, folder: Path, token: str | None = None) -> Source:
    """Find accounts, and convert them to Parquet.

    Args:
        where: a path, the URL of a running fake, or a source of anybody's accounts.
        folder: takes converted files.
        token: of the control API at the URL, if it needs one.

    Raises:
        CpsimError: there are none, they are damaged, or a store is in use.
    """
    if isinstance(where, str) and where.startswith(("http://", "https://")):
        return _running(where, folder, token)
    if not isinstance(where, str | Path) and not callable(getattr(where, "read", None)):
        raise WrongArgument(f"where is {where!r}, and must be a path, a URL or a source of accounts")
    if not isinstance(where, str | Path):
        return _of_view(Source("accounts", str(where), folder), where.read(PAUSE_S), folder, SYSTEM_CLOCK.now_us())
    path = Path(where)
    if path.is_dir():
        return _folder(path, folder)
    if not path.exists():
        raise CpsimError(f"{path}: no such file or folder; name a run folder, a store, an export or a server's URL")
    if not path.is_file():
        raise CpsimError(f"{path} is neither a file nor a folder; name the URL of a server whose accounts are meant")
    with path.open("rb") as file:
        head = file.read(72)
    if head.startswith(SQLITE) and not head.endswith(SPOOL):
        return _store(path, folder)
    if path.suffix == ".jsonl":
        return _lines(path, folder)
    if path.suffix == ".parquet":
        return _tables("export", str(path), path)
    raise CpsimError(
        f"{path} holds no accounts: expected a run folder, a store (cpsim serve --store), or an export "
        "(slots.parquet, ledger.jsonl)"
    )


def check_table(path: Path, columns: Mapping[str, str]) -> list[str]:
    """The names of a table's columns.

    Args:
        path: the table.
        columns: columns that it must have, and their types in DuckDB.

    Raises:
        CpsimError: it is not whole Parquet, or has not these columns.
    """
    with opened(path) as file:
        schema: pa.Schema = file.schema_arrow
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise CpsimError(f"{path} is another kind of table: it has no column {', '.join(missing)}")
    for name, kind in columns.items():
        found = schema.field(name).type
        if not _is_of(found, kind):
            raise CpsimError(f"{path} is another kind of table: its column {name} is {found}, expected {kind}")
    names: list[str] = schema.names
    return names


def check_whole(path: Path) -> None:
    """Read a table; raises CpsimError if it is damaged."""
    with opened(path) as file:
        for _ in file.iter_batches():
            pass


def _is_of(found: pa.DataType, kind: str) -> bool:
    """Whether a column's values can be read as a type of DuckDB."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_null(found):
        return True
    if kind.startswith("MAP"):
        return bool(pa.types.is_map(found))
    if kind == "VARCHAR":
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found))
    return bool(pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found))


def _of_view(source: Source, view: View, folder: Path, at_us: int) -> Source:
    """A source with the tables of a view."""
    slots, accounts, has_times, note = partial.write(view, source.name, folder, at_us)
    return replace(source, slots=slots, accounts=accounts, has_times=has_times, note=note)


def _folder(path: Path, folder: Path) -> Source:
    run = path / "run.json"
    if run.is_file():
        return _run_folder(path, run, folder)
    if (path / "slots.parquet").is_file():
        return _tables("export", str(path), path / "slots.parquet")
    if (path / "ledger.jsonl").is_file():
        raise CpsimError(f"{path} holds an export as JSON lines; name the file: {path / 'ledger.jsonl'}")
    runs = [] if (path / SEARCH).is_file() else [run for run in past.find(path) if run.state == RunState.RUN]
    if runs:
        return _newest(path, runs, folder)
    raise CpsimError(
        f"{path} is not a run folder: it has no run.json. A run folder is what cpsim run writes; an export's folder "
        "has slots.parquet"
    )


def _newest(path: Path, runs: Sequence[PastRun], folder: Path) -> Source:
    """The newest run in a folder whose accounts were seen: at one server, they contain those of the earlier ones."""
    seen = [run for run in runs if (run.path / LEDGER).is_file()]
    if not seen:
        raise CpsimError(
            f"{path} holds {len(runs)} runs, and none of them could see the server's slots: report on the server itself"
        )
    source = _run_folder(seen[0].path, seen[0].path / RUN, folder)
    which = "the newest" if seen[0] is runs[0] else "the newest whose accounts were seen"
    of_how_many = f"{path} holds {len(runs)} runs, and this is {which}: {seen[0].path.name}."
    return replace(source, note=f"{of_how_many} {source.note}".strip())


def _run_folder(path: Path, run: Path, folder: Path) -> Source:
    ledger, journal = path / "ledger.parquet", path / "journal.parquet"
    try:
        document = json.loads(run.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CpsimError(f"{run} is damaged or cut short: {error}") from error
    if not isinstance(document, dict):
        raise CpsimError(f"{run} is not what cpsim run writes: expected an object")
    if not ledger.is_file():
        raise CpsimError(
            f"{path} has no ledger.parquet: that run could not see the server's slots. Run it with --server at a "
            "server that has the control API, or with --accounts, or report on the server itself"
        )
    if journal.is_file():
        if not {*check_table(journal, {})} & ARGUMENT_COLUMNS:
            raise CpsimError(f"{journal} is another kind of table: it has no column of arguments")
        check_table(journal, JOURNAL_COLUMNS)
    source = Source("run folder", str(path), ledger)
    if (path / EVIDENCE).is_file() and (view := EvidenceFolder(path).partial_view()) is not None:
        try:
            started = datetime.fromisoformat(document["started"])
        except (ValueError, LookupError, TypeError) as error:
            raise CpsimError(f"{run} is damaged: it does not say when the run started") from error
        source = _of_view(source, view, folder, int(started.timestamp() * 1e6))
    else:
        source = _tables(source.kind, source.name, ledger)
    if step_s := document.get("virtual_step_s"):
        resolution = (
            f"The run was in virtual time, whose clock jumped by up to {step_s:,.6g} s: the times of slots are early "
            "by up to that, and how long they took is right to within it."
        )
        source = replace(source, note=f"{source.note} {resolution}".strip())
    return replace(source, journal=journal if journal.is_file() else None, run=document)


def _tables(kind: str, name: str, slots: Path) -> Source:
    """An export: a table of slots, and beside it one of accounts, if it is there."""
    accounts = slots.with_name("accounts.parquet")
    check_table(slots, SLOT_COLUMNS)
    if not accounts.is_file():
        note = f"There is no {accounts.name} beside {slots.name}: owners and balances are unknown."
        return Source(kind, name, slots, note=note)
    check_table(accounts, ACCOUNT_COLUMNS)
    return Source(kind, name, slots, accounts)


def _store(path: Path, folder: Path) -> Source:
    """A store that no server has open, as of its last change; nothing is written to it."""
    from cpsim.server.control.inspection import Inspector  # noqa: PLC0415 - only a store needs a server to be read
    from cpsim.server.service import AccountServer  # noqa: PLC0415
    from cpsim.server.store import Store  # noqa: PLC0415

    try:
        store = Store(path)
    except CpsimError as problem:
        hint = "; or report on the server that has it open, by its URL" if "in use" in str(problem) else ""
        raise CpsimError(f"{problem}{hint}") from problem
    try:
        kept = store.snapshot()
        quirks, now_us = kept.quirks, kept.at_us
        for at_us, what, arguments in store.changes():
            now_us = max(now_us, at_us)
            if what == "behave":
                quirks = arguments[0]
        last_us = now_us
        inspector = Inspector(AccountServer({}, lambda: last_us, frozenset(quirks), store=store))
        (folder / "slots.parquet").write_bytes(inspector.slots_parquet())
        (folder / "accounts.parquet").write_bytes(inspector.accounts_parquet())
        totals = msgspec.to_builtins(inspector.totals())["projects"]
    finally:
        store.close()
    source = _tables("store", str(path), folder / "slots.parquet")
    return replace(source, totals=totals, now_us=now_us)


def _lines(path: Path, folder: Path) -> Source:
    """`ledger.jsonl`, made into the two tables."""
    slots, accounts = folder / "slots.parquet", folder / "accounts.parquet"
    fields = {"type": "VARCHAR", **SLOT_COLUMNS, **ACCOUNT_COLUMNS}
    try:
        with duckdb.connect(config={"autoinstall_known_extensions": False}) as database:
            lines = database.read_json(  # its types are ours: what is not given is NULL
                glob.escape(str(path)), columns=fields, format="newline_delimited"
            )
            database.register("lines", lines)
            chosen = ", ".join(f'"{name}"' for name in SLOT_COLUMNS)
            database.sql(f"SELECT {chosen} FROM lines WHERE type = 'slot'").write_parquet(str(slots))
            database.sql(
                """SELECT project, type AS kind, coalesce(CASE type WHEN 'machine' THEN machine END, "user") AS id,
                CASE type WHEN 'machine' THEN "user" END AS "user", credits, counters, waiting_credits, waiting_counters
                FROM lines WHERE type IN ('machine', 'user')"""
            ).write_parquet(str(accounts))
    except duckdb.Error as error:
        raise CpsimError(f"{path} is not the ledger as JSON lines: {str(error).splitlines()[0]}") from error
    return _tables("export", str(path), slots)


def _running(url: str, folder: Path, token: str | None) -> Source:
    server = parse_endpoint(url)
    assert isinstance(server, UrlEndpoint)
    control = _control(server, token)
    totals = control.totals()["projects"]
    for _ in range(READINGS):
        _read_tables(control, server, folder)
        before, totals = totals, control.totals()["projects"]
        if before == totals:
            break
    source = _tables("running server", url, folder / "slots.parquet")
    now_us, _ = control.clock()
    received = folder / "received.parquet"
    try:
        with pq.ParquetWriter(received, RECEIVED) as writer:
            for project in control.projects():
                for commands in control.journal(project):
                    writer.write_table(_received(project, commands))
    except CpsimError as problem:  # the accounts are there all the same
        return replace(source, totals=totals, now_us=now_us, note=f"The server's journal cannot be read: {problem}.")
    return replace(source, received=received, totals=totals, now_us=now_us)


def _read_tables(control: ControlClient, server: UrlEndpoint, folder: Path) -> None:
    """Write the tables of a server, of which slots come page by page."""
    pages = slot_pages(control, server, CpsimError)
    first, accounts = next(pages, None), control.table("accounts.parquet")
    if first is None or accounts is None:
        lines = folder / "ledger.jsonl"
        lines.write_bytes(control.ledger())
        _lines(lines, folder)
        return
    (folder / "accounts.parquet").write_bytes(accounts)
    with pq.ParquetWriter(folder / "slots.parquet", first.schema) as writer:
        for page in chain([first], pages):
            writer.write_table(page)


def _control(server: UrlEndpoint, token: str | None) -> ControlClient:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def ask(method: str, path: str, body: bytes, *, slowly: bool) -> tuple[int, bytes]:
        del slowly
        status, answer = fetch(server, method, path, body, headers=headers, connect_s=TIMEOUT_S, timeout_s=TIMEOUT_S)
        if status == 401:
            raise CpsimError(f"{server} asks for the token of its control API: name its file with --control-token-file")
        return status, answer

    return ControlClient(ask, CpsimError, f" on {server}")


def _received(project: str, commands: list[dict[str, Any]]) -> pa.Table:
    """Commands that a server received for a project, as `RECEIVED`."""
    rows = [(command, dict(command["arguments"])) for command in commands]
    slots = [arguments.pop("slot", None) for _, arguments in rows]
    read = [(command["kind"], *typed.readable(command["kind"], arguments)) for command, arguments in rows]
    return pa.Table.from_arrays(
        [
            pa.array([project] * len(rows), pa.string()),
            pa.array([None if slot is None else str(slot) for slot in slots], pa.string()),
            pa.array([kind for kind, _, _ in read], pa.string()),
            pa.array(["accepted" if each["refusal"] is None else "refused" for each, _ in rows], pa.string()),
            pa.array([each["refusal"] for each, _ in rows], pa.string()),
            pa.array([each["at_us"] for each, _ in rows], pa.int64()),
            pa.array([readable for _, _, readable in read], pa.bool_()),
            *typed.of_rows([(kind, given) for kind, given, _ in read]),
        ],
        schema=RECEIVED,
    )
