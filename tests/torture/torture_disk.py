"""The disk of a simulated process: a log's real file, and every way in which its writes can fail."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

from cpsim.store.file import LogFile, reserve_of
from cpsim.store.log import Log

SECTOR = 512
WAL_HEADER = 32
COMMIT_BYTES = 16 * 1024
"""Room that a commit takes on a full disk, at most."""
FATES = ("nothing", "all", "crash before", "crash after", "torn")
"""What can become of a commit: it fails with nothing written or with all of it, or the process ends before it, after
it, or while its sectors are being written, of which a restart then finds some."""
AFTER_A_FAILURE = {"crash before": 0.2, "nothing": 0.4, "all": 0.1}
"""The chance of each where the commit before has failed: a log tries again at once, in more than one way."""


class Crash(BaseException):
    """A simulated process ends here."""

    def __init__(self, process: str) -> None:
        super().__init__(process)
        self.process = process


class Disk:
    """A disk with the one log of a process.

    Args:
        folder: where the file is; each restart after a crash copies it under a new name.
        process: name of the process, for `Crash`.
        chance: source of what goes wrong.
        rates: the chance of each of `FATES`, for one commit.
    """

    def __init__(self, folder, process, chance, rates):
        self.folder = folder
        self.process = process
        self.chance = chance
        self.rates = rates
        self.number = 0
        self.room = None
        """Free bytes; None for more than enough."""
        self.commits = 0
        self.log = []
        """What became of the commits that did not succeed, for the trace."""
        self._file = None
        self._ghost = None
        self._has_failed = False
        self._before = None

    @property
    def path(self):
        return self.folder / f"{self.process}-{self.number}"

    def open_file(self, path, kind):
        self._file = SimulatedFile(path, kind, self)
        return self._file

    @property
    def has_ghost(self):
        """Whether a restart may find a commit that has failed."""
        return self._ghost is not None

    def close(self):
        """Close the file, wherever the run has ended."""
        if self._file is not None:
            self._file.close()

    def heal(self):
        """Nothing goes wrong from now on."""
        self.rates = {}
        self.room = None

    def fate(self):
        """What becomes of the next commit; "" if it succeeds."""
        rates = AFTER_A_FAILURE if self._has_failed and self.rates else self.rates
        self._has_failed = self._ghost is not None
        for fate, rate in rates.items():
            if self.chance.random() < rate:
                self.log.append(fate)
                self._has_failed = fate in {"nothing", "all"}
                return fate
        return ""

    def take_room(self):
        """Whether a commit finds room; what the reserve has given up is used first."""
        if self.room is None:
            return True
        reserve = reserve_of(self.path)
        if reserve.exists() and reserve.stat().st_size == 0 and not self._given_up:
            self._given_up = True
            self.room += self.reserve_bytes
        if self.room < COMMIT_BYTES:
            return False
        self.room -= COMMIT_BYTES
        return True

    def fill(self, reserve_bytes):
        """Leave no room but for what the reserve holds."""
        self.room, self.reserve_bytes, self._given_up = 0, reserve_bytes, False

    def wal(self):
        path = self.path.with_name(f"{self.path.name}-wal")
        return path.read_bytes() if path.exists() else b""

    def crash(self):
        """End the process: what its file holds now is found under the next name."""
        old, wal = self.path, self.wal()
        database = old.read_bytes()
        if self._before is not None and self._before[0] == database:
            wal = self._torn(self._before[1], wal)
        self._file.close()
        self.number += 1
        self.path.write_bytes(database)
        if wal:
            self.path.with_name(f"{self.path.name}-wal").write_bytes(wal)
        if reserve_of(old).exists():
            shutil.move(reserve_of(old), reserve_of(self.path))
        if self._ghost is not None and self.chance.random() < 0.8:
            self.log.append("found")
            with closing(sqlite3.connect(self.path, isolation_level=None)) as found:
                for sql, parameters in self._ghost:
                    found.execute(sql, parameters)
                found.execute("COMMIT")
        self._ghost = self._before = None
        for name in (old.name, f"{old.name}-wal", f"{old.name}-shm", f"{old.name}.lock"):
            (self.folder / name).unlink(missing_ok=True)

    def _torn(self, before, after):
        """A write-ahead log of whose sectors only some were written; its header is durable before what follows."""
        if before[:WAL_HEADER] != after[:WAL_HEADER]:
            if self.chance.random() < 0.3:
                return before
            before = after[:WAL_HEADER] + before[WAL_HEADER:]
        pieces = []
        for start in range(0, len(after), SECTOR):
            old, new = before[start : start + SECTOR], after[start : start + SECTOR]
            pieces.append(new if old == new or self.chance.random() < 0.7 else old.ljust(len(new), b"\0"))
        return b"".join(pieces)


class SimulatedFile(LogFile):
    """A log's file on a `Disk`."""

    def __init__(self, path, kind, disk):
        super().__init__(path, kind)
        self._disk = disk
        self._fate = ""
        self._statements = []

    def open(self, tables):
        super().open(tables)
        # durability is the disk's business here
        self._writing.execute("PRAGMA synchronous = OFF")
        self._writing.execute(f"PRAGMA wal_autocheckpoint = {self._disk.chance.choice([4, 40, 1000])}")

    def execute(self, sql, parameters=()):
        disk = self._disk
        if sql.startswith("BEGIN"):
            self._fate = disk.fate()
            if not self._fate and not disk.take_room():
                self._fate = "full"
                disk.log.append("full")
            self._statements = []
            if self._fate == "crash before":
                raise Crash(disk.process)
            if self._fate == "torn":
                disk._before = disk.path.read_bytes(), disk.wal()
        if sql != "COMMIT":
            self._statements.append((sql, parameters))
            super().execute(sql, parameters)
            return
        if self._fate in {"nothing", "all", "full"}:
            if self._fate == "all":
                disk._ghost = self._statements
            error = sqlite3.OperationalError("disk is full" if self._fate == "full" else "disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL if self._fate == "full" else sqlite3.SQLITE_IOERR
            raise error
        super().execute(sql)
        disk._ghost = None
        disk.commits += 1
        if self._fate:
            raise Crash(disk.process)

    def free_bytes(self):
        return 2**40 if self._disk.room is None else self._disk.room


class SimulatedLog(Log):
    """A log without a thread: while somebody waits for it, the rest of the world goes on."""

    world = None
    process = ""

    def run_until(self, done):
        self.world.run_until(done, self.process)
