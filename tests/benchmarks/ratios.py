"""Ratios measured side by side, in one run: `nox -s bench`.

Each row compares two ways of doing one thing on this machine, now; a time alone would say more about the machine.
The two take turns, and the ratio is the median of those of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import judging
import limits
import loading
import memory
import replaying
import slots
from c_limit import Limit
from rich.console import Console
from rich.table import Table
from rounds import Row, in_turns
from served import between, forwarding, serving

from cpdaemon import Client
from cpdaemon.endpoint import UnixEndpoint
from cpsim.config.catalog import find_scenario
from cpsim.evidence.journal import Journal
from cpsim.fake import FakeProcess
from cpsim.replay.engine import Engine, operations
from cpsim.replay.payloads import frames
from cpsim.replay.wires.connect import open_wire
from cpsim.scenario import load_workload
from cpsim.system.process import undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IDLE = 10_000
CLIENT_COMMANDS = 3_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all rows, print them, beside those of before if asked to, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description="Ratios measured side by side.")
    parser.add_argument("output", nargs="?", type=Path, help="where to write the rows as JSON")
    parser.add_argument("--compare", metavar="OLD.json", type=Path, help="rows to show beside these")
    parser.add_argument("--slots", type=int, help="measure only so many slots, of 500 bytes each")
    given = parser.parse_args(arguments)
    before = json.loads(given.compare.read_text(encoding="utf-8")) if given.compare else {}
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, row in with_slots(given.slots, folder) if given.slots else measured(folder):
            print(f"{row.ratio:8.2f}  {title}", file=sys.stderr, flush=True)
            rows[title] = row
    columns = ["first", "second", "ratio", *(["ratio before", "change"] if before else [])]
    table = Table("first / second", *columns)
    for title, row in rows.items():
        old = before.get(title, {}).get("ratio")
        change = [] if not before else ["-", "-"] if not old else [f"{old:.2f}", f"{row.ratio / old - 1:+.0%}"]
        table.add_row(title, f"{row.first:,.4g}", f"{row.second:,.4g}", f"{row.ratio:.2f}", *change)
    Console().print(table)
    if given.output:
        figures = {title: row._asdict() for title, row in rows.items()}
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measured(folder: Path) -> Iterator[tuple[str, Row]]:
    """All rows; without a C compiler, those that need none."""
    limit = limit_of(folder)
    yield from anywhere(folder)
    with limit.serving() if limit else asyncio_daemon(folder) as least:
        (folder / "replaying").mkdir()
        yield from replaying.rows(folder / "replaying", least)
        if limit:
            yield from replaying.against_the_limit(limit, least)
            yield from limits.rows(limit, least, folder)


def with_slots(count: int, folder: Path) -> Iterator[tuple[str, Row]]:
    """A ledger with so many slots, and a fake with them."""
    yield from slots.rows(count)
    if limit := limit_of(folder):
        yield limits.full_against_empty(limit, folder, count)


def limit_of(folder: Path) -> Limit | None:
    """What the machine allows, if there is a C compiler to make it."""
    try:
        return Limit(folder)
    except FileNotFoundError as missing:
        print(f"{missing}, so nothing is compared with what the machine allows", file=sys.stderr)
        return None


def anywhere(folder: Path) -> Iterator[tuple[str, Row]]:
    """What needs nothing but Python."""
    yield "import cpdaemon / bare interpreter, start-up time", starting("-c", "import cpdaemon")
    yield "cpsim --version / bare interpreter, start-up time", starting("-m", "cpsim", "--version")
    yield "cpsim run --help / bare interpreter, start-up time", starting("-m", "cpsim", "run", "--help")
    yield "replay engine / one client, commands/s", engine_against_client(folder)
    yield "fake daemon and ledger / asyncio daemon that only answers, commands/s", fake_against_asyncio(folder)
    yield "daemon with its spool and a scrape a second / without, commands/s", scraped_against_alone(folder)
    yield "proxy with a fault in front of a daemon / recorder there, commands/s", proxy_against_recorder(folder)
    yield from judging.rows(folder)
    yield "greatest memory of reading a job log of 500,000 jobs / of 50,000, MB", memory.of_a_log(folder)
    if find_spec("locust") and Path("/proc/self/status").exists():
        yield from loading.rows(folder)
    yield "memory of a slot claimed with two counters / allocated, bytes", memory.per_slot()
    yield from slots.rows(memory.SLOTS)
    for kind in ("unix", "tcp", "http"):
        yield f"client beside {IDLE:,} idle connections / alone, {kind}, commands/s", beside_idle(kind)


def beside_idle(kind: str) -> Row:
    """A client that waits for every answer, with and without idle connections beside it."""
    script = Path(__file__).parent.parent / "robustness" / "idle.py"
    command = [sys.executable, script, "--connections", str(IDLE), "--kind", kind]
    figures = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)[kind]
    return Row(figures["with"], figures["without"], figures["ratio"])


def engine_against_client(folder: Path) -> Row:
    """The replay engine, and `Client.alloc` in a loop, at one fake."""
    with FakeProcess() as process:
        address = process.serve({"bench": "secret"}, folder / "fake.sock")["unix"]

        def client(turn: int) -> float:
            with Client(address) as sender:
                start = time.perf_counter()
                for number in range(CLIENT_COMMANDS):
                    sender.alloc(f"client-{turn}-{number}", credits=5)
                return CLIENT_COMMANDS / (time.perf_counter() - start)

        return in_turns(lambda turn: replay(address, f"engine-{turn}"), client)


def fake_against_asyncio(folder: Path) -> Row:
    """The fake daemon with its ledger in a process of its own, and the least daemon asyncio can be, likewise."""
    with FakeProcess() as process, asyncio_daemon(folder) as other:
        address = process.serve({"bench": "secret"}, folder / "fake.sock")["unix"]
        return in_turns(lambda turn: replay(address, f"fake-{turn}"), lambda turn: replay(other, f"other-{turn}"))


def scraped_against_alone(folder: Path) -> Row:
    """A daemon whose metrics somebody reads each second, and whose nobody does."""
    with (
        serving(folder / "behind") as server,
        forwarding(folder / "scraped", server["http"], "--metrics", "0") as daemon,
    ):

        def scraped(turn: int) -> float:
            with scraping(daemon["metrics"]):
                return replay(daemon["unix"], f"scraped-{turn}")

        return in_turns(scraped, lambda turn: replay(daemon["unix"], f"alone-{turn}"))


def proxy_against_recorder(folder: Path) -> Row:
    """The same daemon through each; the proxy looks for a fault's slots in every command, and finds none."""
    with (
        serving(folder / "fake") as fake,
        between(folder / "proxy", "proxy", fake["unix"], "--fault", "error:slot=nobody-*") as proxy,
        between(folder / "record", "record", fake["unix"], "-o", str(folder / "recorded.csv")) as recorder,
    ):
        return in_turns(lambda turn: replay(proxy, f"proxy-{turn}"), lambda turn: replay(recorder, f"recorder-{turn}"))


@contextmanager
def scraping(url: str) -> Iterator[None]:
    """Scrape at once and each second, while the context lasts."""
    over = threading.Event()

    def scrape() -> None:
        while True:
            with urllib.request.urlopen(url, timeout=60) as response:
                response.read()
            if over.wait(1.0):
                return

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def replay(address: str, prefix: str) -> float:
    """Operations a second of the challenge scenario, undisturbed as in `cpsim run`."""
    workload = load_workload(find_scenario("challenge"))
    journal = Journal()
    engine = Engine(
        open_wire(UnixEndpoint(address), 10.0), journal, in_flight=64, timeout_s=10.0, on_progress=lambda _: None
    )
    with undisturbed():
        elapsed_s = engine.run(operations(workload.slot, None, frames(workload, prefix)))
    journal.close()
    assert journal.counts == [len(workload), 0, 0], journal.errors
    return len(workload) / elapsed_s


@contextmanager
def asyncio_daemon(folder: Path) -> Iterator[str]:
    """A process that answers OK to whatever it reads."""
    path = folder / "asyncio.sock"
    with subprocess.Popen([sys.executable, __file__, "--answer", str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield str(path)
        process.terminate()


class Answer(asyncio.Protocol):
    """Says OK and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert isinstance(self.transport, asyncio.Transport)
        self.transport.write(b"OK")
        self.transport.close()


async def answer(path: str) -> None:
    """Serve `Answer` until the process is ended."""
    server = await asyncio.get_running_loop().create_unix_server(Answer, path, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


def starting(*arguments: str) -> Row:
    """Seconds for an interpreter that does something, and for one that does nothing."""

    def start(*words: str) -> float:
        begun_s = time.perf_counter()
        subprocess.run([sys.executable, "-P", *words], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun_s

    return in_turns(lambda _: start(*arguments), lambda _: start("-c", ""))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        asyncio.run(answer(sys.argv[2]))
    else:
        main()
