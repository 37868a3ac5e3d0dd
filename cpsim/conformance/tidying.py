"""The end of a run: slots that it left outstanding are discarded, and what is left is said."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cpdaemon.commands import Discard
from cpsim.conformance.clause import Clause, Level, Need
from cpsim.conformance.examiner import MOST_LISTED_BYTES, Examiner, compact
from cpsim.conformance.findings import CannotRun, Deviation, NotVerifiable

if TYPE_CHECKING:
    from cpsim.conformance.leavings import Leavings
    from cpsim.conformance.target import TargetView

TIDY: Final = Clause("END", "What a run left outstanding is discarded.", "2", (), (), Level.SHOULD)
REASON: Final = "verify"
MOST_AT_ONCE: Final = 200
"""Slots that one bulk discards."""


def tidy(target_view: TargetView) -> None:
    """Discard what a run has left outstanding, where the server lists it, and note what is left there.

    Slots for which a claim was sent are discarded only if accounts show that they are allocated: a server with quirks
    lists claimed ones too, and would count their discard. Where the server is ours, nothing is left.
    """
    target, leavings = target_view.target, target_view.leavings
    if target_view.left is not None or target.behind is not None or not target_view.transport.sees:
        return
    examiner = Examiner(target_view, TIDY)
    outstanding: list[str] = []
    discarded, unseen = 0, ""
    if target.daemon is not None and target.server is not None:
        with suppress(CannotRun, NotVerifiable, Deviation):  # then some of it may come later
            examiner.wait_until_applied()
    for project in filter(None, (target.credentials, target.other)):
        try:
            if target.server is None:
                raise NotVerifiable("a daemon does not show it")  # noqa: TRY301
            listed = _listed(examiner, project, target_view.run)
            mine = [slot for slot in listed if _is_open(examiner, leavings, project[0], slot)]
            for start in range(0, len(mine), MOST_AT_ONCE):
                given = [Discard(slot, reason=REASON).arguments() for slot in mine[start : start + MOST_AT_ONCE]]
                examiner.request("/batch/bulk", compact({Discard.kind: given}), project=project)
            still = _listed(examiner, project, target_view.run) if mine else listed
            discarded += len(set(mine) - set(still))
            outstanding += still
        except (CannotRun, NotVerifiable) as error:
            unseen = str(error)
            outstanding += leavings.open_slots(project[0])
    if target.credentials is None:
        unseen, outstanding = "a daemon does not show it", leavings.open_slots("")
    target_view.left = leavings.left(tuple(outstanding), discarded, unseen)


def _listed(examiner: Examiner, project: tuple[str, str], run: str) -> list[str]:
    """The slots of this run that the server lists, however it spells their ids."""
    reply = examiner.request("/batch/slots", project=project)
    data = reply.document.get("data")
    if not isinstance(data, list) or len(reply.body) > MOST_LISTED_BYTES:
        raise NotVerifiable(f"/batch/slots answered {str(reply)[:80]}")
    return [slot for slot in data if isinstance(slot, str) and run.lower() in slot.lower()]


def _is_open(examiner: Examiner, leavings: Leavings, project: str, slot: str) -> bool:
    """Whether a listed slot is allocated, and no more."""
    if not leavings.may_be_claimed(project, slot):
        return True
    row = examiner.accounts.slot(project, slot) if examiner.sees_accounts else None
    return row is not None and row.get("state") == "allocated"


def announced(target_view: TargetView) -> list[str]:
    """What the end of a run sends, for a dry run."""
    if Need.SERVER not in target_view.needs:
        return []
    return ["POST /batch/slots", "POST /batch/bulk, with a discard of each slot of this run that is listed"]
