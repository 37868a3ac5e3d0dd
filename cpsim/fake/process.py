"""The fake in its own process, which ends with its parent process, and may crash on demand."""

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
from cpsim.system.process import do_without_pandas, tune_process
from cpsim.system.threads import ThreadFailed, on_thread_failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Self


FAILED: Final = 2


class ServedProcess(msgspec.Struct):
    """The settings of a served process; a restart has the same port and the faults' progress."""

    projects: dict[str, str]
    unix: str
    sites: list[tuple[str, str]]
    store: str | None
    port: int = ANY_PORT.port
    faults: FaultProgress | None = None


class FakeProcess:
    """A `Fake` in its own process, without the caller's interpreter lock; a context manager.

    The process starts at once, serves from `serve` on, and ends with the context or with this process.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from cpsim.fake.process import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the caller alone, which then reads the ledger
        )

    def serve(
        self,
        projects: Mapping[str, str],
        unix: Path,
        *,
        sites: Iterable[tuple[str, Path]] = (),
        store: Path | None = None,
    ) -> dict[str, str]:
        """Serve a UNIX socket, and HTTP on a free loopback port; return the addresses, `unix` and `http`.

        Args:
            projects: project id to secret; sent over a pipe, not on the command line.
            unix: path of the socket of the first project's daemon.
            sites: project id and socket path of each further daemon.
            store: file of the accounts. With it, faults may crash the process, as `kill -9` does; the process then
                restarts at once, and the faults continue.

        Raises:
            CpsimError: the process failed to serve.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        served = ServedProcess(
            dict(projects),
            str(unix),
            [(project_id, str(path)) for project_id, path in sites],
            None if store is None else str(store),
        )
        self._process.stdin.write(msgspec.json.encode(served).decode() + "\n")
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
        was_reported = self._process.returncode is not None
        self._process.communicate()
        if self._process.returncode and error is None and not was_reported:
            raise CpsimError(f"the embedded fake ended with status {self._process.returncode}")


def main() -> None:
    """Serve a `FakeProcess`: settings on standard input, addresses on standard output, until the input ends."""
    tune_process()
    do_without_pandas()
    logging.getLogger("cpsim").addHandler(logging.NullHandler())  # the terminal is the caller's
    line = sys.stdin.readline()
    if not line:
        return  # the caller never called `serve`
    served = msgspec.json.decode(line, type=ServedProcess)
    try:
        if served.store is None:
            _serve(served)
        else:
            _serve_with_restarts(served)
    except (OSError, CpsimError) as error:
        sys.exit(f"cpsim: the embedded fake: {getattr(error, 'strerror', None) or error}")


def _serve_with_restarts(served: ServedProcess) -> None:
    """Serve in a child process, and in another after each crash; this process has imported all that it needs."""
    while True:
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            os.close(read_end)
            _serve(served, write_end)
            return
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            restart = pipe.read()
        _, status = os.waitpid(child, 0)
        if not restart:
            sys.exit(os.waitstatus_to_exitcode(status))
        served = msgspec.json.decode(restart, type=ServedProcess)


def _serve(served: ServedProcess, write_end: int | None = None) -> None:
    """Serve until standard input ends; with a pipe, a fault may crash the process, and the pipe gets the restart."""

    def crash() -> None:
        assert write_end is not None
        served.faults = fake.faults.progress()
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(msgspec.json.encode(served))
        os.kill(os.getpid(), signal.SIGKILL)

    fake = Fake(
        served.projects,
        unix=Path(served.unix),
        http=TcpEndpoint(ANY_PORT.host, served.port),
        sites=[Site(project_id=project_id, unix=Path(path)) for project_id, path in served.sites],
        journal_limit=0,  # a run keeps its own journal
        store=None if served.store is None else Path(served.store),
        crash=None if write_end is None else crash,
    )
    if served.faults is not None:
        fake.faults.resume(served.faults)
    with on_thread_failure(_end), fake:
        if served.faults is None:
            server = parse_endpoint(fake.addresses["http"])
            assert isinstance(server, UrlEndpoint)
            served.port = server.port
            print(json.dumps(fake.addresses), flush=True)
        sys.stdin.read()
        fake.faults.clear()  # a delivery at the end must not crash the process


def _end(failed: ThreadFailed) -> None:
    """Exit at once, even while the main thread is blocked."""
    print(f"cpsim: the embedded fake: {failed}", file=sys.stderr, flush=True)
    os._exit(FAILED)
