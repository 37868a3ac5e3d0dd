"""The fake in a process of its own, which ends with the process that started it, and may crash meanwhile."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cpdaemon.endpoint import TcpEndpoint, UrlEndpoint, parse_endpoint
from cpsim.errors import CpsimError
from cpsim.fake.daemons import Site
from cpsim.fake.fake import ANY_PORT, Fake
from cpsim.faults.plan import FaultProgress  # noqa: TC001 - msgspec reads it
from cpsim.system.process import settle_in
from cpsim.system.threads import ThreadFailed, notified

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Self


FAILED: Final = 2


class ServedProcess(msgspec.Struct):
    """What a process serves until it ends or crashes; after a crash, at the same port and with the faults so far."""

    projects: dict[str, str]
    unix: str
    sites: list[tuple[str, str]]
    store: str | None
    port: int = ANY_PORT.port
    faults: FaultProgress | None = None


class FakeProcess:
    """A `Fake` in a process of its own, without the caller's interpreter lock; a context manager.

    It starts up at once, serves when it is told what, and ends when it is left or when this process ends.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from cpsim.fake.process import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the caller, who still wants to read the ledger
        )

    def serve(
        self,
        projects: Mapping[str, str],
        unix: Path,
        *,
        sites: Iterable[tuple[str, Path]] = (),
        store: Path | None = None,
    ) -> dict[str, str]:
        """Serve a UNIX socket and HTTP on a free port of loopback; returns `unix` and `http`, once it does.

        Args:
            projects: project id to secret; they travel over a pipe, not on the command line.
            unix: where to put the socket of the first project's daemon.
            sites: project id and socket of each daemon more.
            store: the file that keeps the accounts. With it, faults may crash the process, as `kill -9` does: it is
                then started again at once, with the faults where they were.

        Raises:
            CpsimError: it cannot.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        life = ServedProcess(
            dict(projects),
            str(unix),
            [(project_id, str(path)) for project_id, path in sites],
            None if store is None else str(store),
        )
        self._process.stdin.write(msgspec.json.encode(life).decode() + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise CpsimError(f"the embedded fake ended with status {self._process.wait()}")
        addresses: dict[str, str] = json.loads(line)
        return addresses

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        was_told = self._process.returncode is not None
        self._process.communicate()
        if self._process.returncode and error is None and not was_told:
            raise CpsimError(f"the embedded fake ended with status {self._process.returncode}")


def main() -> None:
    """Serve as a `FakeProcess`: a life on standard input, addresses out, until the input ends."""
    settle_in()
    logging.getLogger("cpsim").addHandler(logging.NullHandler())  # the terminal is the caller's
    line = sys.stdin.readline()
    if not line:
        return  # there was nothing to serve after all
    life = msgspec.json.decode(line, type=ServedProcess)
    try:
        if life.store is None:
            _live(life)
        else:
            _live_again_and_again(life)
    except (OSError, CpsimError) as error:
        sys.exit(f"cpsim: the embedded fake: {getattr(error, 'strerror', None) or error}")


def _live_again_and_again(life: ServedProcess) -> None:
    """Have a child of this process live, and the next one after each crash: all that it takes to begin is here."""
    while True:
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            os.close(read_end)
            _live(life, write_end)
            return
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            next_life = pipe.read()
        _, status = os.waitpid(child, 0)
        if not next_life:
            sys.exit(os.waitstatus_to_exitcode(status))
        life = msgspec.json.decode(next_life, type=ServedProcess)


def _live(life: ServedProcess, write_end: int | None = None) -> None:
    """Serve until standard input ends; with a pipe, a fault may crash this process, and the pipe has the next life."""

    def crash() -> None:
        assert write_end is not None
        life.faults = fake.faults.progress()
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(msgspec.json.encode(life))
        os.kill(os.getpid(), signal.SIGKILL)

    fake = Fake(
        life.projects,
        unix=Path(life.unix),
        http=TcpEndpoint(ANY_PORT.host, life.port),
        sites=[Site(project_id=project_id, unix=Path(path)) for project_id, path in life.sites],
        journal_limit=0,  # a run keeps a journal of its own
        store=None if life.store is None else Path(life.store),
        crash=None if write_end is None else crash,
    )
    if life.faults is not None:
        fake.faults.resume(life.faults)
    with notified(_end), fake:
        if life.faults is None:
            server = parse_endpoint(fake.addresses["http"])
            assert isinstance(server, UrlEndpoint)
            life.port = server.port
            print(json.dumps(fake.addresses), flush=True)
        sys.stdin.read()
        fake.faults.clear()  # or what is passed on now might crash it once more


def _end(failed: ThreadFailed) -> None:
    """End this process, whatever its main thread waits for."""
    print(f"cpsim: the embedded fake: {failed}", file=sys.stderr, flush=True)
    os._exit(FAILED)
