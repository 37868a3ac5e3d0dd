"""The files of a run's evidence in its run folder: judged again from them, it has the same verdict.

`workload.parquet` has what was to be sent, `journal.parquet` what was sent and answered; `ledger.parquet` and
`accounts.parquet` what the server showed, and `evidence.json` all the rest. In the first three, the rows of a partition
of slots stand together; `evidence.json` says in which row groups. Of a run that was cut short, see
`cpsim.evidence.unfinished`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpdaemon.endpoint import parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.accounts.view import CONTRACTS, UnfitTable, View
from cpsim.errors import CpsimError, in_one_line
from cpsim.evidence.evidence import ROWS_AT_ONCE, Evidence, Imbalance, Reading, Seen, by_partition
from cpsim.evidence.journal import RECORD_TYPE, OperationOutcome
from cpsim.evidence.past import PARTIAL
from cpsim.evidence.unfinished import UNFINISHED, Answered, answered, bound_times, count_in
from cpsim.protocol import arguments
from cpsim.scenario.formats import columns
from cpsim.scenario.formats.arrow import ascending, places_of
from cpsim.scenario.values import ScenarioError
from cpsim.system.mapped import let_go
from cpsim.system.mapped_rows import MappedRows
from cpsim.system.parquet import checked, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    import numpy.typing as npt


EVIDENCE: Final = "evidence.json"
WORKLOAD: Final = "workload.parquet"
JOURNAL: Final = "journal.parquet"
LEDGER: Final = "ledger.parquet"
ACCOUNTS: Final = "accounts.parquet"
VERSION: Final = 1
"""Of the format of `evidence.json`."""
ROWS: Final = 262_144
"""Rows of a row group: a partition has one, for who reads a file has 20 to 40 kB of its footer for each in memory."""
ID: Final = pa.field("id", pa.int64())
"""The column that numbers the operations of a workload, in its file and in the journal."""
JOURNAL_SCHEMA: Final = pa.schema(
    [
        ID,
        ("slot", pa.string()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("due_us", pa.int64()),
        ("sent_us", pa.int64()),
        ("answered_us", pa.int64()),
        ("scenario_us", pa.int64()),
        ("outcome", pa.dictionary(pa.int8(), pa.string())),
        ("error", pa.dictionary(pa.int16(), pa.string())),
        *arguments.fields(),
    ]
)
PROJECT: Final = pa.field("project", pa.dictionary(pa.int8(), pa.string()))
"""An additional column, if the workload has several projects."""
VIRTUAL: Final = pa.field("virtual_us", pa.int64())
"""An additional column in virtual time: when the operation was sent on the scenario's clock."""
INTEGERS: Final = ("id", "due_us", "sent_us", "answered_us", "scenario_us")
OUTCOMES: Final = tuple(outcome.name.lower() for outcome in OperationOutcome)
ANY_TIME_NS: Final = 2**62
"""The end of a time of which nobody knows the end."""
READ: Final = ("id", "due_us", "sent_us", "answered_us", "outcome", "error")
"""The journal's columns that are evidence beside the workload."""
REPEATED: Final = frozenset(
    {"project", "state", "machine", "user", "reason", "counters.key_value.key", "meta.key_value.key"}
)
"""The ledger's columns whose texts repeat."""
FACTS: Final = (
    *("slot_prefix", "fresh", "embedded", "project", "errors", "start_ns", "elapsed_s", "interrupted", "unsent"),
    *("gaps", "faults", "firings", "faults_unknown", "clock_unknown", "unseen", "command"),
)
"""What `evidence.json` has of the evidence as it is."""


class EvidenceFolder:
    """The evidence in a run folder, read partition by partition.

    Args:
        path: the run folder.
        later: accounts as of some time after the run, in place of those that the run saw.
        until_ns: the end of that time, in nanoseconds since the replay began.
        project: whose slots they show; None for the project that the run knew.
        quirks: those that the target is known to have; None for those that the run knew.

    Attributes:
        path: the run folder.
        digest: of `evidence.json`: another run folder has another one.
        count: the number of partitions.
        is_unfinished: whether the run was cut short, or goes on; there is no `journal.parquet`.

    Raises:
        CpsimError: it is no run folder, or an earlier version wrote it, or a file is missing or damaged.
    """

    def __init__(
        self,
        path: Path,
        later: View | None = None,
        until_ns: int = ANY_TIME_NS,
        *,
        project: str | None = None,
        quirks: frozenset[str] | None = None,
    ) -> None:
        self.path = path
        self._later, self._until_ns = later, until_ns
        self._metadata: dict[str, pq.FileMetaData] = {}
        try:
            text = (path / EVIDENCE).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CpsimError(_no_evidence(path)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise CpsimError(f"{path / EVIDENCE} cannot be read: {error}") from error
        try:
            self._document: dict[str, Any] = json.loads(text)
            if (version := self._document["version"]) != VERSION:
                raise CpsimError(f"{path / EVIDENCE} has format {version}, and this version of cpsim reads {VERSION}")
            self._ranges = [
                (range(*part[WORKLOAD]), range(*part[JOURNAL]), range(*part[LEDGER]) if LEDGER in part else None)
                for part in self._document["partitions"]
            ]
            self.count = len(self._ranges)
            self._stand_together = later is None and self._ranges[0][2] is not None  # the ledger's rows of a partition
            self._facts = self._read_facts()
            if later is not None:
                self._facts |= {"unseen": "", "project": project or self._facts["project"]}
            if quirks is not None:
                self._facts["quirks"] = quirks
            self._shown = self._read_seen()
            self._answered = self._read_answered()
            self.is_unfinished = self._answered is not None
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, EndpointError) as error:
            raise CpsimError(f"{path / EVIDENCE} is damaged: {type(error).__name__}: {error}") from error
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self._check_counts()

    def head(self) -> Evidence:
        """The evidence without operations; the ledger is read when somebody looks at it."""
        head = self._evidence(range(0), range(0), self._seen_of_accounts)
        return head if head.ledger is None else replace(head, read_slots=functools.cache(self._read_slots))

    def partitions(self) -> Iterator[Evidence]:
        """The evidence by partitions of slots."""
        slots_of = self.slots_by_partition()
        for index in range(self.count):
            yield self.partition(index, slots_of(index))
            let_go()

    def partition(self, index: int, slots: pa.Table | None) -> Evidence:
        """The evidence of a partition, and its rows of the ledger by `slots_by_partition`.

        In rows that are read here, `REPEATED` is dictionary-encoded; `with_texts` makes texts of that.
        """
        workload, journal, ledger = self._ranges[index]
        evidence = self._evidence(workload, journal, self._seen_of_accounts)
        if self._stand_together and evidence.ledger is not None:
            names = {"slots": evidence.ledger.column_names}
            slots = _view(self.path, self._table(LEDGER, ledger), None, names, encoded=True).slots
        return evidence.with_slots(slots)

    def slots_by_partition(self) -> Callable[[int], pa.Table | None]:
        """A function for the rows of a partition in the ledger; they are None if `partition` finds them in the file."""
        if self._stand_together:
            return lambda _: None
        prefix = None if self._keeps_ids() else self._facts["slot_prefix"]
        return by_partition(self._read_slots(), self.count, prefix)

    def whole(self) -> Evidence:
        """All of it at once."""
        workload, journal, _ = self._ranges[-1]
        return self._evidence(range(workload.stop), range(journal.stop), self._seen())

    def partial_view(self) -> View | None:
        """What was seen of the accounts, unless it is all that our own server shows, or nothing was."""
        names = None if self._shown is None else self._shown[1]
        ours = {table: contract.schema.names for table, contract in CONTRACTS.items() if table != "projects"}
        seen = None if names is None or names == ours else self._seen()
        return None if seen is None else seen.view

    def _keeps_ids(self) -> bool:
        return "slot" in self._open(WORKLOAD, lambda file: file.schema_arrow.names)

    def _check_counts(self) -> None:
        """Raise CpsimError if a file has another number of operations than were counted."""
        sent = int(self._facts["answers"].sum())
        counts = {WORKLOAD: sent + self._facts["unsent"], **({JOURNAL: sent} if self._answered is None else {})}
        for name, counted in counts.items():
            if (rows := self._open(name, lambda file: file.metadata.num_rows)) != counted:
                raise CpsimError(f"{self.path / name} has {rows:,} operations, and {EVIDENCE} counts {counted:,}")

    def _read_facts(self) -> dict[str, Any]:
        document = self._document
        facts = {name: document[name] for name in FACTS}
        facts["gaps"], facts["faults"], facts["firings"] = (
            tuple(document[name]) for name in ("gaps", "faults", "firings")
        )
        return facts | {
            "endpoint": parse_endpoint(document["endpoint"]),
            "answers": np.array(document["answers"], np.int64).reshape(-1, len(document["errors"])),
            "quirks": frozenset(document.get("quirks", ())),
            "before": _read_before(document),
            "readings": tuple(Reading(**reading) for reading in document["readings"]),
        }

    def _read_answered(self) -> Answered | None:
        """What was answered, by the journals of a run that could not write the whole one; None if it could."""
        unfinished = self._document.get(UNFINISHED)
        processes = count_in(self.path) if unfinished is None else unfinished["processes"]
        if not processes or (unfinished is None and (self.path / JOURNAL).exists()):
            return None

        def read(file: pq.ParquetFile) -> Answered:
            batches = file.iter_batches(ROWS_AT_ONCE, columns=["id", "kind", "number"])
            pieces = (checked(pa.Table.from_batches([batch])) for batch in batches)
            is_over = unfinished is None
            return answered(self.path, processes, pieces, file.metadata.num_rows, is_over=is_over)

        found: Answered = self._open(WORKLOAD, read)
        known = found.facts if unfinished is not None else ("answers", "errors")
        self._facts |= {name: found.facts[name] for name in known}
        return found

    def _read_seen(self) -> tuple[Seen, dict[str, list[str]] | None] | None:
        """What was seen without its tables, and the columns of each that was shown."""
        if (shown := self._document["seen"]) is None:
            return None
        listed, meanwhile = shown["outstanding"], shown.get("meanwhile", {})
        listed = None if listed is None else frozenset(listed)
        return Seen(shown["from_ns"], shown["to_ns"], outstanding=listed, meanwhile=meanwhile), shown["view"]

    @functools.cached_property
    def _seen_of_accounts(self) -> Seen | None:
        """What was seen, without rows of slots."""
        return self._seen(with_slots=False)

    def _read_slots(self) -> pa.Table | None:
        seen = self._seen()
        return seen and seen.view and seen.view.slots

    def _seen(self, *, with_slots: bool = True) -> Seen | None:
        if self._later is not None:
            slots = self._later.slots
            return Seen(
                int(self._facts["elapsed_s"] * 1e9),
                max(int(self._facts["elapsed_s"] * 1e9), self._until_ns),
                self._later if with_slots or slots is None else replace(self._later, slots=slots.slice(0, 0)),
            )
        if self._shown is None:
            return None
        seen, names = self._shown
        view = None
        if names is not None:
            slots = self._open(LEDGER, _mapped) if with_slots and "slots" in names else None
            accounts = self._table(ACCOUNTS) if names.keys() - {"slots"} else None
            view = _view(self.path, slots, accounts, names)
        return replace(seen, view=view)

    def _evidence(self, of_workload: range, of_journal: range, seen: Seen | None) -> Evidence:
        planned = self._table(WORKLOAD, of_workload)
        ids = planned["id"].to_numpy()
        if not np.all(ids[1:] > ids[:-1]):  # several partitions
            planned = planned.take(pa.array(np.argsort(ids)))
            ids = planned["id"].to_numpy()
        try:
            workload = columns.from_table(planned)
        except ScenarioError as error:
            raise CpsimError(f"{self.path / WORKLOAD} is damaged: {error}") from error
        if self._answered is not None:
            records = self._answered.of(ids)
            bound_times(records, workload.slot, self._facts["elapsed_s"])
            virtual_ns = workload.due_us * 1000 if self._document.get("virtual") else None
            return Evidence(workload=workload, records=records, virtual_ns=virtual_ns, seen=seen, **self._facts)
        journal = self._table(JOURNAL, of_journal)
        if len(journal) and not len(planned):
            raise CpsimError(f"{self.path / JOURNAL} has operations that {WORKLOAD} lacks")
        try:
            given = _given_by(journal, ids, self._document["errors"])
        except (LookupError, ValueError, TypeError, pa.ArrowException) as error:
            raise CpsimError(f"{self.path / JOURNAL} is damaged: {in_one_line(error)}") from error
        return Evidence(workload=workload, seen=seen, **given, **self._facts)

    def _table(self, name: str, groups: range | None = None) -> pa.Table:
        """A file, or the row groups that are wanted of it."""

        def read(file: pq.ParquetFile) -> pa.Table:
            if groups is None:
                return checked(file.read())
            names = {*READ, VIRTUAL.name}
            kept = [column for column in file.schema_arrow.names if column in names] if name == JOURNAL else None
            # several threads take more time together, which processes that judge beside this one need; and maps of
            # several row groups are not read with dictionaries
            parts = [[group] for group in groups] or [[]]
            return checked(pa.concat_tables(file.read_row_groups(part, kept, use_threads=False) for part in parts))

        return self._open(name, read, REPEATED if groups is not None and name == LEDGER else frozenset())

    def _open(
        self,
        name: str,
        read: Callable[[pq.ParquetFile], Any],
        encoded: AbstractSet[str] = frozenset(),
    ) -> Any:  # noqa: ANN401 - whatever is read
        path = self.path / name
        try:
            with opened(path, metadata=self._metadata.get(name), encoded=encoded) as file:
                self._metadata[name] = file.metadata
                return read(file)
        except FileNotFoundError:
            raise CpsimError(f"{self.path} has no {name}, which is evidence: the run folder is not whole") from None
        except OSError as error:
            raise CpsimError(f"{path} cannot be read: {in_one_line(error)}") from error


def _given_by(journal: pa.Table, ids: npt.NDArray[np.int64], errors: list[str]) -> dict[str, Any]:
    """What a journal has of evidence, of operations with these ids, which ascend."""
    sent = journal["id"].to_numpy()
    order = ascending(sent)
    ops = np.arange(len(ids)) if np.array_equal(sent, ids) else np.searchsorted(ids, sent[order])
    records = np.empty(len(journal), RECORD_TYPE)
    records["op"] = ops
    for name, texts in (("outcome", OUTCOMES), ("error", errors)):
        records[name] = places_of(journal[name], texts)[order]
    for name in ("sent", "answered"):
        records[f"{name}_ns"] = journal[f"{name}_us"].to_numpy()[order] * 1000

    def by_op(name: str, scale: int) -> npt.NDArray[np.int64] | None:
        if name not in journal.column_names or journal[name].null_count == len(journal) > 0:
            return None
        values = np.zeros(len(ids), np.int64)
        values[ops] = journal[name].to_numpy()[order] * scale
        return values

    return {"records": records, "schedule_us": by_op("due_us", 1), "virtual_ns": by_op(VIRTUAL.name, 1000)}


def _view(
    path: Path,
    slots: pa.Table | None,
    accounts: pa.Table | None,
    names: Mapping[str, list[str]],
    *,
    encoded: bool = False,
) -> View:
    try:
        return View.of_tables(slots, accounts, encoded=encoded).restored(names)
    except (UnfitTable, LookupError, ValueError, TypeError, pa.ArrowException) as error:
        raise CpsimError(f"{path}: {LEDGER} or {ACCOUNTS} is damaged: {error}") from error


def with_texts(evidence: Evidence) -> Evidence:
    """The evidence with no text of its ledger dictionary-encoded."""
    ledger = evidence.ledger
    if ledger is None:
        return evidence
    schema = CONTRACTS["slots"].schema
    return evidence.with_slots(ledger.cast(pa.schema([schema.field(name) for name in ledger.column_names])))


def _read_before(document: Mapping[str, Any]) -> tuple[Imbalance, ...] | None:
    """The sums that did not agree before the replay; none where the run had a server of its own."""
    if (before := document.get("before", [] if document["embedded"] else None)) is None:
        return None
    return tuple(Imbalance(*each) for each in before)


def _mapped(file: pq.ParquetFile) -> pa.Table:
    """The rows of a file, which take no memory."""
    with MappedRows(file.schema_arrow) as rows:
        for batch in file.iter_batches(ROWS_AT_ONCE):
            rows.add(checked(pa.Table.from_batches([batch])))
        return rows.table()


def _no_evidence(path: Path) -> str:
    if (path / "run.json").is_file():
        return (
            f"{path} was written by an earlier version of cpsim, without {EVIDENCE}: repeat the run to judge it again"
        )
    if path.is_dir():
        return f"{path} is not a run folder: it has no {EVIDENCE}"
    if (partial := path.with_name(f"{path.name}{PARTIAL}")).is_dir():
        return f"{path} was not written: judge what there is of it, {partial}"
    return f"{path} is not a run folder: there is no such folder"
