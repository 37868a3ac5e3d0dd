"""Sources of accounts beside our control API, a module for each kind; `parse_source` finds what a text names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from cpdaemon.endpoint import UrlEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.errors import UsageError

if TYPE_CHECKING:
    from cpsim.accounts.view import View


PAUSE_S: Final = 200.0
"""Seconds that a source may pause where nobody says how long: it may have millions of rows to put together."""


class AccountsSource(Protocol):
    """Shows accounts, whatever keeps them. Its text is what names it, without secrets."""

    def read(self, pause_s: float) -> View:
        """Read what it shows now.

        Args:
            pause_s: seconds that it may take to show anything more.

        Raises:
            NothingNew: it was read before, and would show the same again, whatever the accounts are.
            CannotObserve: it shows nothing, takes too long, fails, or has a table that is not as the contract has it.
        """


def parse_source(text: str) -> AccountsSource:
    """The source that a text names.

    Args:
        text: a file or folder; an `http://` or `https://` prefix; `sql:FILE`; or `program:COMMAND`.

    Raises:
        UsageError: it names none: there is no such file, or a file of `sql:` is not as it should be.
        MissingExtra: SQLAlchemy is not installed.
    """
    # each kind needs libraries of its own
    kind, _, rest = text.partition(":")
    if kind == "sql":
        from cpsim.accounts.sources.sql import SqlSource  # noqa: PLC0415

        return SqlSource(rest)
    if kind == "program":
        from cpsim.accounts.sources.program import ProgramSource  # noqa: PLC0415

        return ProgramSource(rest)
    if kind in {"http", "https"} and rest.startswith("//"):
        from cpsim.accounts.sources.web import WebSource  # noqa: PLC0415

        try:
            server = parse_endpoint(text)
        except EndpointError as error:
            raise UsageError(f"the URL of accounts: {error}") from error
        assert isinstance(server, UrlEndpoint)
        return WebSource(server)
    from cpsim.accounts.sources.files import FileSource  # noqa: PLC0415

    return FileSource(text)
