"""The conservation laws on the accounts of a server, as far as it shows them.

Machines earn what claimed slots granted; users have, with what waits, what machines earned. Sums have 64 bits and may
wrap, on all sides alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.evidence.evidence import Imbalance
from cpsim.judge.columns import map_entries, whole
from cpsim.judge.corrections import CREDITS, NONE, WHOLE
from cpsim.judge.granted import SEPARATOR, Granted, is_paid
from cpsim.judge.verdict import Anomaly
from cpsim.scenario.formats.arrow import indices
from cpsim.system.mapped_rows import pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from cpsim.accounts.view import View
    from cpsim.judge.corrections import Amounts
    from cpsim.judge.verdict import Verdict

    Meanwhile = Mapping[str, Mapping[str, int]]
    Bools = npt.NDArray[np.bool_]
    Ints = npt.NDArray[np.int64]

EARNED, HELD, COUNTED = "machines earned", "users and waiting machines hold", "it counted"
"""The laws on the sums of a project: what is to be as much as its claims granted."""
MACHINES, WAITING = "its slots granted", "nothing waits"
"""The laws on each machine: it has what its own slots granted, and nothing waits on it once it has a user."""
ROWS: Final = 65_536
"""Rows summed at a time."""
MACHINES_TRACED: Final = 20
"""Machines whose slots are looked up; each look-up reads all claims."""
SLOTS_NAMED: Final = 5


class Holder(NamedTuple):
    """A machine or a user in a project; without a subject, the project itself."""

    project: str
    subject: str


class _Rows:
    """Rows of a table, read piece by piece with the holder of each: a project id and a machine or user id.

    Args:
        table: none if it is not shown.
        column: of the subjects; without it, the holders are the projects.
        chosen: says which rows of a piece count; by default all.
    """

    def __init__(
        self, table: pa.Table | None, column: str = "", chosen: Callable[[pa.Table], pa.Array] | None = None
    ) -> None:
        self.table = pa.table({"project": pa.array([], pa.string())}) if table is None else table
        self._column = column
        self._chosen = chosen

    def pieces(self, columns: Sequence[str] = ()) -> Iterator[tuple[pa.Table, pa.Array]]:
        """The rows' columns of these names, as far as they are shown, and their holders."""
        shown = self.table.column_names
        chosen = [name for name in dict.fromkeys(("project", self._column, *columns)) if name in shown]
        for piece in pieces(self.table, ROWS):
            rows = piece.select(chosen)
            if self._chosen is not None:
                rows = rows.filter(self._chosen(piece))
            subjects = pc.fill_null(rows[self._column], "") if self._column in shown else ""
            yield rows, whole(pc.binary_join_element_wise(rows["project"], subjects, SEPARATOR))

    def holders(self) -> pa.Array:
        """The distinct holders."""
        found = pa.array([], pa.string())
        for _, holders in self.pieces():
            found = pc.unique(pa.concat_arrays([found, holders]))
        return found


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums by holder and name: int64[holders, names]. Those whose column is not shown are 0, and not compared."""

    holders: list[Holder]
    names: list[str]
    values: Ints
    shown: Bools

    def of_projects(self) -> defaultdict[tuple[str, str], int]:
        """The sums of each project, by (project, name)."""
        projects = sorted({project for project, _ in self.holders})
        codes = {project: code for code, project in enumerate(projects)}
        sums = np.zeros((len(projects), len(self.names)), np.int64)
        np.add.at(sums, [codes[project] for project, _ in self.holders], self.values)
        return defaultdict(
            int,
            {
                (project, name): int(sums[p, n])
                for p, project in enumerate(projects)
                for n, name in enumerate(self.names)
            },
        )


class _Books:
    """The sums of a view, and what they are off by.

    Args:
        view: what a server shows; of its slots, only the columns are looked at.
        granted: what its slots granted.

    Attributes:
        granted, earned, waiting: by machine; of slots, of machines, and of what waits on these.
        owned: by user.
        counted: by project.
    """

    def __init__(self, view: View, granted: Granted) -> None:
        machines, users, projects = _Rows(view.machines, "machine"), _Rows(view.users, "user"), _Rows(view.projects)
        self._machines = machines
        self._shown = [] if view.slots is None or "state" not in view.slots.column_names else view.slots.column_names
        holders = _with_others(machines.holders(), granted.holders)
        names = _counter_names(granted, machines.table, users.table, projects.table)
        has_credits, has_counters = (column in self._shown for column in ("granted", "counters"))
        shown = np.array([has_credits] + [has_counters] * (len(names) - 1))
        self.granted = Sums(_split(holders), names, granted.values_of(holders, names), shown)
        self.earned = _sums(machines, ("credits", "counters"), holders, names)
        self.waiting = _sums(machines, ("waiting_credits", "waiting_counters"), holders, names)
        self.owned = _sums(users, ("credits", "counters"), users.holders(), names)
        self.counted = _sums(projects, ("credits", "counters"), projects.holders(), names)

    @property
    def shows_machines(self) -> bool:
        """Whether each machine can be compared with its own slots."""
        return "machine" in self._shown and bool((self.granted.shown & self.earned.shown).any())

    def of_machines(self) -> Ints:
        """How much more each machine has than its own slots granted: int64[holders, names]."""
        if not self.shows_machines:
            return np.zeros_like(self.granted.values)
        return np.where(self.granted.shown & self.earned.shown, self.earned.values - self.granted.values, 0)

    def of_projects(self) -> Iterator[tuple[str, str, str, int, int]]:
        """Law, project and name, with what claims granted and what there is in its place, where both are shown."""
        granted = self.granted.of_projects()
        laws = {EARNED: [self.earned], HELD: [self.owned, self.waiting], COUNTED: [self.counted]}
        compared = []
        for law, parts in laws.items():
            sums: Counter[tuple[str, str]] = Counter()
            for part in parts:
                sums.update(part.of_projects())
            shown = np.logical_and.reduce([self.granted.shown, *(part.shown for part in parts)])
            names = {name for name, is_shown in zip(self.granted.names, shown, strict=True) if is_shown}
            compared.append((law, sums, names))
        for place in sorted({*granted, *(place for _, sums, _ in compared for place in sums)}):
            project, name = place
            yield from (
                (law, project, name, granted[place], sums[place]) for law, sums, names in compared if name in names
            )

    def of_waiting(self) -> Iterator[tuple[Holder, str, int]]:
        """Machines that have a user and, by name, what waits on them all the same."""
        table = self._machines.table
        if "user" not in table.column_names:
            return
        known = pa.array([SEPARATOR.join(holder) for holder in self.waiting.holders], pa.string())
        rows_of_holders = self._machines.pieces(["user"])
        linked = [holders.filter(whole(pc.is_valid(rows["user"]))) for rows, holders in rows_of_holders]
        places = indices(pa.chunked_array(linked, pa.string()), known)
        for h, n in np.argwhere(self.waiting.values[places]).tolist():
            yield self.waiting.holders[places[h]], self.waiting.names[n], int(self.waiting.values[places[h], n])


def imbalances(view: View, meanwhile: Meanwhile = MappingProxyType({})) -> tuple[Imbalance, ...]:
    """The sums of a view that do not agree, law by law; not those that what was granted `meanwhile` may explain."""
    return tuple(each for each in _imbalances(view) if abs(each.amount) > _of(meanwhile, each))


def _of(meanwhile: Meanwhile, place: Imbalance) -> int:
    return meanwhile.get(place.project, {}).get(place.name, 0)


def _imbalances(view: View) -> tuple[Imbalance, ...]:
    books = _Books(view, Granted.of(view.slots))
    surplus, holders, names = books.of_machines(), books.granted.holders, books.granted.names
    return (
        *(Imbalance(MACHINES, *holders[h], names[n], int(surplus[h, n])) for h, n in np.argwhere(surplus).tolist()),
        *(
            Imbalance(law, project, "", name, has - granted)
            for law, project, name, granted, has in books.of_projects()
            if has != granted
        ),
        *(Imbalance(WAITING, *holder, name, amount) for holder, name, amount in books.of_waiting()),
    )


def judge_books(
    view: View,
    verdict: Verdict,
    owners: Mapping[str, str] | None = None,
    *,
    before: Iterable[Imbalance] | None = (),
    machines: Collection[str] | None = None,
    read_slots: Callable[[], pa.Table | None] | None = None,
    meanwhile: Meanwhile = MappingProxyType({}),
    projects: Collection[str] = (),
) -> None:
    """Check the conservation laws on a whole ledger, with all its projects: those of which both sides are shown.

    Args:
        view: what the server shows.
        verdict: takes the findings; its `corrections` say what known quirks explain.
        owners: machine to user, if these are all the links and came before the first claim.
        before: the sums that did not agree before the run, which is not to blame for them; None if nobody looked.
        machines: those of the run, which are counted; None for all.
        read_slots: reads the slots, where the view has none of their rows and the verdict has what they `granted`.
        meanwhile: what claims granted while the view was read, by project and name: sums may be off by as much.
        projects: those of the run. Of others, sums that may be right for that reason are passed over.
    """
    books = _Books(view, Granted.of(view.slots) if read_slots is None else verdict.granted)
    judged = _JudgedSums(verdict, before, meanwhile, projects)
    if books.shows_machines:
        _judge_machines(books, judged, _Claims(read_slots or (lambda: view.slots)))
        own = [machine for _, machine in books.granted.holders if machines is None or machine in machines]
        verdict.checked["machines"] += len(own)
    for law, project, name, granted, has in books.of_projects():
        verdict.checked["sums"] += 1
        off = judged.since(Imbalance(law, project, "", name, has - granted))
        known = verdict.corrections.of(project, WHOLE, name)
        detail = f"claims granted {granted}, but {law} {has}"
        found = Anomaly("not conserved", f"{name} of project {project}", detail)
        judged.find(off, known.held if law == HELD else known.earned, found, known.quirks)
    for holder, name, amount in books.of_waiting():
        off = judged.since(Imbalance(WAITING, *holder, name, amount))
        detail = f"{amount} {name} wait on it, though it belongs to a user"
        judged.find(off, NONE, Anomaly("not conserved", holder.subject, detail))
    if owners is not None and (books.earned.shown & books.owned.shown).any():
        _judge_users(books.earned, books.owned, owners, verdict)
        verdict.checked["users"] += len(books.owned.holders)
    judged.conclude()


class _JudgedSums:
    """Finds what is off since before the run, beyond what known quirks explain.

    Args:
        verdict: takes the findings.
        before: the sums that did not agree before the run; None if nobody looked.
        meanwhile: what claims granted while the sums were read, by project and name.
        projects: those of the run.
    """

    def __init__(
        self,
        verdict: Verdict,
        before: Iterable[Imbalance] | None,
        meanwhile: Meanwhile,
        projects: Collection[str],
    ) -> None:
        self.verdict = verdict
        self.before = {each[:-1]: each.amount for each in before or ()}
        self._is_blind = before is None
        self._unknown: list[Anomaly] = []
        self._meanwhile = meanwhile
        self._own = {project.lower() for project in projects}
        self._unsettled: list[Anomaly] = []

    def since(self, found: Imbalance) -> Imbalance:
        """By how much more a sum is off than before the run; sums wrap at 64 bits.

        One that agrees is not off at all: the look before may have met commands under way.
        """
        if not found.amount:
            return found
        more = found.amount - self.before.get(found[:-1], 0)
        return found._replace(amount=(more + 2**63) % 2**64 - 2**63)

    def find(self, off: Imbalance, expected: Amounts, found: Anomaly, quirks: frozenset[str] = frozenset()) -> None:
        """Add a sum that is off to the verdict, as what quirks explain or as an anomaly, if this can be told.

        Args:
            off: by how much more it is off than before the run.
            expected: by how much it may be, because of quirks that are known.
            found: the anomaly, if it is one.
            quirks: which quirks these are.
        """
        more = off.amount
        if not more:
            return
        names = " + ".join(sorted(quirks))
        if names:
            amounts = expected.least if expected.least == expected.most else f"{expected.least} to {expected.most}"
            found = replace(found, detail=f"{found.detail}; off by {more}, of which {names} explains {amounts}")
        if expected.admit(more):
            self.verdict.explain_sum(names, found.subject, found.detail)
        elif expected.admit_about(more, _of(self._meanwhile, off)):
            if off.project.lower() in self._own:
                self._unsettled.append(found)
        elif self._is_blind:
            self._unknown.append(found)
        else:
            self.verdict.find(found.name, found.subject, found.detail, found.slots)

    def conclude(self) -> None:
        """Say what nobody can say."""
        if self._unknown:
            first = self._unknown[0]
            self.verdict.not_verified.append(
                f"Whether this run put {len(self._unknown):,} sums out of balance: nobody looked at the accounts "
                f"before it. The first is of {first.subject}: {first.detail}."
            )
        if self._unsettled:
            first = self._unsettled[0]
            self.verdict.not_verified.append(
                f"{len(self._unsettled):,} sums of the accounts: claims that came while they were read granted as much "
                f"as they are off by. The first is of {first.subject}: {first.detail}."
            )


def _judge_machines(books: _Books, judged: _JudgedSums, claims: _Claims) -> None:
    """Each machine has exactly what its own claimed slots granted."""
    granted, earned, surplus = books.granted, books.earned, books.of_machines()
    places = sorted(
        map(tuple, np.argwhere(surplus).tolist()),
        key=lambda place: (granted.holders[place[0]].subject, place),
    )
    machines = {granted.holders[h].subject for h, _ in places}
    of_machine: defaultdict[str, list[int]] = defaultdict(list)
    for h, holder in enumerate(granted.holders):
        if holder.subject in machines:
            of_machine[holder.subject].append(h)
    for h, n in places:
        (project, machine), name = granted.holders[h], granted.names[n]
        wanted, has = int(granted.values[h, n]), int(earned.values[h, n])
        detail = f"in project {project}, its slots granted {wanted} {name}, it has {has}"
        known = judged.verdict.corrections.of(project, machine, name)
        off = judged.since(Imbalance(MACHINES, project, machine, name, int(surplus[h, n])))
        more = off.amount
        sources = [
            granted.holders[other].project
            for other in of_machine[machine]
            if other != h and more > 0 and more in {-int(surplus[other, n]), int(granted.values[other, n])}
        ]
        if sources:
            found = Anomaly("leaked", machine, f"{detail}: the rest is of project {sources[0]}")
        else:
            slots = claims.showing(granted.holders[h], name, more) if more else []
            found = Anomaly(
                "over-credited" if more > known.earned.most else "under-credited", machine, detail, tuple(slots)
            )
        judged.find(off, known.earned, found, known.quirks)


def _judge_users(earned: Sums, owned: Sums, owners: Mapping[str, str], verdict: Verdict) -> None:
    """Each user has what the machines of that user earned."""
    should: defaultdict[Holder, Ints] = defaultdict(lambda: np.zeros(len(earned.names), np.int64))
    for holder, values in zip(earned.holders, earned.values, strict=True):
        owner = owners.get(holder.subject)
        if owner is not None:
            should[Holder(holder.project, owner)] += values
    has = dict(zip(owned.holders, owned.values, strict=True))
    nothing = np.zeros(len(earned.names), np.int64)
    shown = (earned.shown & owned.shown).tolist()
    for user in sorted(should.keys() | has.keys()):
        for name, wanted, found, is_shown in zip(
            earned.names, should.get(user, nothing).tolist(), has.get(user, nothing).tolist(), shown, strict=True
        ):
            if is_shown and found != wanted:
                detail = f"the user's machines earned {wanted} {name}, the user has {found}"
                verdict.find("over-credited" if found > wanted else "under-credited", user.subject, detail)


class _Claims:
    """Finds the claimed slots that show what is wrong with a machine; reads them only then."""

    def __init__(self, read: Callable[[], pa.Table | None]) -> None:
        self._read = read
        self._traces_left = MACHINES_TRACED

    def showing(self, holder: Holder, name: str, difference: int) -> list[str]:
        """The first slot whose grant equals the difference, or else the first slots of the machine, by their ids."""
        if not self._traces_left:
            return []
        self._traces_left -= 1
        column, slots, granted = "granted" if name == CREDITS else "counters", list[str](), []
        for rows, holders in _Rows(self._read(), "machine", is_paid).pieces(["slot", column]):
            own = rows.filter(pc.equal(holders, SEPARATOR.join(holder)))
            slots += own["slot"].to_pylist()
            granted += own[column].to_pylist()
        for slot, value in sorted(zip(slots, granted, strict=True), key=lambda pair: pair[0]):
            if abs(difference) == (value if name == CREDITS else dict(value or ()).get(name)):
                return [slot]
        return sorted(slots)[:SLOTS_NAMED]


def _split(holders: pa.Array) -> list[Holder]:
    return [Holder(*text.split(SEPARATOR, 1)) for text in holders.to_pylist()]


def _with_others(known: pa.Array, found: pa.Array) -> pa.Array:
    """The holders that are known, and the others behind them, sorted, whatever the order in which they were found."""
    others = found.filter(pc.invert(pc.is_in(found, value_set=known)))
    return pa.concat_arrays([known, others.take(pc.sort_indices(others))])


def _counter_names(granted: Granted, *accounts: pa.Table | None) -> list[str]:
    """Credits, and the name of each counter."""
    found = set(granted.names)
    for table in accounts:
        if table is None:
            continue
        columns = [column for column in ("counters", "waiting_counters") if column in table.column_names]
        for piece in pieces(table.select(columns), ROWS):
            found.update(*(pc.unique(map_entries(piece[column])[1]).to_pylist() for column in columns))
    return [CREDITS, *sorted(found - {CREDITS})]


def _sums(rows: _Rows, columns: tuple[str, str], known: pa.Array, names: list[str]) -> Sums:
    """The sums of a column of credits and a column of counters, by holder and name."""
    credits, counters = columns
    has_credits, has_counters = (column in rows.table.column_names for column in columns)
    values = np.zeros((len(known), len(names)), np.int64)
    for chunk, holders in rows.pieces(columns):
        whose = indices(holders, known)
        if has_credits:
            np.add.at(values[:, 0], whose, np.asarray(pc.fill_null(chunk[credits], 0)).astype(np.int64))
        if has_counters:
            offsets, keys, amounts = map_entries(chunk[counters])
            place = np.repeat(whose, np.diff(offsets)) * len(names) + indices(keys, pa.array(names, pa.string()))
            np.add.at(values.reshape(-1), place, np.asarray(pc.fill_null(amounts, 0)).astype(np.int64))
    shown = np.array([has_credits] + [has_counters] * (len(names) - 1))
    return Sums(_split(known), names, values, shown)
