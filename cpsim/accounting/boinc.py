"""The statistics export that credit statistics sites read from BOINC projects.

Its format is that of BOINC's sched/db_dump.cpp: `tables.xml`, `user.gz`, `host.gz`, and an empty `team.gz`, for there
are no teams. Users with credit are listed, and their machines that have credit; the totals are those of what is listed.
`expavg_credit` is as of `expavg_time`: a reader decays it from there. What is not ASCII is a numeric reference.

A `cpid` or `host_cpid` joins the rows of one user or machine of one server, in all its projects and exports. It is made
from the id and a random text that is kept with the accounts, so that nobody can tell from it who it is. Accounts that
are not from a server of ours have no such text, in place of which their first slot counts.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from typing import TYPE_CHECKING, Final
from urllib.parse import quote
from xml.sax.saxutils import escape

from cpsim.accounting.files import FORBIDDEN
from cpsim.accounting.values import records
from cpsim.accounts.view import salt_of
from cpsim.errors import CpsimError
from cpsim.system import parquet
from cpsim.system.replacing import replacing

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
    salt = _salt(accounts)
    users = accounts.users[(accounts.users["project"] == project) & (accounts.users["credits"] > 0)]
    machines = accounts.machines[(accounts.machines["project"] == project) & (accounts.machines["credits"] > 0)]
    machines = machines[machines["user"].isin(users["user"])]
    numbers = _numbers(accounts, project)
    tables = (
        "<tables>\n"
        f"  <update_time>{int(now_s)}</update_time>\n"
        f"  <nusers_total>{len(users)}</nusers_total>\n"
        "  <nteams_total>0</nteams_total>\n"
        f"  <nhosts_total>{len(machines)}</nhosts_total>\n"
        f"  <total_credit>{int(users['credits'].sum())}</total_credit>\n"
        f"  <applications>\n    <application>\n      <name>{_text(project)}</name>\n    </application>\n"
        "  </applications>\n"
        "</tables>\n"
    )
    with replacing(folder / "tables.xml") as partial:
        partial.write_text(tables, encoding="ascii")
    _compress(folder / "user.gz", _users(users, numbers["user"], now_s, salt))
    _compress(folder / "host.gz", _hosts(machines, numbers, now_s, salt))
    _compress(folder / "team.gz", iter(["<teams>\n", "</teams>\n"]))


def _salt(accounts: Accounts) -> str:
    """What ids for strangers are made from; the same whenever accounts are exported."""
    assert accounts.source.accounts is not None
    with parquet.opened(accounts.source.accounts) as file:
        salt = salt_of(file.schema_arrow)
    if salt:
        return salt
    slots = parquet.read(accounts.source.slots, wanted={"allocated_us", "project", "slot"}.__contains__)
    return str(slots.sort_by([(name, "ascending") for name in slots.column_names])[:1].to_pylist())


def _stranger(salt: str, kind: str, name: str) -> str:
    """An id of a user or machine that says nothing of its name; in the form of BOINC's, 32 hexadecimal digits."""
    return hashlib.sha256(f"{salt}\0{kind}\0{name}".encode()).hexdigest()[:32]


def _numbers(accounts: Accounts, project: str) -> dict[str, dict[str, int]]:
    """A stable number for each machine and user, in the order of the ledger."""
    assert accounts.source.accounts is not None
    columns = parquet.read(accounts.source.accounts, wanted={"project", "kind", "id"}.__contains__)
    numbers: dict[str, dict[str, int]] = {"machine": {}, "user": {}}
    for of, kind, name in zip(*(column.to_pylist() for column in columns.columns), strict=True):
        if of == project:
            numbers[kind][name] = len(numbers[kind]) + 1
    return numbers


def _users(users: pd.DataFrame, numbers: dict[str, int], now_s: float, salt: str) -> Iterator[str]:
    yield "<users>\n"
    for name, credits, recent, first_us in records(users[["user", "credits", "recent_credits_a_day", "first_us"]]):
        yield (
            f"<user>\n  <id>{numbers[name]}</id>\n  <name>{_text(name)}</name>\n{_time('create_time', first_us)}"
            f"{_credit(credits, recent, now_s)}  <cpid>{_stranger(salt, 'user', name)}</cpid>\n</user>\n"
        )
    yield "</users>\n"


def _hosts(machines: pd.DataFrame, numbers: dict[str, dict[str, int]], now_s: float, salt: str) -> Iterator[str]:
    details = "".join(f"  <{detail}></{detail}>\n" for detail in HOST_DETAILS)
    columns = ["machine", "user", "credits", "recent_credits_a_day", "first_us", "last_us"]
    yield "<hosts>\n"
    for name, user, credits, recent, first_us, last_us in records(machines[columns]):
        yield (
            f"<host>\n  <id>{numbers['machine'][name]}</id>\n  <userid>{numbers['user'][user]}</userid>\n"
            f"{_credit(credits, recent, now_s)}{details}{_time('create_time', first_us)}{_time('rpc_time', last_us)}"
            f"  <host_cpid>{_stranger(salt, 'host', name)}</host_cpid>\n</host>\n"
        )
    yield "</hosts>\n"


def _time(element: str, at_us: int | None) -> str:
    """The first or the last grant, which is when CreditPiggy knows that somebody was there."""
    return f"  <{element}>{(at_us or 0) // 1_000_000}</{element}>\n"


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
        io.TextIOWrapper(packed, encoding="ascii") as writer,
    ):
        writer.writelines(texts)


def _text(text: str) -> str:
    return escape(FORBIDDEN.sub("\ufffd", text)).encode("ascii", "xmlcharrefreplace").decode()
