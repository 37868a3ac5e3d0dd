"""The fake in a process of its own, which ends with the process that started it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpsim.errors import Problem
from cpsim.fake.daemons import Site
from cpsim.fake.fake import ANY_PORT, Fake
from cpsim.process import settle_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self


SERVES: Final = "serves\n"


class FakeProcess:
    """A `Fake` in a process of its own, without the caller's interpreter lock; a context manager.

    It serves a UNIX socket and HTTP on a free port of loopback, and ends when it is left or when this process ends.

    Args:
        projects: project id to secret; they travel over a pipe, not on the command line.
        unix: where to put the daemon's socket.

    Raises:
        Problem: the process did not start (from `addresses`).
    """

    def __init__(self, projects: Mapping[str, str], unix: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from cpsim.fake.process import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the caller, who still wants to read the ledger
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"projects": dict(projects), "unix": str(unix)}) + "\n")
        self._process.stdin.flush()

    def addresses(self) -> dict[str, str]:
        """Where it listens, once it does: `unix` and `http`."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Problem(f"the embedded fake ended with status {self._process.wait()}")
        addresses: dict[str, str] = json.loads(line)
        return addresses

    def add_site(self, project_id: str, secret: str, unix: Path) -> None:
        """One more daemon, for a project that is added if there is none of that id; it serves when this returns.

        Raises:
            Problem: it cannot be.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([project_id, secret, str(unix)]) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout is not None
        if self._process.stdout.readline() != SERVES:
            raise Problem(f"the embedded fake has no site for project {project_id!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def main() -> None:
    """Serve as a `FakeProcess`: configuration on standard input, addresses out, until the input ends."""
    configuration = json.loads(sys.stdin.readline())
    settle_in()
    projects, unix = configuration["projects"], Path(configuration["unix"])
    with Fake(projects, unix=unix, http=ANY_PORT, journal_limit=0) as fake:  # a run keeps a journal of its own
        print(json.dumps(fake.addresses), flush=True)
        for line in sys.stdin:
            project_id, secret, path = json.loads(line)
            if project_id not in fake.accounts.projects:
                fake.add_project(project_id, secret)
            fake.add_site(Site(project_id=project_id, unix=Path(path)))
            print(SERVES, end="", flush=True)
