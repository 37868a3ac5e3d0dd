"""What Slurm's `sacct -P` or `sacct -p` prints: a line of names, then a line for each job and for each of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cpsim.scenario.formats.job_format import JobFormat
from cpsim.scenario.formats.jobs import JobRecord
from cpsim.scenario.formats.slurm import first_node, status
from cpsim.scenario.values import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELDS: Final = {
    "group": "Group", "account": "Account", "executable": "JobName", "partition": "Partition", "queue": "Partition",
    "user": "User",
}  # fmt: skip


class SacctFormat(JobFormat):
    what = "what Slurm's sacct -P prints"

    @staticmethod
    def recognises(head: bytes, /) -> bool:
        first = head.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0]
        return b"|" in first and not {b"JobID", b"JobIDRaw"}.isdisjoint(first.strip().split(b"|"))

    def rows(self) -> Iterator[tuple[str, dict[str, str]]]:
        """See `JobFormat`: a row is its fields by name."""
        names: list[str] | None = None
        tasks = 0
        for number, line in self.file.lines():
            if not line.strip():
                continue
            values = line.split("|")
            if names is None:
                names = self._names(values)
                continue
            if len(values) == len(names) + 1 and not values[-1]:
                values.pop()  # as -p ends its lines
            if len(values) != len(names):
                self.file.skip(f"line {number}", f"{len(values)} fields: expected {len(names)}, as in the first line")
                continue
            row = dict(zip(names, values, strict=True))
            job = row.get("JobID", "")
            if "[" in job:
                tasks += 1  # one row stands for all tasks of an array that are still to begin
            elif "." not in (job or row.get("JobIDRaw", "")):
                yield f"line {number}", row
        if tasks:
            self.file.note(f"{tasks:,} lines of arrays whose tasks had not begun were left out")

    def _names(self, names: list[str]) -> list[str]:
        names = [name.strip() for name in names]
        if names[-1] == "":
            names.pop()
        needed = ["State", *(["Submit", "End"] if self.file.needs_times else [])]
        missing = [name for name in needed if name not in names]
        if "JobID" not in names and "JobIDRaw" not in names:
            missing.insert(0, "JobID")
        if missing:
            raise ScenarioError(
                f"{self.file.path}, line 1: no field {', '.join(missing)}; it has {', '.join(names)}: name them with "
                "sacct -P -o JobID,User,Account,Partition,Submit,Start,End,State,NodeList"
            )
        return names

    def record(self, row: dict[str, str], /) -> JobRecord:
        times = {name: self.file.time_us(name, row.get(name)) for name in ("Submit", "Start", "End")}
        return JobRecord(
            job=self.file.text("JobID", row.get("JobID") or row.get("JobIDRaw")),
            status=status("State", row["State"]),
            submit_us=times["Submit"],
            start_us=times["Start"],
            end_us=times["End"],
            run_us=self.file.duration_us("Elapsed", row.get("Elapsed")),
            user=self.file.text("User", row.get("User")),
            node=self.file.text("NodeList", first_node(row.get("NodeList", ""))),
            fields={name: row[field].strip() for name, field in FIELDS.items() if field in row},
        )
