"""Statements: an account's opening balance, every grant, and its closing balance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pandas as pd

from cpsim.accounting.blocks import Note, Table
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from cpsim.accounting.accounts import Accounts
    from cpsim.accounting.blocks import Block

UNEXPLAINED: Final = "granted by no slot that is there"


def statements(accounts: Accounts, kind: str) -> list[Block]:
    """A statement for each machine or user that `accounts.subjects` names, or else for the leading ones.

    Args:
        accounts: the accounts.
        kind: "machine" or "user".

    Raises:
        CpsimError: a subject is neither a machine nor a user.
    """
    holders = accounts.machines if kind == "machine" else accounts.users
    if accounts.subjects:
        for subject in accounts.subjects:
            if not ((accounts.machines["machine"] == subject).any() or (accounts.users["user"] == subject).any()):
                raise CpsimError(f'no machine and no user "{subject}" in {accounts.source.name}')
        chosen = holders[holders[kind].isin(accounts.subjects)]
    else:
        chosen = holders.head(accounts.top)
    if chosen.empty:
        return [Note(f"There is no {kind} with credits.")] if not accounts.subjects and not accounts.empty else []
    pairs = list(zip(chosen["project"], chosen[kind], strict=True))
    grants = accounts.grants(kind, pairs)
    grants = grants.assign(at=accounts.when(grants["at_us"]))
    by_holder = dict(iter(grants.groupby(["project", "id"])))
    return [
        _statement(accounts, kind, holder, by_holder.get((holder["project"], holder[kind]), grants.iloc[:0]))
        for holder in chosen.to_dict("records")
    ]


def _statement(accounts: Accounts, kind: str, holder: dict[str, object], grants: pd.DataFrame) -> Table:
    credits, period = int(holder["credits"]), int(grants["credits"].sum())  # type: ignore[call-overload]
    unexplained = holder["unexplained_credits"]
    carried = 0 if pd.isna(unexplained) else int(unexplained)  # type: ignore[call-overload]
    opening = credits - period - carried
    columns = ["at", "entry", "slot", *(["machine"] if kind == "user" else []), "rule", "credits", "balance_credits"]
    first = [{"at": accounts.begin, "entry": "opening balance", "balance_credits": opening}]
    if carried:
        first.append({"entry": UNEXPLAINED, "credits": carried, "balance_credits": opening + carried})
    middle = grants.assign(entry="grant", balance_credits=grants["credits"].cumsum() + opening + carried)
    last = [{"at": accounts.end, "entry": "closing balance", "balance_credits": credits}]
    types = dict.fromkeys(("credits", "balance_credits"), "Int64")
    ends = (pd.DataFrame(rows, columns=columns).astype(types) for rows in (first, last))
    opened, closed = (
        end.assign(at=pd.to_datetime(end["at"], utc=True).dt.as_unit("us").dt.tz_convert(accounts.timezone))
        for end in ends
    )
    text = ["entry", "slot", "rule", *(["machine"] if kind == "user" else [])]
    whole = pd.concat([part[columns].astype(dict.fromkeys(text, "object")) for part in (opened, middle, closed)])
    owner = holder.get("user") if kind == "machine" else None
    note = f"{len(grants):,} grants in project {holder['project']}"
    if kind == "machine":
        note += f", linked to {owner}." if isinstance(owner, str) else ", linked to nobody: its credits wait."
    else:
        note += ", whoever the machines are linked to now."
    title = f"{kind.title()} {holder[kind]}"
    return Table(title, whole.reset_index(drop=True), note, None, is_folded=not accounts.subjects)
