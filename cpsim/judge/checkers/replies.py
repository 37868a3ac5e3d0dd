"""The replies, whatever became of the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cpdaemon.wire import MalformedFrame, parse
from cpsim.evidence.journal import OperationOutcome
from cpsim.judge.anomalies import ANOMALIES
from cpsim.scenario.workload import FRAME

if TYPE_CHECKING:
    from cpsim.evidence.evidence import Evidence
    from cpsim.judge.verdict import Verdict

UNFIT: Final = ("HTTP 400: ", "HTTP 401: ")
"""Prefixes of errors for malformed or unsigned requests, which the replay does not send."""

LONGEST_NAME: Final = 60
"""Characters of a frame that a message names."""


class Replies:
    """Counts well-formed commands that were refused as malformed, and says what the evidence lacks."""

    meanings = ANOMALIES
    by_partition = False

    def check(self, evidence: Evidence, verdict: Verdict) -> None:
        """Check the replies, and whether there are any."""
        answers = evidence.answers
        sent = int(answers.sum())
        verdict.checked["replies"] += sent
        commands = np.delete(answers, FRAME, axis=0).sum(axis=0).tolist()
        for error, refused in zip(evidence.errors, commands, strict=True):
            if refused and (error == "ER" or error.startswith(UNFIT)):
                detail = f"{refused:,} well-formed commands were answered {error}"
                verdict.find("wrongly refused", str(evidence.endpoint), detail)
        if sent + evidence.unsent and not answers[:, 0].any():
            verdict.not_verified.append("Everything: no operation was accepted.")
        if evidence.interrupted:
            verdict.not_verified.append(f"{evidence.unsent:,} operations were not sent: the run was interrupted.")
        if evidence.faults_unknown:
            verdict.not_verified.append(
                f"How often the faults fired, and whether they are still set: {evidence.faults_unknown}."
            )
        verdict.not_verified += evidence.gaps


class MalformedFrames:
    """Finds malformed frames that were answered with success; what the protocol leaves open is none of them."""

    meanings = ANOMALIES
    by_partition = True

    def check(self, evidence: Evidence, verdict: Verdict) -> None:
        """Check the frames of a partition: a recorded one may be a command, such as one of 7.9 credits."""
        workload, records = evidence.workload, evidence.records
        if not np.any(workload.kind == FRAME):
            return
        accepted = records["op"][records["outcome"] == OperationOutcome.ACCEPTED]
        accepted = accepted[workload.kind[accepted] == FRAME]
        if not len(accepted):
            return
        form, forms = workload.arguments["frame"]["frame"]
        wrong = np.array([not _is_command(text) and not _is_open(text) for text in forms or ()], bool)
        for op in accepted[wrong[form[workload.row[accepted]]]].tolist():
            assert forms is not None
            slot = workload.slot_id(workload.slot[op], evidence.slot_prefix)
            name = _shortened(forms[form[workload.row[op]]])
            verdict.find("wrongly accepted", slot, f"a malformed frame was answered with success: {name}", [slot])


def _shortened(form: str) -> str:
    """A frame as a message names it."""
    text = form if form.isprintable() else form.encode("unicode_escape").decode()
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def _is_command(form: str) -> bool:
    return _parses(form.replace("{slot}", "slot").encode("latin-1"))


def _is_open(form: str) -> bool:
    """Whether a daemon may take a frame or not: a name is there twice, or a value has what is no text."""
    text = form.replace("{slot}", "slot").encode("latin-1").decode("utf-8", "replace").strip()
    command, *pairs = text.split(",")
    values = {pair.partition("=")[0]: pair for pair in pairs}
    return _parses(",".join([command, *("".join(map(_as_text, pair)) for pair in values.values())]).encode())


def _as_text(character: str) -> str:
    return character if character.isprintable() else "?"


def _parses(frame: bytes) -> bool:
    try:
        parse(frame)
    except MalformedFrame:
        return False
    return True
