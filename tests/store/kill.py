"""Kill the daemon and the server at random moments under load, and look for what was lost or done twice.

    python tests/store/kill.py --daemon 200 --server 200

A server with a store, a daemon with a spool in front of it, and clients that send each slot's commands one after
another: through the daemon, through the server's own daemon, and to the server itself. In each round one of the two
processes is killed with SIGKILL and started again. In the end every command that was acknowledged must have had its
effect once, and one whose answer never came at most once. The exit status is 0 if that is so.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from cpdaemon import Client
from cpdaemon.errors import CreditPiggyError, Refused
from cpsim.daemon.spool_status import read_status
from cpsim.server.service import AccountServer
from cpsim.server.store import Store

PROJECT, SECRET = "kill", "secret"
CLIENTS = 4
"""Of each kind."""
COUNTERS = 3
LONGEST_ROUND_S = 0.4
PATIENCE_S = 250


class Process:
    """A `cpsim` command that says in a file when it serves."""

    def __init__(self, *command: object, ready: Path) -> None:
        self._command = [sys.executable, "-P", "-m", "cpsim", *map(str, command), "--ready-file", str(ready)]
        self.ready = ready

    def start(self) -> None:
        self.ready.unlink(missing_ok=True)
        with self.ready.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(lambda: self.ready.exists() or self._process.poll() is not None)
        if self._process.poll() is not None:
            sys.exit(self.ready.with_suffix(".log").read_text())

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self, number: signal.Signals) -> int:
        self.signal(number)
        return self._process.wait(PATIENCE_S)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ended(self) -> tuple[int, str]:
        """The exit status of one that ends by itself, and its last line."""
        return self._process.wait(PATIENCE_S), self.ready.with_suffix(".log").read_text().splitlines()[-1]

    def refused(self) -> tuple[int, str]:
        """The exit status of one that does not begin, and what it says."""
        run = subprocess.run(self._command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        return run.returncode, run.stderr


class Load:
    """Clients that send as fast as they are answered, and remember what they were answered."""

    def __init__(self) -> None:
        self.commands: dict[str, list[tuple[str, bool]]] = {}
        """Of each slot, the commands that were sent, and whether each was acknowledged."""
        self.refusals: list[str] = []
        self._number = 0

    def run(self, senders: list[object], for_s: float, then: object) -> None:
        self._stop = threading.Event()
        threads = [threading.Thread(target=self._client, args=(make,)) for make in senders]
        for thread in threads:
            thread.start()
        time.sleep(for_s)
        then()
        self._stop.set()
        for thread in threads:
            thread.join()

    def _client(self, make: object) -> None:
        with make() as client:
            while not self._stop.is_set():
                self._number += 1
                slot = f"{threading.get_ident()}-{self._number}"
                sent = self.commands[slot] = []
                try:
                    for name, send in life(client, slot):
                        if self._stop.is_set():
                            break
                        sent.append((name, False))
                        send()
                        sent[-1] = (name, True)
                except Refused as error:
                    self.note_refusal(sent, slot, error)
                except CreditPiggyError as error:
                    if error.definite:
                        del sent[-1]
                    self._stop.wait(0.005)

    def note_refusal(self, sent: list[tuple[str, bool]], slot: str, error: Refused) -> None:
        self.refusals.append(f"{slot}: {error}")

    @property
    def acknowledged(self) -> int:
        return sum(done for sent in list(self.commands.values()) for _, done in sent)

    @property
    def unknown(self) -> int:
        return sum(not done for sent in list(self.commands.values()) for _, done in sent)


def life(client: Client, slot: str):
    """The commands of one slot, each by a name of its own."""
    yield "alloc", lambda: client.alloc(slot, credits=7)
    for number in range(COUNTERS):
        yield f"c{number}", lambda number=number: client.counters(slot, **{f"c{number}": 1})
    yield "claim", lambda: client.claim(slot, "machine-" + slot[-1])


def effects(slot) -> dict[str, int]:
    """How often each command of a slot has had its effect; claims and allocs are refused a second time."""
    return {"alloc": 1, **(slot.counters or {})} | ({"claim": 1} if slot.machine else {})


def faults(load: Load, accounts: AccountServer) -> Counter[str]:
    found: Counter[str] = Counter(refused=len(load.refusals))
    with accounts.reading() as ledger:
        slots = ledger.project(PROJECT).slots
        found["laws broken"] = len(list(ledger.violations()))
        found["never sent"] = len(slots.keys() - load.commands.keys())
        for slot_id, sent in load.commands.items():
            had = effects(slots[slot_id]) if slot_id in slots else {}
            for name, done in sent:
                found["lost"] += done and had.get(name, 0) == 0
            found["twice"] += sum(count > 1 for count in had.values())
            found["never sent"] += len(had.keys() - dict(sent).keys())
    return found


def run(folder: Path, kills: dict[str, int], seed: int) -> tuple[Load, Counter[str]]:
    chance = random.Random(seed)
    secret_file = folder / "secret"
    secret_file.write_text(SECRET)
    http = f"127.0.0.1:{free_port()}"
    url = f"http://{http}/api"
    credentials = ("--project", PROJECT, "--secret-file", secret_file)
    store, spool = folder / "store", folder / "spool"
    inner, outer = folder / "server.sock", folder / "daemon.sock"
    serve = ("serve", "--http", http, "--unix", inner, "--store", store, *credentials)
    forward = ("daemon", "--unix", outer, "--server", url, "--spool", spool, "--flush-interval", "0.02", *credentials)
    processes = {
        "server": Process(*serve, ready=folder / "server.ready"),
        "daemon": Process(*forward, ready=folder / "daemon.ready"),
    }
    for process in processes.values():
        process.start()
    load = Load()
    senders = {
        "daemon": [lambda: Client(str(outer), timeout_s=5)] * CLIENTS,
        "server": [lambda: Client(str(inner), timeout_s=5)] * CLIENTS
        + [lambda: Client(url, (PROJECT, SECRET), timeout_s=5)] * CLIENTS,
    }
    rounds = [name for name, times in kills.items() for _ in range(times)]
    chance.shuffle(rounds)
    for number, victim in enumerate(rounds, 1):
        process = processes[victim]
        everyone = senders["daemon"] + (senders["server"] if victim == "server" else [])
        load.run(everyone, chance.uniform(0, LONGEST_ROUND_S), lambda: process.end(signal.SIGKILL))  # noqa: B023
        process.start()
        print(f"\r{number} of {len(rounds)} kills, {load.acknowledged:,} acknowledged", end="", file=sys.stderr)
    print(file=sys.stderr)
    wait_until(lambda: read_status(spool).queued == 0)
    for name in ("daemon", "server"):
        if status := processes[name].end(signal.SIGTERM):
            sys.exit(f"the {name} ended with status {status}")
    kept = Store(store)
    found = faults(load, AccountServer({PROJECT: SECRET}, store=kept))
    kept.close()
    status = read_status(spool)
    found["failed"] = status.refused + status.dead_letters
    return load, found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"nothing came of it in {PATIENCE_S} s")
        time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--daemon", type=int, default=10, help="how often to kill the daemon")
    parser.add_argument("--server", type=int, default=10, help="how often to kill the server")
    parser.add_argument("--seed", type=int, default=1, help="of the moments when they are killed")
    said = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cpsim-kill-") as name:
        load, found = run(Path(name), {"daemon": said.daemon, "server": said.server}, said.seed)
    figures = {
        "daemon_kills": said.daemon,
        "server_kills": said.server,
        "seed": said.seed,
        "acknowledged": load.acknowledged,
        "unknown": load.unknown,
        "elapsed_s": round(time.monotonic() - begun, 1),
        **found,
    }
    print(json.dumps(figures))
    sys.exit(1 if any(found.values()) else 0)


if __name__ == "__main__":
    main()
