"""Looking after a spool: what it holds, and what is to become of the commands that failed."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cpsim.daemon.spool import Spool, existing, read_failed, read_status
from cpsim.errors import CpsimError
from cpsim.store.log import InUse
from cpsim.ui.printable import printable

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


def shown_status(spool: Path, as_json: bool) -> str:  # noqa: FBT001
    """The state of a spool, one figure a line or as a JSON document.

    Raises:
        CpsimError: there is no such spool, or it cannot be read.
    """
    figures = asdict(read_status(spool))
    if as_json:
        return json.dumps(figures) + "\n"
    return "".join(f"{name.replace('_', ' '):<10}  {_shown(value)}\n" for name, value in figures.items())


def shown_failed(spool: Path, as_json: bool) -> str:  # noqa: FBT001
    """The commands of a spool that were refused or set aside, one a line with its number, or as a JSON document.

    Raises:
        CpsimError: there is no such spool, or it cannot be read.
    """
    rows = read_failed(spool)
    if as_json:
        return json.dumps([row._asdict() for row in rows], ensure_ascii=False) + "\n"
    return "".join(
        f"{row.position:>8}  {datetime.fromtimestamp(row.at_us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}  "
        f"{row.why}  {_in_a_line(row.command)}  {_in_a_line(row.error)}\n"
        for row in rows
    )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _in_a_line(value or "none") if isinstance(value, str) else f"{value:,}"


def _in_a_line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def requeue(spool: Path, numbers: Collection[int] | None) -> str:
    """Have failed commands delivered after all, behind those that wait; says how many.

    Args:
        spool: of a daemon that is not running.
        numbers: which, as `shown_failed` numbers them; None for all.

    Raises:
        CpsimError: there is no such spool or command, the spool is in use, or nobody knows which command is meant.
    """
    with closing(_opened(spool)) as opened:
        said = f"{opened.requeue(numbers):,} commands are to be delivered again\n"
        if opened.failed and numbers is None:
            said += (
                f"{opened.failed:,} entries stand for commands that the server did not name: --forget strikes them\n"
            )
    return said


def forget(spool: Path, numbers: Collection[int] | None) -> str:
    """Strike failed commands from the list; says how many. Arguments and errors are those of `requeue`."""
    with closing(_opened(spool)) as opened:
        return f"{opened.forget(numbers):,} commands are struck from the list\n"


def _opened(spool: Path) -> Spool:
    try:
        return Spool(existing(spool))
    except InUse as problem:
        advice = "stop the daemon, give this command again, and then start it"
        raise CpsimError(f"{spool} is in use by a daemon: {advice}") from problem
