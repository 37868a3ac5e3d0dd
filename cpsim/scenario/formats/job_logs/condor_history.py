"""What HTCondor's `condor_history -json` or `-jsonl` prints: ClassAds as a list, or one on each line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cpsim.scenario.formats.job_format import JobFormat
from cpsim.scenario.formats.job_log import wrong
from cpsim.scenario.formats.jobs import JobRecord
from cpsim.scenario.values import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterator

REMOVED, COMPLETED = 3, 4
STATUSES: Final = range(8)
"""What JobStatus can be; what is not removed or completed has not ended."""
FIELDS: Final = {"user": "Owner", "group": "AcctGroup", "account": "AcctGroup", "executable": "Cmd"}


class ClassAd(msgspec.Struct):
    """What counts of a job's ClassAd; whatever else it has is not kept."""

    ClusterId: Any = None
    ProcId: Any = None
    Owner: Any = None
    AcctGroup: Any = None
    Cmd: Any = None
    QDate: Any = None
    JobCurrentStartDate: Any = None
    JobStartDate: Any = None
    CompletionDate: Any = None
    EnteredCurrentStatus: Any = None
    JobStatus: Any = None
    ExitCode: Any = None
    ExitBySignal: Any = None
    RemoteHost: Any = None
    LastRemoteHost: Any = None
    RemoteWallClockTime: Any = None


class CondorHistoryFormat(JobFormat):
    what = "what HTCondor's condor_history -json prints"

    @staticmethod
    def recognises(head: bytes, /) -> bool:
        text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        return text[:1] in {b"[", b"{"} and (b'"ClusterId"' in text or re.fullmatch(rb"\[\s*\]\s*", text) is not None)

    def rows(self) -> Iterator[tuple[str, ClassAd]]:
        if self.file.head().removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{":
            content = self.file.content().removeprefix(b"\xef\xbb\xbf")
            try:
                ads = msgspec.json.decode(content or b"[]", type=list[ClassAd])
            except msgspec.DecodeError as error:
                raise ScenarioError(f"{self.file.path}: not a list of ClassAds in JSON: {error}") from error
            yield from ((f"ClassAd {number}", ad) for number, ad in enumerate(ads, 1))
            return
        decoder = msgspec.json.Decoder(ClassAd)
        for number, line in self.file.lines():
            if line.strip():
                try:
                    yield f"line {number}", decoder.decode(line)
                except msgspec.DecodeError as error:
                    self.file.skip(f"line {number}", f"not a ClassAd in JSON: {error}")

    def record(self, row: ClassAd, /) -> JobRecord:
        cluster, proc, state = (_whole(row, name) for name in ("ClusterId", "ProcId", "JobStatus"))
        if state not in STATUSES:
            raise wrong("JobStatus", row.JobStatus, "a whole number from 0 to 7")
        status, end_us = "unfinished", None
        if state == COMPLETED:
            status, end_us = _ended(row), self._moment(row, "CompletionDate")
        elif state == REMOVED:
            status = "cancelled"
        if state in {COMPLETED, REMOVED}:
            end_us = end_us or self._moment(row, "EnteredCurrentStatus") or self._moment(row, "CompletionDate")
        return JobRecord(
            job=f"{cluster}.{proc}",
            status=status,
            submit_us=self._moment(row, "QDate"),
            start_us=self._moment(row, "JobCurrentStartDate") or self._moment(row, "JobStartDate"),
            end_us=end_us,
            run_us=self.file.duration_us("RemoteWallClockTime", row.RemoteWallClockTime),
            user=self.file.text("Owner", row.Owner),
            node=self.file.text("LastRemoteHost", row.LastRemoteHost or row.RemoteHost),
            fields={name: str(getattr(row, ad) or "") for name, ad in FIELDS.items()},
        )

    def _moment(self, row: ClassAd, name: str) -> int | None:
        """A time; HTCondor has 0 where there is none."""
        return self.file.time_us(name, getattr(row, name)) or None


def _ended(row: ClassAd) -> str:
    """How a job that ran to its end did so."""
    if row.ExitBySignal is True:
        return "failed"
    if row.ExitCode is None:
        return "unknown"
    return "completed" if _whole(row, "ExitCode") == 0 else "failed"


def _whole(row: ClassAd, name: str) -> int:
    value = getattr(row, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(name, value, "a whole number")
    return value
