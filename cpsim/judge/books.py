"""The conservation laws on the accounts of a server, as far as it shows them.

Machines earn what claimed slots granted; users have, with what waits, what machines earned. Sums have 64 bits and may
wrap, on all sides alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cpsim.judge.columns import indices, map_entries

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from cpsim.accounts.view import View
    from cpsim.judge.verdict import Verdict

    Bools = npt.NDArray[np.bool_]
    Ints = npt.NDArray[np.int64]

CREDITS: Final = "credits"
SEPARATOR: Final = "\x1f"
"""Separates a project id from a machine id; neither contains it, because no command can."""
ROWS: Final = 1_048_576
"""Rows summed at a time."""
MACHINES_TRACED: Final = 20
"""Machines whose slots are looked up; each look-up reads all claims."""
SLOTS_NAMED: Final = 5


class Holder(NamedTuple):
    """A machine or a user in a project; without a subject, the project itself."""

    project: str
    subject: str


class _Rows(NamedTuple):
    """Rows of a table, and the holder of each: a project id and a machine or user id."""

    table: pa.Table
    holders: pa.Array


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


def judge_books(view: View, verdict: Verdict, owners: Mapping[str, str] | None = None) -> None:
    """Check the conservation laws on a whole ledger, with all its projects: those of which both sides are shown.

    Args:
        view: what the server shows.
        verdict: takes the findings.
        owners: machine to user, if these are all the links and came before the first claim.
    """
    claims = None
    if view.slots is not None and "state" in view.slots.column_names:
        claims = view.slots.filter(pc.equal(view.slots["state"], "claimed"))
    claimed, machines, users = _rows(claims, "machine"), _rows(view.machines, "machine"), _rows(view.users, "user")
    projects = _rows(view.projects)
    holders = pc.unique(pa.concat_arrays([machines.holders, claimed.holders]))
    names = _counter_names(view.slots, machines.table, users.table, projects.table)
    granted = _sums(claimed, ("granted", "counters"), holders, names)
    earned = _sums(machines, ("credits", "counters"), holders, names)
    waiting = _sums(machines, ("waiting_credits", "waiting_counters"), holders, names)
    owned = _sums(users, ("credits", "counters"), pc.unique(users.holders), names)
    counted = _sums(projects, ("credits", "counters"), pc.unique(projects.holders), names)
    if "machine" in claimed.table.column_names and (granted.shown & earned.shown).any():
        _judge_machines(granted, earned, _Claims(claimed), verdict)
        verdict.checked["machines"] += len(machines.holders)
    laws = {"machines earned": [earned], "users and waiting machines hold": [owned, waiting], "it counted": [counted]}
    _judge_totals(granted, laws, verdict)
    if "user" in machines.table.column_names:
        _judge_waiting(machines.holders.filter(_whole(pc.is_valid(machines.table["user"]))), waiting, verdict)
    if owners is not None and (earned.shown & owned.shown).any():
        _judge_users(earned, owned, owners, verdict)
        verdict.checked["users"] += len(users.holders)


def _judge_machines(granted: Sums, earned: Sums, claims: _Claims, verdict: Verdict) -> None:
    """Each machine has exactly what its own claimed slots granted."""
    surplus = np.where(granted.shown & earned.shown, earned.values - granted.values, 0)
    places = sorted(np.argwhere(surplus).tolist(), key=lambda place: (granted.holders[place[0]].subject, place))
    machines = {granted.holders[h].subject for h, _ in places}
    of_machine: defaultdict[str, list[int]] = defaultdict(list)
    for h, holder in enumerate(granted.holders):
        if holder.subject in machines:
            of_machine[holder.subject].append(h)
    for h, n in places:
        (project, machine), name = granted.holders[h], granted.names[n]
        wanted, has, more = int(granted.values[h, n]), int(earned.values[h, n]), int(surplus[h, n])
        detail = f"in project {project}, its slots granted {wanted} {name}, it has {has}"
        sources = [
            granted.holders[other].project
            for other in of_machine[machine]
            if other != h and more > 0 and more in {-int(surplus[other, n]), int(granted.values[other, n])}
        ]
        if sources:
            verdict.find("leaked", machine, f"{detail}: the rest is of project {sources[0]}")
        else:
            slots = claims.showing(granted.holders[h], name, more)
            verdict.find("over-credited" if more > 0 else "under-credited", machine, detail, slots)


def _judge_totals(granted: Sums, laws: Mapping[str, Sequence[Sums]], verdict: Verdict) -> None:
    """In each project, machines earned what claims granted, and users and waiting machines hold it."""
    by_claims = granted.of_projects()
    compared = []
    for where, parts in laws.items():
        sums: Counter[tuple[str, str]] = Counter()
        for part in parts:
            sums.update(part.of_projects())
        shown = np.logical_and.reduce([granted.shown, *(part.shown for part in parts)])
        compared.append((where, sums, {name for name, is_shown in zip(granted.names, shown, strict=True) if is_shown}))
    for place in sorted({*by_claims, *(place for _, sums, _ in compared for place in sums)}):
        project, name = place
        for where, sums, names in compared:
            if name in names:
                if sums[place] != by_claims[place]:
                    subject = f"{name} of project {project}"
                    detail = f"claims granted {by_claims[place]}, but {where} {sums[place]}"
                    verdict.find("not conserved", subject, detail)
                verdict.checked["sums"] += 1


def _judge_waiting(linked: pa.Array, waiting: Sums, verdict: Verdict) -> None:
    """Nothing waits on a machine that has a user."""
    known = pa.array([SEPARATOR.join(holder) for holder in waiting.holders], pa.string())
    places = indices(linked, known)
    for h, n in np.argwhere(waiting.values[places]).tolist():
        holder, amount = waiting.holders[places[h]], int(waiting.values[places[h], n])
        detail = f"{amount} {waiting.names[n]} wait on it, though it belongs to a user"
        verdict.find("not conserved", holder.subject, detail)


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
    """Finds the claimed slots that show what is wrong with a machine."""

    def __init__(self, claimed: _Rows) -> None:
        self._claimed = claimed
        self._traces_left = MACHINES_TRACED

    def showing(self, holder: Holder, name: str, difference: int) -> list[str]:
        """The slot whose grant equals the difference, or else some slots of the machine."""
        if not self._traces_left:
            return []
        self._traces_left -= 1
        own = self._claimed.table.filter(pc.equal(self._claimed.holders, SEPARATOR.join(holder)))
        slots: list[str] = own["slot"].to_pylist()
        granted = own["granted" if name == CREDITS else "counters"].to_pylist()
        for slot, value in zip(slots, granted, strict=True):
            if abs(difference) == (value if name == CREDITS else dict(value or ()).get(name)):
                return [slot]
        return slots[:SLOTS_NAMED]


def _rows(table: pa.Table | None, column: str = "") -> _Rows:
    """The rows of a table, none if it is not shown; without a column of subjects, the holders are the projects."""
    if table is None:
        table = pa.table({"project": pa.array([], pa.string())})
    subjects = pc.fill_null(table[column], "") if column in table.column_names else ""
    return _Rows(table, _whole(pc.binary_join_element_wise(table["project"], subjects, SEPARATOR)))


def _split(holders: pa.Array) -> list[Holder]:
    return [Holder(*text.split(SEPARATOR, 1)) for text in holders.to_pylist()]


def _counter_names(*tables: pa.Table | None) -> list[str]:
    """Credits, and the name of each counter."""
    columns = [
        table[column]
        for table in tables
        if table is not None
        for column in ("counters", "waiting_counters")
        if column in table.column_names
    ]
    found: set[str] = {name for column in columns for name in pc.unique(map_entries(column)[1]).to_pylist()}
    return [CREDITS, *sorted(found - {CREDITS})]


def _sums(rows: _Rows, columns: tuple[str, str], known: pa.Array, names: list[str]) -> Sums:
    """The sums of a column of credits and a column of counters, by holder and name."""
    credits, counters = columns
    table, holder = rows.table, indices(rows.holders, known)
    has_credits, has_counters = (column in table.column_names for column in columns)
    values = np.zeros((len(known), len(names)), np.int64)
    for start in range(0, len(table), ROWS):
        chunk, whose = table.slice(start, ROWS), holder[start : start + ROWS]
        if has_credits:
            np.add.at(values[:, 0], whose, np.asarray(pc.fill_null(chunk[credits], 0)).astype(np.int64))
        if has_counters:
            offsets, keys, amounts = map_entries(chunk[counters])
            place = np.repeat(whose, np.diff(offsets)) * len(names) + indices(keys, pa.array(names, pa.string()))
            np.add.at(values.reshape(-1), place, np.asarray(pc.fill_null(amounts, 0)).astype(np.int64))
    shown = np.array([has_credits] + [has_counters] * (len(names) - 1))
    return Sums(_split(known), names, values, shown)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
