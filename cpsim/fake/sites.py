"""What is added to a fake through its control API while it serves, and removed again."""

from __future__ import annotations

import secrets
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import TcpEndpoint
from cpsim.errors import CpsimError
from cpsim.fake.daemons import Site
from cpsim.server.control.sites import Sites
from cpsim.server.control.views import DaemonView, ProjectView

if TYPE_CHECKING:
    from cpsim.daemon.site import Daemon
    from cpsim.fake.fake import Fake

MOST_ADDED: Final = 500
"""Daemons that can be added: each has two threads and some descriptors."""


class AddedSites(Sites):
    """The daemons of a fake, and the projects and daemons that were added through the control API.

    Args:
        fake: the fake.
        stored: whether it has a store, which would outlive what is added.
    """

    def __init__(self, fake: Fake, *, stored: bool) -> None:
        self._fake = fake
        self._stored = stored
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._project_numbers, self._socket_numbers = count(1), count(1)
        self._projects: set[str] = set()
        self._added: list[Daemon] = []

    def pending(self, project: str) -> int:
        """The number of a project's acknowledged commands that have not reached the accounts."""
        return sum(daemon.pending for daemon in self._fake.daemons if daemon.project_id == project)

    def daemons(self) -> list[DaemonView]:
        """The daemons, in the order in which they were added."""
        return [self._view(daemon) for daemon in self._fake.daemons]

    def add_project(self, project: str | None, flush_interval_s: float) -> ProjectView:
        """Add a project with a daemon: see `Sites`."""
        self._check_room()
        if project is None:
            taken = set(map(str.lower, self._fake.accounts.projects))
            project = next(name for number in self._project_numbers if (name := f"project-{number}") not in taken)
        secret = secrets.token_hex(16)
        self._fake.add_project(project, secret)
        try:
            addresses = self._add(project, flush_interval_s).addresses
        except ValueError:
            self._fake.remove_project(project)
            raise
        self._projects.add(project)
        return ProjectView(project=project, secret=secret, url=self._fake.addresses["http"], **addresses)

    def remove_project(self, project: str) -> None:
        """Remove a project that was added: see `Sites`."""
        if project not in self._projects:
            known = ", ".join(map(repr, sorted(self._projects))) or "none"
            raise ValueError(f"project {project!r} was not added while the server served; added were: {known}")
        own = [daemon for daemon in self._fake.daemons if daemon.project_id == project]
        try:
            for daemon in own:
                daemon.drop()  # or its end would wait for deliveries
        except CpsimError as error:
            raise ValueError(str(error)) from error
        self._added = [daemon for daemon in self._added if daemon not in own]
        self._projects.remove(project)
        self._fake.remove_project(project)

    def add_daemon(self, project: str, flush_interval_s: float) -> DaemonView:
        """Add a daemon of a project: see `Sites`."""
        self._check_room()
        return self._view(self._add(project, flush_interval_s))

    def remove_daemon(self, unix: str) -> None:
        """Remove a daemon that was added: see `Sites`."""
        daemon = next((daemon for daemon in self._added if daemon.addresses["unix"] == unix), None)
        if daemon is None:
            known = ", ".join(each.addresses["unix"] for each in self._added) or "none"
            raise ValueError(f"no daemon at {unix} was added while the server served; added were: {known}")
        if daemon.pending:
            raise ValueError(f"{daemon.pending:,} commands of the daemon at {unix} are pending: wait until it is idle")
        self._added.remove(daemon)
        self._fake.remove_site(daemon)

    def close(self) -> None:
        """Remove the folder of the sockets, when the daemons have ended."""
        if self._folder is not None:
            self._folder.cleanup()

    def _add(self, project: str, flush_interval_s: float) -> Daemon:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="cpsim-")
        unix = Path(self._folder.name, f"{next(self._socket_numbers)}.sock")
        site = Site(project_id=project, unix=unix, tcp=TcpEndpoint("127.0.0.1", 0), flush_interval_s=flush_interval_s)
        try:
            daemon = self._fake.add_site(site)
        except OSError as error:
            raise ValueError(f"a daemon cannot be added: {error.strerror or error}") from error
        self._added.append(daemon)
        return daemon

    def _check_room(self) -> None:
        if self._stored:
            raise ValueError("a server with a store has the projects and daemons that it was started with")
        if len(self._added) >= MOST_ADDED:
            raise ValueError(f"{MOST_ADDED} daemons have been added: remove some that are not used")

    def _view(self, daemon: Daemon) -> DaemonView:
        return DaemonView(
            project=daemon.project_id,
            unix=daemon.addresses.get("unix"),
            tcp=daemon.addresses.get("tcp"),
            pending=daemon.pending,
            added=daemon in self._added,
        )
