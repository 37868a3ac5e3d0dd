"""The statistics export that credit statistics sites read from BOINC projects.

Its format is that of BOINC's sched/db_dump.cpp: `tables.xml`, `user.gz`, `host.gz`; `team.gz` is left out, as there are
no teams. Only machines and users with credit are listed; the totals count all. `expavg_credit` is as of `expavg_time`:
a reader decays it from there.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from typing import TYPE_CHECKING, Final
from urllib.parse import quote
from xml.sax.saxutils import escape

import pyarrow.parquet as pq

from cpsim.accounting.files import FORBIDDEN, replacing
from cpsim.accounting.values import records
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

    from cpsim.accounting.accounts import Accounts

HOST_DETAILS: Final = ("p_vendor", "p_model", "os_name", "os_version")
"""Elements that a host has to have; CreditPiggy knows nothing of machines, so they are empty."""


def write(accounts: Accounts, folder: Path) -> None:
    """Write the export; with more than one project, a folder for each.

    Raises:
        CpsimError: machines and users are not known.
    """
    if not accounts.has_accounts:
        raise CpsimError(
            f"{accounts.source.name} has no table of machines and users, of which the BOINC export is made"
        )
    projects = accounts.projects["project"].tolist()
    for project in projects:
        _write_project(accounts, project, folder if len(projects) == 1 else folder / _folder_name(project))


def _folder_name(project: str) -> str:
    """A safe and unique folder name for a project id."""
    name = quote(project, safe=" ")
    return name if name.strip(".") else name.replace(".", "%2E")


def _write_project(accounts: Accounts, project: str, folder: Path) -> None:
    now_s = accounts.books.until_us / 1e6
    users = accounts.users[accounts.users["project"] == project]
    machines = accounts.machines[accounts.machines["project"] == project]
    numbers = _numbers(accounts, project)
    total = int(machines["credits"].sum())
    tables = (
        "<tables>\n"
        f"  <update_time>{int(now_s)}</update_time>\n"
        f"  <nusers_total>{len(users)}</nusers_total>\n"
        "  <nteams_total>0</nteams_total>\n"
        f"  <nhosts_total>{len(machines)}</nhosts_total>\n"
        f"  <total_credit>{total}</total_credit>\n"
        f"  <applications>\n    <application>\n      <name>{_text(project)}</name>\n    </application>\n"
        "  </applications>\n"
        "</tables>\n"
    )
    with replacing(folder / "tables.xml") as partial:
        partial.write_text(tables, encoding="utf-8")
    _compress(folder / "user.gz", _users(users[users["credits"] > 0], numbers["user"], now_s))
    _compress(folder / "host.gz", _hosts(machines[machines["credits"] > 0], numbers, now_s))


def _numbers(accounts: Accounts, project: str) -> dict[str, dict[str, int]]:
    """A stable number for each machine and user, in the order of the ledger."""
    columns = pq.read_table(accounts.source.accounts, columns=["project", "kind", "id"])
    numbers: dict[str, dict[str, int]] = {"machine": {}, "user": {}}
    for of, kind, name in zip(*(column.to_pylist() for column in columns.columns), strict=True):
        if of == project:
            numbers[kind][name] = len(numbers[kind]) + 1
    return numbers


def _users(users: pd.DataFrame, numbers: dict[str, int], now_s: float) -> Iterator[str]:
    yield "<users>\n"
    for name, credits, recent, first_us in records(users[["user", "credits", "recent_credits_a_day", "first_us"]]):
        yield (
            f"<user>\n  <id>{numbers[name]}</id>\n  <name>{_text(name)}</name>\n"
            f"  <create_time>{(first_us or 0) // 1_000_000}</create_time>\n{_credit(credits, recent, now_s)}"
            f"  <cpid>{hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()}</cpid>\n</user>\n"
        )
    yield "</users>\n"


def _hosts(machines: pd.DataFrame, numbers: dict[str, dict[str, int]], now_s: float) -> Iterator[str]:
    yield "<hosts>\n"
    for name, user, credits, recent in records(machines[["machine", "user", "credits", "recent_credits_a_day"]]):
        owner = f"  <userid>{numbers['user'][user]}</userid>\n" if user in numbers["user"] else ""
        details = "".join(f"  <{detail}></{detail}>\n" for detail in HOST_DETAILS)
        yield (
            f"<host>\n  <id>{numbers['machine'][name]}</id>\n{owner}{_credit(credits, recent, now_s)}{details}</host>\n"
        )
    yield "</hosts>\n"


def _credit(credits: int, recent: float, now_s: float) -> str:
    return (
        f"  <total_credit>{credits}</total_credit>\n  <expavg_credit>{recent:.6f}</expavg_credit>\n"
        f"  <expavg_time>{now_s:.6f}</expavg_time>\n"
    )


def _compress(path: Path, texts: Iterator[str]) -> None:
    with (
        replacing(path) as partial,
        partial.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8") as writer,
    ):
        writer.writelines(texts)


def _text(text: str) -> str:
    return escape(FORBIDDEN.sub("\ufffd", text))
