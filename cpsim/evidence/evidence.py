"""The evidence of a run: what was sent, what was answered, and what was seen of the accounts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.scenario.workload import KIND_NAMES, numbers_of_ids
from cpsim.system.external_sort import places_by_group
from cpsim.system.growing import gathered
from cpsim.system.mapped import NoRoom, let_go, stretches, taken, taken_anywhere
from cpsim.system.mapped_rows import MappedRows, pieces
from cpsim.system.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from cpdaemon.endpoint import Endpoint
    from cpsim.accounts.view import View
    from cpsim.scenario.workload import Workload

    Ints = npt.NDArray[np.int64]

PARTITION: Final = 250_000
"""Operations of a partition, about."""
ROWS_AT_ONCE: Final = 65_536
"""Rows of a file that are in memory while they are put in partitions or in another file."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading of the server's clock over the network.

    Attributes:
        sent_ns: when the request was sent, on the local monotonic clock.
        received_ns: when the answer arrived.
        shown_us: the server's time, in microseconds since 1970.
        rate: the server's rate, as a multiple of real time.
    """

    sent_ns: int
    received_ns: int
    shown_us: int
    rate: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What was seen of the accounts after a replay.

    Attributes:
        from_ns, to_ns: when they were read, in nanoseconds since the replay began.
        view: what the server shows; None if it shows no more than which slots are outstanding.
        outstanding: the ids of slots that are not settled, if there is no view.
        meanwhile: what claims granted while the accounts were read, by project and name, where a server tells it.
    """

    from_ns: int
    to_ns: int
    view: View | None = None
    outstanding: frozenset[str] | None = None
    meanwhile: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class Imbalance(NamedTuple):
    """A sum of the accounts that is not what it should be.

    Attributes:
        law: which conservation law it breaks.
        project: whose accounts these are.
        subject: the machine whose sum it is; "" for the project's.
        name: credits, or a counter's name.
        amount: how much there is too much; negative if too little.
    """

    law: str
    project: str
    subject: str
    name: str
    amount: int


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What a run leaves behind, in whole microseconds. Times are nanoseconds since the replay began.

    Attributes:
        workload: what was to be sent. A partition has only operations that were sent.
        slot_prefix: the beginning of slot ids.
        fresh: whether no other run uses that prefix.
        embedded: whether the endpoint was a fake of the run's own.
        endpoint: a daemon or a server.
        project: whose slots they are; None if no accounts could be looked at.
        records: one per operation sent, in the order of the operations (dtype RECORD_TYPE).
        errors: the texts that `records["error"]` indexes.
        answers: int64[kinds, errors], how many operations of each kind had each error; the first error is none.
        schedule_us: when each operation was due, in microseconds; None if they had no due times.
        virtual_ns: when each operation was sent on the scenario's clock, in virtual time; else None.
        start_ns: when the replay began, on the local monotonic clock.
        elapsed_s: from the first send to the last answer.
        interrupted: whether it was ended before its end.
        unsent: operations that were not sent.
        gaps: sentences: what the driver knows to be missing.
        faults, firings: the faults set during the replay with their counts, and each firing of one.
        faults_unknown: why those could not be read; "" if they could.
        readings: of the server's clock.
        clock_unknown: why there are none; "" if there are.
        before: the sums that did not agree before the replay; None if nobody looked.
        seen: the accounts afterwards; None if they could not be seen.
        read_slots: reads the rows of slots that the view in `seen` does not have; None if it has them.
        unseen: why they could not be seen, though there is a server; "" if there is none, or they could.
        command: the command line that repeats the run; "" if there is none.
        quirks: names of the quirks that the target is known to have.
        in_parts: the number of partitions; None for as many as there should be.
        numbers: of a share of a workload, int64[operations], the numbers of its operations in the whole; else None.
        kept: what was made of the same records for another look at them.
    """

    workload: Workload
    slot_prefix: str
    fresh: bool
    embedded: bool
    endpoint: Endpoint
    project: str | None
    records: npt.NDArray[np.void]
    errors: Sequence[str]
    answers: Ints
    schedule_us: Ints | None = None
    virtual_ns: Ints | None = None
    start_ns: int = 0
    elapsed_s: float = 0.0
    interrupted: bool = False
    unsent: int = 0
    gaps: tuple[str, ...] = ()
    faults: tuple[Mapping[str, Any], ...] = ()
    firings: tuple[Mapping[str, Any], ...] = ()
    faults_unknown: str = ""
    readings: tuple[Reading, ...] = ()
    clock_unknown: str = ""
    before: tuple[Imbalance, ...] | None = None
    seen: Seen | None = None
    read_slots: Callable[[], pa.Table | None] | None = None
    unseen: str = ""
    command: str = ""
    quirks: frozenset[str] = frozenset()
    in_parts: int | None = None
    numbers: Ints | None = None
    kept: _Kept = field(default_factory=lambda: _Kept(), repr=False)  # noqa: PLW0108 - it is defined below

    @property
    def view(self) -> View | None:
        """What the server showed of its accounts; None if nothing, or no more than which slots are outstanding."""
        view = None if self.seen is None else self.seen.view
        return view if view is None or self.read_slots is None else replace(view, slots=self.read_slots())

    @property
    def projects(self) -> tuple[str, ...]:
        """Whose slots they are; none if no accounts could be looked at."""
        return self.workload.projects or (() if self.project is None else (self.project,))

    @property
    def ledger(self) -> pa.Table | None:
        """The server's slots; None if they were not seen."""
        return None if self.view is None else self.view.slots

    @property
    def count(self) -> int:
        """The number of partitions."""
        return self.in_parts or max(1, -(-len(self.workload) // PARTITION))

    def partitions(self) -> Iterator[Evidence]:
        """The evidence by partitions of slots, each with all that concerns its slots."""
        if self.count == 1:
            yield self
            return
        slots_of = self.slots_by_partition()
        for index in range(self.count):
            yield self.part(index).with_slots(slots_of(index))
            let_go()

    def part(self, index: int) -> Evidence:
        """The evidence of a partition, with the whole ledger; made once, if there is room for a file."""
        shelf = self.kept.of(self.records).shelf
        part = shelf.get((self.count, index))
        if part is None:
            made = self.of_records(self.records_in(index))
            part = made.workload, made.records, made.schedule_us, made.virtual_ns
            shelf.put((self.count, index), part)
        workload, records, schedule_us, virtual_ns = part
        return replace(
            self,
            workload=workload,
            records=records,
            schedule_us=schedule_us,
            virtual_ns=virtual_ns,
            in_parts=1,
            numbers=None,
            kept=_Kept(),
        )

    def operations_in(self, part: int) -> Ints:
        """The numbers of the workload's operations in a partition."""
        return self._in_partition(part, "operations", len(self.workload), self.workload.slot.__getitem__)

    def records_in(self, part: int) -> Ints:
        """The places of the records in a partition."""
        slot, ops = self.workload.slot, self.records["op"]
        return self._in_partition(part, "records", len(ops), lambda where: slot[ops[where]])

    def slots_by_partition(self) -> Callable[[int], pa.Table | None]:
        """A function for the rows of the ledger in a partition, see `by_partition`."""
        kept, prefix = self.kept.of(self.records), None if self.workload.slot_ids else self.slot_prefix
        slots_of: Callable[[int], pa.Table | None] = kept.once(
            ("ledger", self.count), self.ledger, lambda: by_partition(self.ledger, self.count, prefix)
        )
        return slots_of

    def counts_in(self, part: int) -> tuple[int, int]:
        """How many operations of a partition were to be sent, and how many were."""
        return len(self.operations_in(part)), len(self.records_in(part))

    def _in_partition(
        self, part: int, name: str, total: int, slots_at: Callable[[slice], npt.NDArray[np.int32]]
    ) -> Ints:
        """The places of operations or records in a partition, which are put in partitions once."""
        numbers, count = self.workload.slot_numbers, self.count

        def made() -> tuple[Ints, Ints]:
            return places_by_group(total, lambda where: taken_anywhere(numbers, slots_at(where)) % count, count)

        places, bounds = self.kept.of(self.records).once((name, count), self.workload.slot, made)
        found: Ints = places[bounds[part] : bounds[part + 1]]
        return found

    def with_slots(self, slots: pa.Table | None) -> Evidence:
        """The evidence with other slots in its view, if it has one."""
        if self.seen is None or self.seen.view is None:
            return self
        seen = replace(self.seen, view=replace(self.seen.view, slots=slots))
        return replace(self, seen=seen, read_slots=None)

    def of_slots(self, slots: Sequence[int]) -> Evidence:
        """The evidence of some slots of the workload, by their places in it."""
        slot, ops = self.workload.slot, self.records["op"]
        chosen = (where.start + np.flatnonzero(np.isin(slot[ops[where]], slots)) for where in stretches(len(ops)))
        return self._of_records(gathered(chosen, np.int64))

    def head(self) -> Evidence:
        """The evidence without operations: what concerns no single slot."""
        return self._of_records(np.empty(0, np.int64))

    def of_records(self, chosen: npt.NDArray[np.intp]) -> Evidence:
        """The evidence of some records, with no operations, slots and arguments but theirs."""
        part = self._of_records(chosen)
        return replace(part, workload=part.workload.on_its_own())

    def _of_records(self, chosen: npt.NDArray[np.intp]) -> Evidence:
        """The evidence of some records, with no operations but theirs."""
        records = taken(self.records, chosen)
        ops = records["op"].copy()
        records["op"] = np.arange(len(ops))
        return replace(
            self,
            in_parts=None,
            numbers=None,
            kept=_Kept(),
            workload=self.workload.of_operations(ops),
            records=records,
            schedule_us=None if self.schedule_us is None else taken(self.schedule_us, ops),
            virtual_ns=None if self.virtual_ns is None else taken(self.virtual_ns, ops),
        )


class _Kept:
    """What was made of some records, once for all who look at them; nothing as soon as there are other records."""

    def __init__(self) -> None:
        self._records: npt.NDArray[np.void] | None = None
        self._made: dict[tuple[str, int], tuple[object, Any]] = {}
        self.shelf = Shelf()

    def of(self, records: npt.NDArray[np.void]) -> _Kept:
        """This, or a new one if it is not of these records."""
        if self._records is None:
            self._records = records
        if self._records is records:
            return self
        other = _Kept()
        other._records = records
        return other

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        """Another process has nothing of it."""
        return _Kept, ()

    def once(self, name: tuple[str, int], source: object, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever
        """What is made of a source in so many partitions, which is made again only for another source."""
        known = self._made.get(name)
        if known is None or known[0] is not source:
            known = self._made[name] = source, make()
        return known[1]


def links_of(workload: Workload) -> dict[str, str]:
    """The owner of each of a workload's machines that has one."""
    machines, users = workload.machines, workload.users
    return {machines[m]: users[u] for m, u in enumerate(workload.owner.tolist()) if u >= 0}


def by_partition(slots: pa.Table | None, count: int, slot_prefix: str | None) -> Callable[[int], pa.Table | None]:
    """Put the rows of a ledger in partitions; each is read once for all of them, if there is room for a file.

    Args:
        slots: the ledger; None if there is none.
        count: the number of partitions.
        slot_prefix: the beginning of slot ids; None if ids are kept.

    Returns:
        A function for the rows of a partition, in the order of the ledger. The first has all rows of other slots, too.
    """
    if count == 1 or slots is None:
        return lambda _: slots
    try:
        return _written_by_partition(slots, count, slot_prefix)
    except NoRoom:

        def chosen(index: int) -> Iterator[pa.Table]:
            yield slots.slice(0, 0)
            for piece in pieces(slots, ROWS_AT_ONCE):
                yield piece.filter(pa.array(_numbers_of(piece["slot"], slot_prefix) % count == index))

        return lambda index: pa.concat_tables(chosen(index))


def _written_by_partition(slots: pa.Table, count: int, slot_prefix: str | None) -> Callable[[int], pa.Table]:
    """Put the rows of a ledger in partitions in a file; raises NoRoom."""
    batches: list[list[int]] = [[] for _ in range(count)]
    numbers = itertools.count()
    with MappedRows(slots.schema) as rows:
        for piece in pieces(slots, ROWS_AT_ONCE):
            whose = _numbers_of(piece["slot"], slot_prefix) % count
            order = np.argsort(whose, kind="stable")
            ordered = piece.combine_chunks().take(pa.array(order))
            bounds = np.searchsorted(whose[order], np.arange(count + 1)).tolist()
            for index, (start, end) in enumerate(itertools.pairwise(bounds)):
                if start < end:
                    rows.add(ordered.slice(start, end - start))
                    batches[index].append(next(numbers))
        written = rows.unmapped_batches()
    return lambda index: pa.Table.from_batches(map(written.get_batch, batches[index]), slots.schema)


def _numbers_of(ids: pa.ChunkedArray, slot_prefix: str | None) -> Ints:
    """The number of the slot of each id, which has a prefix unless ids are kept; any for other ids."""
    if slot_prefix is None:
        return numbers_of_ids(ids.to_pylist())
    prefix = f"{slot_prefix}-"
    ends = pc.utf8_slice_codeunits(ids, len(prefix))
    ours = pc.and_(pc.starts_with(ids, prefix), pc.match_substring_regex(ends, r"^[0-9]{1,18}$"))
    numbers: Ints = np.asarray(pc.cast(pc.if_else(ours, ends, "0"), pa.int64()))
    return numbers


def tally(kind: npt.NDArray[np.uint8], records: npt.NDArray[np.void], errors: Sequence[str]) -> Ints:
    """How many operations of each kind had each error: int64[kinds, errors], from the kind of each operation."""
    answers = np.zeros((len(KIND_NAMES), len(errors)), np.int64)
    for where in stretches(len(records)):
        piece = records[where]
        places = kind[piece["op"]].astype(np.int64) * len(errors) + piece["error"]
        answers += np.bincount(places, minlength=answers.size).reshape(answers.shape)
    return answers
