"""A server's accounts, through a source of anybody's, where the server has no control API of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pyarrow.compute as pc

from cpsim.accounts.observer import CannotObserve, NothingNew
from cpsim.accounts.view import CONTRACTS
from cpsim.conformance.accounts import AccountsView
from cpsim.conformance.findings import CannotRun, NotVerifiable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from cpsim.accounts.sources import AccountsSource
    from cpsim.accounts.view import View
    from cpsim.conformance.exchange import HttpRequest, Reply

PAUSES: Final = 20
"""Time-outs for which a source may pause."""


class SourceView(AccountsView):
    """Reads a source of accounts anew for each look; what it does not show is not verifiable.

    Links, the clock and totals are those of the server's control API, if it has one, and else not verifiable.

    Args:
        ask: sends a request to the server.
        source: shows the accounts.
        timeout_s: for a reply of the server.
    """

    def __init__(self, ask: Callable[[HttpRequest], Reply], source: AccountsSource, timeout_s: float) -> None:
        super().__init__(ask)
        self._source = source
        self._pause_s = PAUSES * timeout_s
        self._has_control = False

    def exists(self) -> bool:
        """Whether the accounts can be seen: always. Raises CannotObserve if not."""
        self._has_control = super().exists()
        self._source.read(self._pause_s)
        return True

    def slot(self, project: str, slot: str) -> dict[str, Any] | None:
        """A slot, or None if the source shows none of that id."""
        return self._row("slots", project, slot)

    def machine(self, project: str, machine: str) -> dict[str, Any] | None:
        """What a machine has in a project, or None."""
        return self._row("machines", project, machine)

    def user(self, project: str, user: str) -> dict[str, Any] | None:
        """What a user has in a project, or None."""
        return self._row("users", project, user)

    def holdings(self, project: str) -> Iterator[dict[str, Any]]:
        """Every machine and every user of a project, as of one moment."""
        view = self._read()
        for name in ("machines", "users"):
            for row in self._rows_of(view, name, project).to_pylist(maps_as_pydicts="strict"):
                yield _Row(row | {"type": CONTRACTS[name].row}, str(self._source))

    def totals(self, project: str) -> dict[str, Any]:
        """A project's totals; empty before its first command."""
        self._need_control("the totals of a project")
        return super().totals(project)

    def link(self, machine: str, user: str) -> bool:
        """Link a machine to a user; whether that was done."""
        self._need_control("a link of a machine to a user")
        return super().link(machine, user)

    def release(self, machine: str) -> bool:
        """Take a machine from its user; whether that was done."""
        self._need_control("a release of a machine")
        return super().release(machine)

    def now_us(self) -> int:
        """The server's time, microseconds since 1970."""
        self._need_control("the server's clock")
        return super().now_us()

    def advance(self, seconds: int) -> None:
        """Let the server's clock jump ahead."""
        self._need_control("the server's clock")
        super().advance(seconds)

    def note_ends(self, project: str) -> None:
        """A source is read as a whole: there is nothing to note."""

    def _need_control(self, what: str) -> None:
        if not self._has_control:
            raise NotVerifiable(f"needs {what}, which {self._source} does not give: only cpsim's control API does")

    def _row(self, name: str, project: str, subject: str) -> dict[str, Any] | None:
        rows = self._rows_of(self._read(), name, project)
        found = rows.filter(pc.equal(rows[CONTRACTS[name].row], subject)).to_pylist(maps_as_pydicts="strict")
        return _Row(found[0], str(self._source)) if found else None

    def _rows_of(self, view: View, name: str, project: str) -> pa.Table:
        """A project's rows of a table; upper and lower case of its id are the same."""
        table = getattr(view, name)
        if table is None:
            raise NotVerifiable(f"needs a table of {name}, which {self._source} does not show")
        return table.filter(pc.equal(pc.utf8_lower(table["project"]), project.lower()))

    def _read(self) -> View:
        try:
            return self._source.read(self._pause_s)
        except NothingNew as error:
            raise NotVerifiable(f"needs accounts as they are now: {error}") from error
        except CannotObserve as error:
            raise CannotRun(str(error)) from error


class _Row(dict[str, Any]):
    """A row of a table; a column that is not shown cannot be asked for."""

    def __init__(self, row: dict[str, Any], source: str) -> None:
        super().__init__(row)
        self._source = source

    def __missing__(self, name: str) -> Any:  # noqa: ANN401 - it never returns
        raise NotVerifiable(f"needs the column `{name}`, which {self._source} does not show")

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401, ARG002 - nothing is left to a default
        """The value of a column."""
        return self[name]
