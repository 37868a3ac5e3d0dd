"""Keep a daemon and a server busy, at half of what they can do or a given rate, and see whether anything grows.

    python tests/robustness/soak.py --minutes 30

A `cpsim daemon` with its spool forwards to a `cpsim serve` with its store, which now and then refuses, breaks off or
loses a reply. Round after round is replayed, verified and forgotten. Beside that, others send commands of every kind to
the server itself and to its own daemon, malformed ones too, upload halves of bodies, connect and say nothing, and look
at what there is. The exit status is 0 if every round was valid, and memory, open files, threads and latency at the end
are as they were once it had warmed up. Figures are printed as JSON, those of each round on standard error; `slopes`
says by how much each grew in an hour, as the last two thirds of the time have it.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpdaemon import Client, CreditPiggyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

FAULTS = (
    "server.status=503:probability=0.02,kind=bulk",
    "server.lose-reply:probability=0.01,kind=bulk",
    "server.cut:probability=0.01,kind=bulk",
)
ACCOUNT = ("--project", "demo", "--secret-file", "secret")
PROJECTS = ("--project", "mixed", "--secret-file", "secret", *ACCOUNT)
"""The others work for a project of their own, to which the server's own daemon belongs."""
PLACES = ("--http", "127.0.0.1:0", "--unix", "s.sock")
ROUND_S = 30.0
SAMPLE_S = 2.0
PAUSE_S = 0.02
TELLING_S = 10.0
"""A shorter round tells nothing of latency."""
OPERATIONS_A_JOB = 3
KEPT = ("operations", "operations_per_s", "lateness_p99_ms", "verdict", "anomalies_by_name", "not_verified")
"""What is told of a round."""
MOST = {"memory_mb": 1.15, "p99_ms": 2.0, "files": 1.1, "threads": 1.0}
"""How many times what there was at first there may be at last."""
SLACK = {"memory_mb": 10.0, "p99_ms": 2.0, "files": 8.0, "threads": 1.0}
"""And how much more, whatever it was: few are easily doubled."""


def main() -> int:
    """Soak, print what was seen round by round, and say whether it stayed flat."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--round", type=float, default=ROUND_S, help="seconds of load in a round")
    parser.add_argument("--rate", type=float, help="commands a second; otherwise half of what is possible")
    parser.add_argument("--pause", type=float, default=PAUSE_S, help="seconds between two things that each other does")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "secret").write_text("demo", encoding="utf-8")
        faults = [word for fault in FAULTS for word in ("--fault", fault)]
        with (
            cpsim(folder, "serve", *PLACES, "--store", "store", "--seed", "1", *PROJECTS, *faults) as server,
            cpsim(folder, "daemon", "--server", server.url, *ACCOUNT, "--unix", "d.sock", "--spool", "spool") as daemon,
            Others(folder, server, chosen.pause) as others,
            Samples({"server": server, "daemon": daemon}) as samples,
        ):
            rate = chosen.rate or replay(folder, server, "--asap", operations=20_000)["operations_per_s"] / 2
            rounds = []
            end = time.monotonic() + chosen.minutes * 60
            while time.monotonic() < end or len(rounds) < 4:
                seen = replay(folder, server, "--rate", f"{rate:.0f}", operations=int(rate * chosen.round))
                rounds.append(seen | {"server": server.size(), "daemon": daemon.size()})
                print(len(rounds), json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    problems = [
        f"round {number}: {seen['verdict']}" for number, seen in enumerate(rounds) if seen["verdict"] != "valid"
    ]
    problems += grown(rounds, [what for what in MOST if what != "p99_ms" or chosen.round >= TELLING_S])
    problems += [f"the others: {error}" for error in others.errors]
    figures = {"rate": round(rate), "rounds": len(rounds), "first": rounds[0], "last": rounds[-1]}
    figures |= {"others": dict(others.done), "slopes": samples.slopes()}
    print(json.dumps(figures | {"problems": problems}, indent=2))
    return 1 if problems else 0


class Serving:
    """A process that serves, and what is seen of it from outside."""

    def __init__(self, process: subprocess.Popen[str], addresses: dict[str, str]) -> None:
        self.url = addresses.get("http", "")
        self._pid = process.pid

    def size(self) -> dict[str, float]:
        """Its memory, open files and threads."""
        memory = _told("ps", "-o", "rss=", "-p", str(self._pid))
        proc = Path(f"/proc/{self._pid}")
        if proc.exists():
            files, threads = len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir()))
        else:
            files = len(_told("lsof", "-p", str(self._pid)).splitlines())
            threads = len(_told("ps", "-M", str(self._pid)).splitlines()) - 1
        return {"memory_mb": int(memory) / 1024, "files": files, "threads": threads}


@contextmanager
def cpsim(folder: Path, *arguments: str) -> Iterator[Serving]:
    """A command that serves, in a folder, while the context lasts."""
    log = folder / f"{arguments[0]}.log"
    command = [sys.executable, "-P", "-m", "cpsim", *arguments]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        addresses: dict[str, str] = {}
        for _ in range(sum(option in {"--http", "--unix"} for option in arguments)):
            kind, _, address = process.stdout.readline().strip().partition(" ")
            if not address:
                process.kill()
                sys.exit(f"{arguments[0]} did not start:\n{log.read_text(encoding='utf-8')}")
            addresses[kind] = address
        try:
            yield Serving(process, addresses)
        finally:
            process.terminate()


class Samples:
    """What is seen of some processes, every other second; a context manager."""

    def __init__(self, processes: dict[str, Serving]) -> None:
        self._processes = processes
        self._seen: list[tuple[float, dict[str, dict[str, float]]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            sizes = {name: process.size() for name, process in self._processes.items()}
            self._seen.append((time.monotonic(), sizes))

    def slopes(self) -> dict[str, dict[str, float]]:
        """By how much each figure grew in an hour, in the last two thirds of the time, by least squares."""
        if not self._seen:
            return {}
        seen = [each for each in self._seen if each[0] > self._seen[0][0] + (self._seen[-1][0] - self._seen[0][0]) / 3]
        if len(seen) < 2:
            return {}
        hours = [(at - seen[0][0]) / 3600 for at, _ in seen]
        return {
            name: {
                what: round(statistics.linear_regression(hours, [sizes[name][what] for _, sizes in seen]).slope, 2)
                for what in seen[0][1][name]
            }
            for name in self._processes
        }


class Others:
    """Who else is at the server: threads that each do one thing again and again; a context manager.

    Attributes:
        done: how often each thing was done.
        errors: what ended a thread.
    """

    def __init__(self, folder: Path, server: Serving, pause_s: float) -> None:
        self._folder, self._url, self._pause_s = folder, server.url, pause_s
        host, port = server.url.removeprefix("http://").removesuffix("/api").rsplit(":", 1)
        self._address = (host, int(port))
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self._stop = threading.Event()
        things = (self._command, self._frame, self._malformed, self._upload, self._silence, self._look)
        self._threads = [threading.Thread(target=self._repeat, args=(thing,)) for thing in things]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, thing: Callable[[int], None]) -> None:
        number = 0
        while not self._stop.wait(self._pause_s):
            number += 1
            try:
                thing(number)
            except (CreditPiggyError, OSError):  # a reset of the project, or a fault
                self.done["failed"] += 1
            except Exception as error:  # noqa: BLE001 - it is reported
                self.errors.append(f"{thing.__name__}: {type(error).__name__}: {error}")
                return
            self.done[thing.__name__.lstrip("_")] += 1

    def _command(self, number: int) -> None:
        with Client(self._url, ("mixed", "demo"), timeout_s=10) as client:
            self._life(client, f"http-{number}")

    def _frame(self, number: int) -> None:
        with Client(str(self._folder / "s.sock"), timeout_s=10) as client:
            self._life(client, f"frame-{number}")

    def _life(self, client: Client, slot: str) -> None:
        client.alloc(slot, credits=3)
        client.counters(slot, events=1)
        client.meta(slot, site="here")
        (client.claim if len(slot) % 2 else client.discard)(slot, "m" if len(slot) % 2 else "lost")

    def _malformed(self, number: int) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self._folder / "s.sock"))
            sock.sendall(b"alloc,slot" if number % 2 else bytes(2_000))
            sock.recv(10)

    def _upload(self, _: int) -> None:
        with socket.create_connection(self._address, 10) as sock:
            sock.sendall(b"POST /api/batch/bulk HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + bytes(500_000))

    def _silence(self, _: int) -> None:
        with socket.create_connection(self._address, 10), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._folder / "s.sock"))
            self._stop.wait(10 * self._pause_s)

    def _look(self, number: int) -> None:
        place = ("totals", "slots?project=mixed&limit=10", "clock", "malformed?project=mixed")[number % 4]
        with urllib.request.urlopen(f"{self._url.removesuffix('/api')}/__cpsim/{place}", timeout=10) as reply:
            reply.read()


def replay(folder: Path, server: Serving, *pace: str, operations: int) -> dict[str, Any]:
    """Replay so many operations, and have the server forget them."""
    jobs = f"arrivals.jobs={max(1, operations // OPERATIONS_A_JOB)}"
    command = [sys.executable, "-P", "-m", "cpsim", "run", "steady", "--target", "./d.sock", "--server", server.url]
    command += [*ACCOUNT, *pace, "--set", jobs, "--timeout", "5", "--output", "run", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"a round ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    subprocess.run(["rm", "-r", "run"], cwd=folder, check=True)
    request = urllib.request.Request(f"{server.url.removesuffix('/api')}/__cpsim/reset", method="POST")
    urllib.request.urlopen(request).close()
    latency = told["response_ms"] or told["service_ms"]
    kept = {name: told[name] for name in KEPT}
    return kept | {"p99_ms": latency["p99"], "errors": told["errors"]}


def grown(rounds: list[dict[str, Any]], watched: list[str]) -> list[str]:
    """What is more in the last quarter of the rounds than it was in the second."""
    quarter = len(rounds) // 4
    problems = []
    for what in watched:
        for where in ("server", "daemon") if what != "p99_ms" else ("",):
            values = [seen[where][what] if where else seen[what] for seen in rounds]
            first, last = (statistics.median(values[at : at + quarter]) for at in (quarter, len(rounds) - quarter))
            if last > max(first * MOST[what], first + SLACK[what]):
                problems.append(f"{what} of the {where or 'commands'}: {first:g} at first, {last:g} at last")
    return problems


def _told(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
