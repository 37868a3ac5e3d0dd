"""Fill the disk under a daemon and a server, round after round, and look for what was lost or done twice.

    python tests/torture/full_disk.py --rounds 50

A server with its store and a daemon with its spool share a small disk of their own; clients send each slot's commands
one after another, as in `tests/store/kill.py`. In each round the disk is filled, but for a few pages at random, and
emptied again; in every fourth, one of the two is killed meanwhile, and started when there is room. In the end every
command that was acknowledged must have had its effect once, one that was refused none, and one whose answer never came
at most once. The exit status is 0 if so. Only root can mount such a disk; for others, or with --limit, no file of the
processes can grow while the disk would be full, which the system reports as another error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from kill import CLIENTS, PROJECT, SECRET, Load, Process, faults, free_port, wait_until

from cpdaemon import Client
from cpsim.daemon.spool_status import read_status
from cpsim.server.service import AccountServer
from cpsim.server.store import Store

DISK_BYTES = 48 * 2**20
MOST_LEFT_BYTES = 64 * 1024
"""Room that is left on a full disk, at most."""
LONGEST_S = 0.6
"""How long a disk is full, at most."""


class TurnedAway(Load):
    """Clients that may be refused: what was refused must have no effect."""

    turned_away = 0

    def note_refusal(self, sent, slot, error):
        del sent[-1]
        self.turned_away += 1
        self._stop.wait(0.005)


class Disk:
    """A small disk, or limits of the processes' files where there is none."""

    def __init__(self, folder, *, mounts):
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
        self.is_mounted = mounts and subprocess.run(command, capture_output=True, check=False).returncode == 0
        self._filler = folder / "filler"

    def fill(self, left_bytes, processes):
        """Leave so many bytes."""
        if not self.is_mounted:
            for process in processes:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            return
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while True:
                free_bytes = os.statvfs(self.folder).f_bavail * 4096
                if free_bytes <= left_bytes:
                    break
                file.write(bytes(min(2**20, free_bytes - left_bytes)))

    def empty(self, processes):
        """Let there be room again."""
        self._filler.unlink(missing_ok=True)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    def close(self):
        """Remove it."""
        if self.is_mounted:
            subprocess.run(["umount", "-l", self.folder], check=True)


def run(folder, disk, rounds, seed):
    """Return the load, what is wrong with the accounts, and what became of the rounds."""
    chance = random.Random(seed)
    secret_file = folder / "secret"
    secret_file.write_text(SECRET, encoding="utf-8")
    http = f"127.0.0.1:{free_port()}"
    account = ("--project", PROJECT, "--secret-file", secret_file)
    store, spool, inner, outer = disk.folder / "store", disk.folder / "spool", folder / "s.sock", folder / "d.sock"
    serve = ("serve", "--http", http, "--unix", inner, "--store", store, *account)
    server = f"http://{http}/api"
    forward = ("daemon", "--unix", outer, "--server", server, "--spool", spool, "--flush-interval", "0.02", *account)
    processes = [Process(*serve, ready=folder / "server.ready"), Process(*forward, ready=folder / "daemon.ready")]
    for process in processes:
        process.start()
    load = TurnedAway()
    senders = [lambda: Client(str(outer), timeout_s=5), lambda: Client(str(inner), timeout_s=5)] * CLIENTS
    ended = 0
    for number in range(1, rounds + 1):
        victim = chance.choice(processes) if number % 4 == 0 else None

        def fill_and_empty(victim=victim):
            disk.fill(chance.randrange(MOST_LEFT_BYTES), processes)
            time.sleep(chance.uniform(0, LONGEST_S))
            if victim is not None:
                victim.end(signal.SIGKILL)
            disk.empty(processes)
            if victim is not None:
                victim.start()
            time.sleep(0.1)

        load.run(senders, chance.uniform(0, 0.2), fill_and_empty)
        ended += sum(process.has_ended for process in processes)
        print(f"\r{number} of {rounds}, {load.acknowledged:,} acknowledged", end="", file=sys.stderr)
    print(file=sys.stderr)
    wait_until(lambda: read_status(spool).queued == 0)
    statuses = [process.end(signal.SIGTERM) for process in reversed(processes)]
    kept = Store(store)
    found = faults(load, AccountServer({PROJECT: SECRET}, store=kept))
    kept.close()
    status = read_status(spool)
    failed = status.refused + status.dead_letters
    return load, {**found, "failed": failed, "ended": ended, "statuses": sum(map(abs, statuses))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help="how often the disk is filled")
    parser.add_argument("--seed", type=int, default=1, help="of the moments, and of the room that is left")
    parser.add_argument("--limit", action="store_true", help="limit the files, and mount no disk")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cpsim-full-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "disk").mkdir()
        disk = Disk(folder / "disk", mounts=not given.limit)
        try:
            load, found = run(folder, disk, given.rounds, given.seed)
        finally:
            disk.close()
    figures = {"rounds": given.rounds, "seed": given.seed, "mounted": disk.is_mounted}
    figures |= {"acknowledged": load.acknowledged, "unknown": load.unknown, "turned_away": load.turned_away}
    print(json.dumps(figures | found))
    sys.exit(1 if any(found.values()) else 0)


if __name__ == "__main__":
    main()
