"""A whole site from a seed: clients, listener, spool, log, courier, the server's API, accounts and store.

All of it is the real code, in one process and one thread, on a clock that only the simulation advances. The simulation
stands behind the seams: the log's file, the listener's link, the courier's network. What happens next, and what goes
wrong, is drawn from the seed. After each step, the books are checked against what the clients were answered.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torture_clients import Books, Life
from torture_disk import FATES, Crash, Disk, SimulatedLog
from torture_network import PROJECT, SECRET, ListenerLink, ServerLink, Socket, signed

from cpsim.daemon.courier import Courier
from cpsim.daemon.durable import DurableListener
from cpsim.daemon.spool import Spool
from cpsim.daemon.spool_status import read_failed
from cpsim.errors import CpsimError
from cpsim.net.http.messages import Response
from cpsim.server.http import Api, SingleCommand
from cpsim.server.service import AccountServer
from cpsim.server.store import Store
from cpsim.store.log import InDoubt
from cpsim.testing import ManualClock

EVENTS = (50, 500)
"""Events of a run, at least and at most, before all that goes wrong is mended."""
EVENTS_TO_END = 6_000
"""Events in which a mended site must have delivered everything."""
EVENTS_OF_A_WAIT = 5_000
RESERVE_BYTES = 64 * 1024
NETWORK_FATES = ("unreachable", "lost", "late", "again", "reply lost", "reply late")


class SimulatedStore(Store):
    """A store that writes a snapshot now and then, however little it has."""

    chance = None

    @property
    def wants_snapshot(self):
        return self.chance is not None and self.chance.random() < 0.05


@dataclass(frozen=True)
class Parts:
    """The classes that a site is made of; a test replaces one by a broken one."""

    listener: type = DurableListener
    spool: type = Spool
    courier: type = Courier
    log: type = SimulatedLog
    accounts: type = AccountServer
    store: type = SimulatedStore
    api: type = Api


class Daemon:
    """The simulated process of the daemon."""

    def __init__(self, world, disk):
        self.world, self.disk = world, disk
        self.spool = self.listener = self.courier = self.listening = self.log = None

    @property
    def is_up(self):
        return self.listening is not None

    def start(self):
        world, parts = self.world, self.world.parts
        options = {"clock": world.clock, "open_log": self._open_log}
        self.spool = parts.spool(self.disk.path, world.spool_size, RESERVE_BYTES, **options)
        try:
            self.spool.set_project(PROJECT)
        except CpsimError:
            self.spool.close()
            return
        self.listening = Socket()
        self.listener = parts.listener([self.listening], self.spool, world.clock, ListenerLink(world.chance))
        self.listener.open()
        link = ServerLink(world)
        self.courier = parts.courier(
            self.spool, link, world.interval_s, max_backoff_s=5.0, clock=world.clock, chance=world.chance
        )

    def _open_log(self, *arguments, **options):
        self.log = self.world.open_log(self.disk, *arguments, **options)
        return self.log

    def kept(self):
        """The texts of the commands that the spool holds or lists as failed."""
        rows = self.log.query("SELECT record FROM log UNION ALL SELECT command FROM failed")
        return {text for (text,) in rows}

    def stop(self):
        """End in order."""
        self.listener.stop()
        self.spool.close()
        self.listening = None
        if not self.world.is_mended:
            self.world.books.on_end()

    def kill(self):
        if self.listening is not None:
            self.listening.close()
            for far in self.listening.backlog:
                far.close()
            for connection in self.world.connections():
                connection.far.close()
        self.listening = None
        self.world.books.on_end()
        self.disk.crash()


class Server:
    """The simulated process of the server."""

    def __init__(self, world, disk):
        self.world, self.disk = world, disk
        self.accounts = self.store = self.api = self.log = None

    @property
    def is_up(self):
        return self.accounts is not None

    def start(self):
        world, parts = self.world, self.world.parts
        self.store = parts.store(self.disk.path, self._open_log)
        self.accounts = parts.accounts({PROJECT: SECRET}, world.clock.now_us, store=self.store)
        self.store.chance = world.chance
        self.api = parts.api(self.accounts)

    def _open_log(self, *arguments, **options):
        self.log = self.world.open_log(self.disk, *arguments, **options, clock=self.world.clock)
        return self.log

    def answer(self, request):
        """Answer a request once what it changes is on disk, as `Api` does in an event loop."""
        store = self.store
        try:
            with self.world.using("api"):
                self.accounts.recover()
                store.begin()
                response = self.api.respond(request)
                if isinstance(response, SingleCommand):
                    (response,) = self.api.finish([response])
            store.wait()
        except CpsimError as problem:
            return Response(504 if isinstance(problem, InDoubt) else 503, str(problem).encode(), b"text/plain")
        return response

    def stop(self):
        self.store.close()
        self.accounts = None

    def kill(self):
        self.accounts = None
        self.disk.crash()


class World:
    """A site, its clients, and what happens to them.

    Args:
        seed: decides everything.
        folder: for the two files.
        parts: what the site is made of.

    Attributes:
        counts: how often each event and fault came.
    """

    def __init__(self, seed, folder, parts=Parts()):
        self.chance = chance = random.Random(seed)
        self.parts = parts
        self.clock = ManualClock()
        self.trace = hashlib.sha256()
        self.counts = Counter()
        self.busy = set()
        self.active = Counter()
        self.number = 0
        self.late = []
        self.lives = []
        self.books = Books(self.lives)
        self.is_mended = self.is_cut_off = False
        self.applied = self.refused = 0
        self.most_lives = chance.choice([1, 2, 4, 8])
        self.slowness = chance.choice([0, 0.2, 0.8])
        self.impatience = chance.choice([0, 0, 1, 3])
        self.interval_s = chance.choice([0.0, 0.0, 0.05, 2.0])
        self.spool_size = chance.choice([4, 1_000_000, 1_000_000, 1_000_000])
        self.network = self._rates(NETWORK_FATES, [0, 0, 0.1, 0.5])
        self.faults = self._rates(FAULTS, [0, 1, 3])
        self.weights = {name: weight * chance.choice([0.4, 1, 2]) for name, (weight, _) in EVENT_KINDS.items()}
        """How often each event comes: what is quick in one run is slow in another."""
        self.daemon = Daemon(self, Disk(folder, "daemon", chance, self._rates(FATES, [0, 0, 0, 0.05, 0.25])))
        self.server = Server(self, Disk(folder, "server", chance, self._rates(FATES, [0, 0, 0, 0.05, 0.25])))

    def _rates(self, names, rates):
        """The rates of some faults: in every second run none, or what is rare would never be alone."""
        chosen = rates if self.chance.random() < 0.7 else [0]
        return {name: self.chance.choice(chosen) for name in names}

    def open_log(self, disk, *arguments, **options):
        log = self.parts.log(*arguments, **options, file=disk.open_file, threaded=False)
        log.world, log.process = self, disk.process
        return log

    def next_number(self):
        self.number += 1
        return self.number

    def note(self, *what):
        """Add something to the trace of the run."""
        self.trace.update(repr((self.clock.monotonic_ns(), *what)).encode())

    def connections(self):
        return [life.connection for life in self.lives if life.connection is not None]

    def network_fate(self):
        if self.is_cut_off:
            return self.chance.choice(["unreachable", "lost"])
        return next((fate for fate, rate in self.network.items() if self.chance.random() < rate), "")

    def using(self, part):
        """A context in which no nested event uses a part."""
        return _Using(self.busy, part)

    # What happens

    def run(self):
        """Run from the start to the end, where everything is delivered and agrees."""
        for process in (self.server, self.daemon):
            self.attempt(process.disk.process, process.start)
        for _ in range(self.chance.randint(*EVENTS)):
            self.event()
        self.mend()
        for _ in range(EVENTS_TO_END):
            if self.is_quiet:
                break
            self.event()
        else:
            raise AssertionError(f"what was acknowledged is not delivered: {self.daemon.spool.pending} commands wait")
        self.check_end()

    def event(self):
        """Let something happen that can, and check the books."""
        ready = {name: self.weights[name] for name, (_, when) in EVENT_KINDS.items() if when(self)}
        allowed = ready.keys() | FAULTS.keys()
        if self.active["server"]:  # or the end of the server would end what the daemon does in between
            allowed -= {"deliver", "start daemon", "stop daemon"}
        if "api" in self.busy:  # likewise
            allowed &= {"client", "listen", "store", "time", "drain", "kill server"}
        if not self.is_mended:
            ready |= {name: weight * self.faults[name] for name, (weight, when) in FAULTS.items() if when(self)}
            for disk in (self.daemon.disk, self.server.disk):
                if (kill := f"kill {disk.process}") in ready:  # there are moments when it tells more
                    ready[kill] = ready[kill] * (4 if "courier" in self.busy else 1) + 8 * disk.has_ghost
        names = [name for name in ready if name in allowed]
        (name,) = self.chance.choices(names, [ready[name] for name in names])
        self.counts[name] += 1
        self.note(name)
        process = {"listen": "daemon", "write": "daemon", "deliver": "daemon", "store": "server"}.get(name, "")
        self.did_something = True
        self.attempt(process, getattr(self, f"_{name.replace(' ', '_')}"))
        if self.did_something and "api" not in self.busy and name not in UNSEEN:
            self.check()

    def attempt(self, process, action):
        """Do something in a process, which may end by it; who waits in that process ends with it."""
        self.active[process] += 1
        try:
            action()
        except Crash as crash:
            if self.active[crash.process] > (crash.process == process):
                raise
            self.kill(crash.process)
        finally:
            self.active[process] -= 1

    def kill(self, process):
        self.note("killed", process)
        self.counts[f"killed {process}"] += 1
        (self.daemon if process == "daemon" else self.server).kill()

    def run_until(self, done, process):
        """Let things happen until a condition holds for which a process waits."""
        for _ in range(EVENTS_OF_A_WAIT):
            if done():
                return
            self.event()
        raise AssertionError(f"the {process} waits in vain")

    def perform(self, request):
        """The server's answer to a request; None if the server ends before."""
        answers = []
        self.attempt("server", lambda: answers.append(self.server.answer(request)))
        return answers[0] if answers else None

    def _client(self):
        lives = [life for life in self.lives if not life.is_over]
        if not self.is_mended and len(lives) < self.most_lives and self.chance.random() < 0.5:
            lives = [Life(self, len(self.lives))]
            self.lives += lives
        if lives:
            self.chance.choice(lives).step()

    def _listen(self):
        with self.using("listener"):
            self.daemon.listener.step()
        self.daemon.listener.check()

    def _write(self):
        self.did_something = self.daemon.log.step()
        self.daemon.log.check()
        if self.did_something and self.chance.random() < 0.3:  # more of a frame comes while it is written
            writing = [life for life in self.lives if life.is_writing]
            if writing:
                self.chance.choice(writing).step()

    def _deliver(self):
        with self.using("courier"):
            self.daemon.courier.step()

    def _store(self):
        self.did_something = self.server.log.step()
        self.server.log.check()

    def _direct(self):
        """Somebody sends the server an alloc, without a daemon."""
        life = Life(self, len(self.lives))
        life.is_over = True
        self.lives.append(life)
        command = life.send_directly()
        reply = self.perform(signed("/batch/alloc", command.arguments()))
        command.status = {200: "OK", 503: "ER"}.get(reply.status if reply else 0, "unknown")
        self.note("direct", command.tag, command.status)

    def _late(self):
        self.perform(self.late.pop(self.chance.randrange(len(self.late))))

    def _time(self):
        self.clock.advance(self.chance.choice([0.001, 0.02, 0.06, 0.11, 1.0, 6.0]) * self.chance.uniform(0.5, 1))

    def _start_daemon(self):
        self.attempt("daemon", self.daemon.start)

    def _start_server(self):
        self.attempt("server", self.server.start)

    def _kill_daemon(self):
        raise Crash("daemon")

    def _kill_server(self):
        raise Crash("server")

    def _stop_daemon(self):
        with self.using("listener"), self.using("courier"):
            self.attempt("daemon", self.daemon.stop)

    def _stop_server(self):
        with self.using("api"):
            self.attempt("server", self.server.stop)

    def _cut(self):
        self.is_cut_off = not self.is_cut_off

    def _fill(self):
        disk = self.chance.choice([self.daemon.disk, self.server.disk])
        disk.fill(RESERVE_BYTES)

    def _drain(self):
        self.daemon.disk.room = self.server.disk.room = None

    def _set_clock(self):
        self.clock.set_wall(self.clock.now_us() + round(self.chance.uniform(-600, 600) * 1e6))

    # Whether it is right

    def mend(self):
        """Nothing goes wrong from now on, and no new command comes."""
        self.is_mended, self.is_cut_off, self.network = True, False, {}
        for process in (self.daemon, self.server):
            process.disk.heal()
        for life in self.lives:
            life.is_over = life.is_over or life.connection is None
        self.note("mended")

    @property
    def is_quiet(self):
        return (
            self.daemon.is_up
            and self.server.is_up
            and all(life.is_over for life in self.lives)
            and not (self.late or self.daemon.spool.pending or self.daemon.listener.pending)
        )

    def slots(self):
        with self.server.accounts.reading() as ledger:
            assert not (laws := list(ledger.violations())), laws
            return ledger.project(PROJECT).slots

    def check(self):
        if self.server.is_up and not self.server.store.is_broken:  # or what memory has is undone before it is shown
            self.books.check(self.slots(), self.daemon.kept if self.daemon.is_up else None)

    def check_end(self):
        """Everything is where it must be, and is the same after both have been started again."""
        self.daemon.stop()
        self.server.accounts.recover()
        failed = read_failed(self.daemon.disk.path)
        self.books.check_end(self.slots(), failed)
        before = repr(self.slots())
        self.kill("server")
        self.server.start()
        assert repr(self.slots()) == before, "the accounts are not the same after a restart"
        self.books.check_end(self.slots(), failed)
        self.applied = sum(self.books.applied(command, self.slots()) is not None for command in self.books.commands())
        self.refused = len(failed)
        self.server.stop()
        self.note(before, [(row.command, row.error) for row in failed if "cpsim-" not in row.error])


class _Using:
    def __init__(self, busy, part):
        self._busy, self._part = busy, part

    def __enter__(self):
        assert self._part not in self._busy
        self._busy.add(self._part)

    def __exit__(self, *_):
        self._busy.discard(self._part)


EVENT_KINDS = {
    "client": (12, lambda world: True),
    "listen": (6, lambda world: world.daemon.is_up and "listener" not in world.busy),
    "write": (4, lambda world: world.daemon.is_up or world.active["daemon"]),
    "deliver": (3, lambda world: world.daemon.is_up and "courier" not in world.busy),
    "store": (4, lambda world: world.server.is_up or world.active["server"]),
    "time": (2, lambda world: True),
    "late": (1, lambda world: world.late and world.server.is_up and "api" not in world.busy),
    "direct": (0.5, lambda world: world.server.is_up and "api" not in world.busy and not world.is_mended),
    "start daemon": (1, lambda world: not (world.daemon.is_up or world.active["daemon"])),
    "start server": (1, lambda world: not (world.server.is_up or world.active["server"])),
    "drain": (1, lambda world: world.daemon.disk.room is not None or world.server.disk.room is not None),
}
"""What happens, how often, and when it can."""
FAULTS = {
    "kill daemon": (0.2, lambda world: world.daemon.is_up),
    "kill server": (0.2, lambda world: world.server.is_up),
    "stop daemon": (0.1, lambda world: world.daemon.is_up and not world.active["daemon"]),
    "stop server": (0.1, lambda world: world.server.is_up and not world.active["server"]),
    "cut": (0.1, lambda world: True),
    "fill": (0.1, lambda world: True),
    "set clock": (0.1, lambda world: True),
}
"""What goes wrong, likewise; each seed has some of it."""
UNSEEN = {"client", "time", "drain", "cut", "fill", "set clock"}
"""Events after which the books are what they were."""


def run(seed, parts=Parts()):
    """Run a seed; return the world at its end, whose trace is the same each time.

    Raises:
        AssertionError: the books do not agree.
    """
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="cpsim-torture-", dir=memory if memory.is_dir() else None) as folder:
        world = World(seed, Path(folder), parts)
        try:
            world.run()
        finally:
            world.daemon.disk.close()
            world.server.disk.close()
        return world
