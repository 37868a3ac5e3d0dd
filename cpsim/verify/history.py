"""From what was sent and answered, and what is seen in the end, to findings: slot by slot, then account by account."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from cpsim.verify.model import Fate, Span, fates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from cpsim.verify.model import Step
    from cpsim.verify.verdict import Verdict

ABSENT: Final = Fate("absent")
SLOT_COLUMNS: Final = ("slot", "state", "machine", "granted", "reason", "counters", "meta")


def judge_slots(
    histories: Mapping[str, list[Step]], slots: pa.Table, project_id: str, seen: Span, verdict: Verdict
) -> None:
    """Compare every slot's final state with the states that its history allows.

    Args:
        histories: slot id to its operations, in order.
        slots: the server's slots, one row each, as the control API exports them.
        project_id: whose slots are meant.
        seen: when the slots were read.
        verdict: takes the findings.
    """
    observed = _observed(slots, project_id)
    for slot_id, steps in histories.items():
        possible = fates(steps, seen)
        verdict.uncertain += len(possible) > 1
        found = observed.get(slot_id, ABSENT)
        if found not in possible:
            verdict.find(*_difference(slot_id, possible, found))
    verdict.checked["slots"] += len(histories)


def judge_outstanding(histories: Mapping[str, list[Step]], outstanding: set[str], seen: Span, verdict: Verdict) -> None:
    """Compare the slots that the server lists as not settled with those that may be."""
    for slot_id, steps in histories.items():
        phases = {fate.phase for fate in fates(steps, seen)}
        verdict.uncertain += len(phases) > 1
        if not phases:
            verdict.find("contradiction", slot_id, "the replies to its commands contradict the protocol")
        elif slot_id in outstanding and "allocated" not in phases:
            verdict.find("lost", slot_id, f"listed as outstanding, but should be {_either(phases)}")
        elif slot_id not in outstanding and phases == {"allocated"}:
            verdict.find("lost", slot_id, "not listed as outstanding, but should be")
    verdict.checked["slots"] += len(histories)


def judge_balance(slots: pa.Table, accounts: pa.Table, verdict: Verdict) -> None:
    """Check the conservation laws on the whole of a ledger, project by project.

    What its claimed slots granted is what its machines earned, and that is what its users have and what still waits.
    """
    granted = _sums(slots, "granted", "counters", slots["state"].to_pylist(), "claimed")
    kinds = accounts["kind"].to_pylist()
    earned = _sums(accounts, "credits", "counters", kinds, "machine")
    owned = _sums(accounts, "credits", "counters", kinds, "user")
    for place, amount in _sums(accounts, "waiting_credits", "waiting_counters", kinds, "machine").items():
        owned[place] += amount
    for project, name in sorted(granted.keys() | earned.keys() | owned.keys()):
        place = (project, name)
        for where, held in (
            ("machines earned", earned[place]),
            ("users and waiting machines hold", owned[place]),
        ):
            if held != granted[place]:
                subject = f"{name} of project {project}"
                verdict.find("not conserved", subject, f"claims granted {granted[place]}, but {where} {held}")
        verdict.checked["sums"] += 2


def judge_machines(slots: pa.Table, accounts: pa.Table, verdict: Verdict) -> None:
    """Check that each machine has what its own claimed slots granted, no more and no less."""
    expected = _sums(slots, "granted", "counters", slots["state"].to_pylist(), "claimed", by="machine")
    earned = _sums(accounts, "credits", "counters", accounts["kind"].to_pylist(), "machine", by="id")
    for place in sorted(expected.keys() | earned.keys()):
        if expected[place] != earned[place]:
            _, name, machine = place
            detail = f"its slots granted {expected[place]} {name}, it has {earned[place]}"
            verdict.find("over-credited" if earned[place] > expected[place] else "under-credited", machine, detail)
    verdict.checked["machines"] += sum(kind == "machine" for kind in accounts["kind"].to_pylist())


def _observed(slots: pa.Table, project_id: str) -> dict[str, Fate]:
    columns = [slots[name].to_pylist() for name in SLOT_COLUMNS]
    rows = zip(slots["project"].to_pylist(), *columns, strict=True)
    return {
        slot: Fate(state, machine, granted, reason, frozenset(counters), frozenset(meta))
        for project, slot, state, machine, granted, reason, counters, meta in rows
        if project.lower() == project_id.lower()  # as servers compare them
    }


def _difference(slot_id: str, possible: set[Fate], found: Fate) -> tuple[str, str, str]:
    """The anomaly's name, its slot, and what is different, field by field, from the likeliest state."""
    if not possible:
        return "contradiction", slot_id, "the replies to its commands contradict the protocol"
    same_phase = [fate for fate in possible if fate.phase == found.phase]
    expected = min(same_phase or possible, key=lambda fate: sum(a != b for a, b in zip(fate, found, strict=True)))
    differences = "; ".join(
        f"{field} is {_shown(seen)}, should be {_shown(wanted)}"
        for field, seen, wanted in zip(Fate._fields, found, expected, strict=True)
        if seen != wanted
    )
    return _name(expected, found), slot_id, differences


def _name(expected: Fate, found: Fate) -> str:
    if expected.phase != found.phase:
        return _misplaced(expected.phase, found.phase)
    if expected.granted != found.granted:
        return "over-credited" if (found.granted or 0) > (expected.granted or 0) else "under-credited"
    if expected.counters != found.counters:
        if len(found.counters) < len(expected.counters):
            return "lost"
        doubled = frozenset((name, 2 * value) for name, value in expected.counters)
        return "duplicated" if found.counters == doubled else "altered"
    return "lost" if len(found.meta) < len(expected.meta) else "altered"


def _misplaced(expected: str, found: str) -> str:
    if expected == "absent":
        return "phantom"
    if found in {"absent", "allocated"}:
        return "lost"
    return "early expiry" if found == "expired" else "resurrected"


def _shown(value: object) -> str:
    if isinstance(value, frozenset):
        return "{" + ", ".join(f"{name}={amount}" for name, amount in sorted(value)) + "}"
    return repr(value)


def _either(phases: Iterable[str]) -> str:
    return " or ".join(sorted(phases))


def _sums(
    table: pa.Table, credits: str, counters: str, kinds: list[str], kind: str, *, by: str | None = None
) -> defaultdict[Any, int]:
    """Totals over the rows of a kind, by (project, credits or counter) and, if asked, a further column."""
    sums: defaultdict[Any, int] = defaultdict(int)
    groups = table[by].to_pylist() if by else [None] * len(kinds)
    columns = (
        table["project"].to_pylist(),
        kinds,
        groups,
        table[credits].to_pylist(),
        table[counters].to_pylist(),
    )
    for project, row_kind, group, amount, named in zip(*columns, strict=True):
        if row_kind == kind:
            for name, value in (("credits", amount or 0), *(named or ())):
                sums[(project, name, group) if by else (project, name)] += value
    return sums
