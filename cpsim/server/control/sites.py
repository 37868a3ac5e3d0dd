"""The daemons of a server, and what is added to it while it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from cpsim.server.control.views import DaemonView, ProjectView


class Sites:
    """None, and none can be added; a server with daemons overrides this."""

    def pending(self, project: str) -> int:  # noqa: ARG002 - an override uses it
        """The number of a project's acknowledged commands that have not reached the accounts."""
        return 0

    def daemons(self) -> list[DaemonView]:
        """The daemons, in the order in which they were added."""
        return []

    def add_project(self, project: str | None, flush_interval_s: float) -> ProjectView:  # noqa: ARG002
        """Add a project with a daemon; without an id, it gets a new one.

        Raises:
            ValueError: the id is taken or invalid, or there is no room.
        """
        self._refuse()

    def remove_project(self, project: str) -> None:  # noqa: ARG002
        """Remove a project that was added, with its daemons and accounts, and commands that are pending.

        Raises:
            ValueError: it was not added, or a daemon is too busy.
        """
        self._refuse()

    def add_daemon(self, project: str, flush_interval_s: float) -> DaemonView:  # noqa: ARG002
        """Add a daemon of a project.

        Raises:
            ValueError: there is no such project, or no room.
        """
        self._refuse()

    def remove_daemon(self, unix: str) -> None:  # noqa: ARG002
        """Remove a daemon that was added.

        Raises:
            ValueError: none was added at this path, or it has commands pending.
        """
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError("nothing can be added to this server while it serves")
