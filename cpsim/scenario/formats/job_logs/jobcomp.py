"""The file of Slurm's plugin jobcomp/filetxt: a line for each end of a job, of `Name=value` with blanks between."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cpsim.scenario.formats.job_format import JobFormat
from cpsim.scenario.formats.job_log import wrong
from cpsim.scenario.formats.jobs import JobRecord
from cpsim.scenario.formats.slurm import first_node, status

if TYPE_CHECKING:
    from collections.abc import Iterator

PAIR: Final = re.compile(r"(?:^|(?<= ))(\w+)=(.*?)(?= \w+=|\s*$)")
"""A name and its value, which may have blanks in it, as the name of a job can."""
NUMBERED: Final = re.compile(r"(.*?)(?:\(\d+\))?")
"""A user or group, and its number in parentheses."""
FIELDS: Final = {
    "account": "Account", "executable": "Name", "partition": "Partition", "queue": "Partition",
}  # fmt: skip


class JobcompFormat(JobFormat):
    what = "a file of Slurm's jobcomp/filetxt"

    @staticmethod
    def recognises(head: bytes, /) -> bool:
        return head.removeprefix(b"\xef\xbb\xbf").startswith(b"JobId=")

    def rows(self) -> Iterator[tuple[str, str]]:
        for number, line in self.file.lines():
            if line.strip():
                yield f"line {number}", line

    def record(self, row: str, /) -> JobRecord:
        pairs = dict(PAIR.findall(row))
        for name in ("JobId", "JobState"):
            if not pairs.get(name):
                raise wrong(name, None, "a line as jobcomp/filetxt writes them, JobId=1 ... JobState=COMPLETED ...")
        times = {name: self.file.time_us(name, pairs.get(name)) for name in ("SubmitTime", "StartTime", "EndTime")}
        user, group = (NUMBERED.fullmatch(pairs.get(name, "")) for name in ("UserId", "GroupId"))
        names = {"user": "" if user is None else user[1], "group": "" if group is None else group[1]}
        return JobRecord(
            job=self.file.text("JobId", pairs["JobId"]),
            status=status("JobState", pairs["JobState"]),
            submit_us=times["SubmitTime"],
            start_us=times["StartTime"],
            end_us=times["EndTime"],
            user=self.file.text("UserId", names["user"]),
            node=self.file.text("NodeList", first_node(pairs.get("NodeList", ""))),
            fields={**names, **{name: pairs[field] for name, field in FIELDS.items() if field in pairs}},
        )
