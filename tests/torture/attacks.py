"""Attack the files and the processes of a daemon and a server, and look for what is lost, done twice, or not said.

    python tests/torture/attacks.py --bits 1000 --rounds 20

A bit is flipped in each of many copies of a spool and of a store: what is read must be what was written, or the damage
must be said. Then, under load, in each round one of these comes: a file of the running daemon or server is removed or
replaced; one of them is killed, and its write-ahead log is gone or empty when it is started again; a record is damaged;
SIGHUP comes many times; or SIGTERM. Each must be said, with the exit status, no connection may be dropped by SIGHUP, no
file may be left by SIGTERM, and in the end the books must agree. The exit status is 0 if all of that is so.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections import Counter
from contextlib import closing
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from kill import PROJECT, SECRET, Load, Process, faults, free_port, wait_until

from cpdaemon import Client
from cpdaemon.wire import parse
from cpsim.daemon import inspection
from cpsim.daemon.failed import DAMAGED, DEAD_LETTER, FailedCommand
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_failed, read_status
from cpsim.errors import CpsimError
from cpsim.server.service import AccountServer
from cpsim.server.store import Store

NOW_US = 1_700_000_000_000_000
RECORDS = 60
PAYLOAD = "x" * 50
CLIENTS = 4
LONGEST_LOAD_S = 0.3
HANGUPS = 10
FAILED = 2
"""Exit status of a command that could not go on."""


# Bits


def write_spool(path):
    """Write a spool with commands that wait and dead letters."""
    with closing(Spool(path)) as spool:
        spool.put([f"meta,slot=s{number},text={PAYLOAD}{number}" for number in range(RECORDS)], {}, bool)
        spool.wait()
        spool.release(10)
        batch = spool.take()
        spool.settle(batch, [FailedCommand(at, NOW_US, DEAD_LETTER, text, "lost") for at, text in batch.commands])


def read_spool(path):
    """All commands of a spool, by position."""
    with closing(Spool(path)) as spool:
        spool.release(RECORDS)
        while (batch := spool.take()) is not None:
            spool.settle(batch, [FailedCommand(at, NOW_US, DEAD_LETTER, text, "read") for at, text in batch.commands])
    return {row.position: row.command for row in read_failed(path)}


def write_store(path):
    """Write a store with a snapshot, a journal before it, and changes after it."""
    with closing(Store(path)) as store:
        accounts = AccountServer({PROJECT: SECRET}, lambda: NOW_US, store=store)
        for number in range(RECORDS):
            slot = {"slot": f"s{number}"}
            accounts.apply(PROJECT, [("alloc", slot | {"credits": number}), ("meta", slot | {"text": PAYLOAD})])
            if number == RECORDS // 2:
                store.replace(accounts._accounts(NOW_US))


def read_store(path):
    """All slots of a store, and all entries of its journal."""
    with closing(Store(path)) as store:
        accounts = AccountServer({PROJECT: SECRET}, lambda: NOW_US, store=store)
        entries = enumerate(map(repr, accounts.journal.read(PROJECT)))
        with accounts.reading() as ledger:
            slots = ((name, repr(slot)) for name, slot in ledger.project(PROJECT).slots.items())
            return dict(chain(entries, slots))


def flip_bits(folder, count, seed):
    """Flip a bit in each of many copies of a spool and of a store; return how often that was said, and how."""
    chance = random.Random(seed)
    found = Counter()
    for write, read in ((write_spool, read_spool), (write_store, read_store)):
        original = folder / write.__name__
        write(original)
        whole = None
        for number in range(count + 1):
            copy = folder / f"{original.name}-{number}" / "copy"
            copy.parent.mkdir()
            content = bytearray(original.read_bytes())
            bit = chance.randrange(8 * len(content))
            content[bit // 8] ^= bool(number) << bit % 8
            copy.write_bytes(content)
            try:
                again = read(copy)
            except CpsimError as error:
                found["refused" if str(copy) in str(error) else "refused without its name"] += 1
                print(error) if str(copy) not in str(error) else None
                continue
            finally:
                shutil.rmtree(copy.parent)
            whole = whole or again
            said = {place for place, text in again.items() if str(text).startswith(DAMAGED)}
            same = all(again.get(place) == text for place, text in whole.items() if place not in said)
            found[("dead letters" if said else "no difference") if same else "not noticed"] += 1
            if not same:
                print(f"{original.name}: bit {bit} is not noticed", file=sys.stderr)
    return found


# Processes


class Site:
    """A server with a store, and a daemon with a spool in front of it, under load."""

    def __init__(self, folder, seed):
        self.chance = random.Random(seed)
        self.folder = folder
        self.load = Load()
        self.found = Counter()
        secret_file = folder / "secret"
        secret_file.write_text(SECRET)
        http = f"127.0.0.1:{free_port()}"
        url = f"http://{http}/api"
        credentials = ("--project", PROJECT, "--secret-file", secret_file)
        self.files = {"server": folder / "store", "daemon": folder / "spool"}
        self.sockets = {"server": folder / "server.sock", "daemon": folder / "daemon.sock"}
        serve = ("serve", "--http", http, "--unix", self.sockets["server"], "--store", self.files["server"])
        forward = ("daemon", "--unix", self.sockets["daemon"], "--server", url, "--spool", self.files["daemon"])
        self.processes = {
            "server": Process(*serve, *credentials, ready=folder / "server.ready"),
            "daemon": Process(*forward, "--flush-interval", "0.02", *credentials, ready=folder / "daemon.ready"),
        }
        makers = (
            lambda: Client(str(self.sockets["daemon"]), timeout_s=60),
            lambda: Client(str(self.sockets["server"]), timeout_s=60),
            lambda: Client(url, (PROJECT, SECRET), timeout_s=60),
        )
        self.senders = [make for make in makers for _ in range(CLIENTS)]

    def run(self, attack):
        """Run an attack under load, on one of the two."""
        victim = self.chance.choice(["server", "daemon"])
        then = lambda: getattr(self, f"_{attack}")(victim, self.processes[victim], self.files[victim])  # noqa: E731
        self.load.run(self.senders, self.chance.uniform(0.05, LONGEST_LOAD_S), then)

    def fail(self, what):
        """Note that something was not as it must be."""
        self.found[what] += 1
        print(what, file=sys.stderr)

    def _gone(self, victim, process, file):
        """Remove or replace one of its files."""
        path = file.with_name(file.name + self.chance.choice(["", "-wal", ".lock"]))
        if self.chance.random() < 0.5:
            path.unlink()
        else:
            shutil.copy(path, path.with_name("other")).replace(path)
        status, said = process.ended()
        if status != FAILED or f"{path} was re" not in said:
            self.fail(f"{path.name} of a {victim} was gone: status {status}: {said}")
        rescued = file.with_name(f"{file.name}.rescued")
        if rescued.exists():
            rescued.replace(file)
        process.start()

    def _lost(self, victim, process, file):
        """Take its write-ahead log away, or empty it, when it was killed."""
        process.end(signal.SIGKILL)
        wal, kept = file.with_name(f"{file.name}-wal"), self.folder / "kept"
        wal.rename(kept)
        if self.chance.random() < 0.5:
            wal.touch()
        status, said = process.refused()
        if status != FAILED or f"{wal} is missing or empty" not in said:
            self.fail(f"a {victim} without its write-ahead log began: status {status}: {said}")
        kept.replace(wal)
        process.start()

    def _damaged(self, victim, process, file):
        """Change a record while it does not run."""
        process.end(signal.SIGKILL)
        with closing(sqlite3.connect(file, isolation_level=None)) as database:
            last = "FROM log ORDER BY position DESC LIMIT 1"
            row = database.execute(f"SELECT position, record {last}").fetchone()
            if row is None:
                process.start()
                return
            change = "UPDATE log SET record = ? WHERE position = ?"
            database.execute(change, (row[1].replace("slot", "sl0t"), row[0]))
        if victim == "server":
            status, said = process.refused()
            if status != FAILED or f"record {row[0]} of the accounts' changes is damaged" not in said:
                self.fail(f"a damaged store was not refused: status {status}: {said}")
            with closing(sqlite3.connect(file, isolation_level=None)) as database:
                database.execute(change, (row[1], row[0]))
            process.start()
            return
        process.start()
        wait_until(lambda: any(each.position == row[0] for each in read_failed(file)))
        process.end(signal.SIGTERM)
        if not any(each.command.startswith(DAMAGED) for each in read_failed(file)):
            self.fail(f"a damaged command is none: {read_failed(file)}")
        for each in read_failed(file):
            self._forget(row[1] if each.position == row[0] else each.command)
        inspection.forget(file, None)
        process.start()

    def _forget(self, frame):
        """A command that is a dead letter may be applied or not."""
        kind, arguments = parse(frame.encode())
        name = next((name for name in arguments if name != "slot"), "") if kind == "counters" else kind
        sent = self.load.commands[arguments["slot"]]
        sent[:] = [(each, done and each != name) for each, done in sent]

    def _hangup(self, victim, process, _):
        """Hang up many times; who sends must not see it."""
        before = self.load.unknown
        for _ in range(HANGUPS):
            count = self.load.acknowledged
            process.signal(signal.SIGHUP)
            wait_until(lambda count=count: self.load.acknowledged > count)
        under_way = len(self.senders)
        if self.load.unknown - before > under_way or process.has_ended:
            self.fail(f"a {victim} dropped connections at SIGHUP")

    def _term(self, victim, process, file):
        """End it in order."""
        status = process.end(signal.SIGTERM)
        temporary = [file.with_name(file.name + end) for end in ("-wal", "-shm", ".lock")]
        left = [path.name for path in (*temporary, self.sockets[victim], process.ready) if path.exists()]
        if status or left:
            self.fail(f"a {victim} ended with status {status}, and left {left}")
        process.start()


ATTACKS = ("gone", "lost", "damaged", "hangup", "term")


def attack(folder, rounds, seed):
    """Run rounds of attacks; return the load, what was found, and how often each attack came."""
    site = Site(folder, seed)
    for process in site.processes.values():
        process.start()
    made = Counter()
    for number in range(rounds):
        name = ATTACKS[number % len(ATTACKS)]
        site.run(name)
        made[name] += 1
    wait_until(lambda: read_status(site.files["daemon"]).queued == 0)
    for name in ("daemon", "server"):
        if status := site.processes[name].end(signal.SIGTERM):
            site.fail(f"the {name} ended with status {status}")
    with closing(Store(site.files["server"])) as store:
        found = faults(site.load, AccountServer({PROJECT: SECRET}, store=store))
    status = read_status(site.files["daemon"])
    return site.load, found + site.found + Counter(failed=status.refused + status.dead_letters), made


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bits", type=int, default=1_000, help="how many bits to flip, in each kind of file")
    parser.add_argument("--rounds", type=int, default=20, help="how many rounds of attacks on processes")
    parser.add_argument("--seed", type=int, default=1, help="decides which bits, and which files when")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cpsim-attacks-") as folder:
        (Path(folder) / "bits").mkdir()
        bits = flip_bits(Path(folder) / "bits", given.bits, given.seed)
        load, found, made = attack(Path(folder), given.rounds, given.seed)
    wrong = {name: count for name, count in (found + bits).items() if count and name not in SAID}
    print(json.dumps({"acknowledged": load.acknowledged, "unknown": load.unknown, **made, **bits, "wrong": wrong}))
    sys.exit(1 if wrong else 0)


SAID = {"refused", "dead letters", "no difference"}
"""What may become of a bit."""


if __name__ == "__main__":
    main()
