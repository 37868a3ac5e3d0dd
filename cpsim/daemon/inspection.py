"""Operating on a spool: its status, a copy of it, its failed commands, and requeueing or forgetting them."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cpsim.daemon.failed import CHECKED
from cpsim.daemon.spool import KIND, TABLES, Spool
from cpsim.daemon.spool_status import existing, read_failed, read_status
from cpsim.errors import CpsimError
from cpsim.store import backup
from cpsim.store.file import InUse
from cpsim.ui.printable import printable_line

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


def shown_status(spool: Path, as_json: bool) -> tuple[str, bool]:  # noqa: FBT001
    """Return the status of a spool, one figure a line or as a JSON document, and whether a part of it has failed.

    Raises:
        CpsimError: there is no such spool, or it cannot be read.
    """
    status = read_status(spool)
    figures, failures = asdict(status), status.failures
    if not status.exported:
        del figures["exported"]
    if as_json:
        more = {"set_aside": figures["dead_letters"], "failures": failures}  # the former is the name in version 0.1
        return json.dumps(figures | more) + "\n", bool(failures)
    lines = [(name.replace("_", " "), _shown(value)) for name, value in figures.items()]
    lines += [("failure", text) for text in failures]
    return "".join(f"{name:<12}  {text}\n" for name, text in lines), bool(failures)


def shown_failed(spool: Path, as_json: bool) -> str:  # noqa: FBT001
    """Return the refused commands and dead letters of a spool, one a line with its number, or as a JSON document.

    Raises:
        CpsimError: there is no such spool, or it cannot be read.
    """
    rows = read_failed(spool)
    if as_json:
        return json.dumps([row._asdict() for row in rows], ensure_ascii=False) + "\n"
    return "".join(
        f"{row.position:>8}  {datetime.fromtimestamp(row.at_us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}  "
        f"{row.why}  {printable_line(row.command)}  {printable_line(row.error)}\n"
        for row in rows
    )


def back_up(spool: Path, copy: Path) -> tuple[str, bool]:
    """Copy a spool to a new file; return lines that say so, and whether a record of it is damaged.

    Raises:
        CpsimError: see `cpsim.store.backup.back_up`.
    """
    damaged = backup.back_up(spool, copy, KIND, TABLES, CHECKED)
    lines = [f"copied {spool} to {copy}", *(f"damaged: {record} is not what was received" for record in damaged)]
    return "".join(f"{line}\n" for line in lines), bool(damaged)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable_line(value or "none") if isinstance(value, str) else f"{value:,}"


def requeue(spool: Path, numbers: Collection[int] | None) -> str:
    """Queue failed commands for delivery, behind those already queued; return a line that says how many.

    Args:
        spool: the file; no daemon may have it open.
        numbers: the commands' numbers in `shown_failed`; None for all.

    Raises:
        CpsimError: there is no such spool or command, the spool is in use, or the server did not name the command.
    """
    with closing(_opened(spool)) as opened:
        text = f"{opened.requeue(numbers):,} commands are queued for delivery\n"
        if opened.failed and numbers is None:
            text += (
                f"{opened.failed:,} entries are damaged, or stand for commands that the server did not name: "
                "--forget deletes them\n"
            )
    return text


def forget(spool: Path, numbers: Collection[int] | None) -> str:
    """Delete failed commands; return a line that says how many. Arguments and errors are those of `requeue`."""
    with closing(_opened(spool)) as opened:
        return f"{opened.forget(numbers):,} commands are deleted from the list\n"


def _opened(spool: Path) -> Spool:
    try:
        return Spool(existing(spool))
    except InUse as problem:
        advice = "stop the daemon, run this command again, then start the daemon"
        raise CpsimError(f"{spool} is in use by a daemon: {advice}") from problem
