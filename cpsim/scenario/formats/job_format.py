"""What a format of job logs is; `job_logs/` has one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from cpsim.scenario.formats.jobs import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cpsim.scenario.formats.job_log import JobLog
    from cpsim.scenario.formats.jobs import JobRecord, Jobs


class JobFormat:
    """A format of job logs; the name of its file is its name.

    Args:
        file: the log.

    Attributes:
        what: what has this format, in words.
        suffixes: of files that have it.
        doubted: whether what is in such a file may show that it has another format.
    """

    what: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    doubted: ClassVar[bool] = False

    def __init__(self, file: JobLog) -> None:
        self.file = file

    @staticmethod
    def recognises(_: bytes, /) -> bool:
        """Whether a file that begins so has this format."""
        return False

    def rows(self) -> Iterator[tuple[str, Any]]:
        """The rows of the log, each with its place, such as "line 3".

        Raises:
            ScenarioError: the log as a whole cannot be read.
        """
        raise NotImplementedError

    def record(self, _: Any, /) -> JobRecord | None:  # noqa: ANN401 - a row is what its format makes of it
        """The record that a row is; None if it is none.

        Raises:
            ValueError: a value is wrong; the message names the column, the value and what is expected.
        """
        raise NotImplementedError

    def rest(self) -> Iterable[JobRecord]:
        """What is left when all rows were read: jobs that have not ended."""
        return ()

    def read(self) -> Jobs:
        """All jobs.

        Raises:
            ScenarioError: more rows are bad than may be, or there is no job.
        """
        collector = Collector(self.file)
        for place, row in self.rows():
            try:
                record = self.record(row)
                if record is not None:
                    collector.add(record)
            except ValueError as error:
                self.file.skip(place, error)
        for record in self.rest():
            try:
                collector.add(record)
            except ValueError as error:
                self.file.skip("at its end", error)
        return collector.jobs()
