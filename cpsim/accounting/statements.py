"""Statements: an account's opening balance, every grant, and its closing balance."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import pandas as pd

from cpsim.accounting.blocks import LongTable, Note, Table
from cpsim.accounting.books import PROGRAM_MB
from cpsim.accounting.queries import granted_by_interval
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cpsim.accounting.accounts import Accounts
    from cpsim.accounting.blocks import Block

SHOWN_ROWS: Final = 100
"""Of a statement that is too long for memory; no page shows more of a table."""
PIECE_ROWS: Final = 1 << 14
ROW_BYTES: Final = 2_000
"""What a row of a statement takes, with what becomes of it in a document."""
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
    granted = _granted(accounts, kind, pairs)
    counts = {(project, name): (slots, credits) for project, name, slots, credits in granted.itertuples(index=False)}
    left = (accounts.memory_mb - PROGRAM_MB) * 1_000_000 // 4 // ROW_BYTES
    short = []
    for pair in pairs:
        count, _ = counts.get(pair, (0, 0))
        if count <= left:
            left -= count
            short.append(pair)
    grants = accounts.grants(kind, short)
    by_holder = dict(iter(grants.groupby(["project", "id"])))
    made: list[Block] = []
    for pair, holder in zip(pairs, chosen.to_dict("records"), strict=True):
        parts = partial(accounts.many_grants, kind, *pair, PIECE_ROWS)
        if pair in short:
            parts = partial(iter, [by_holder.get(pair, grants.iloc[:0])])
        made.append(_statement(accounts, kind, holder, counts.get(pair, (0, 0)), parts, is_short=pair in short))
    return made


def _granted(accounts: Accounts, kind: str, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """How many grants each holder has, and of how many credits: project, id, slots, credits."""
    keys = ([project for project, _ in pairs], [name for _, name in pairs])
    found = accounts.query(granted_by_interval(kind), keys)
    return found.groupby(["project", "id"], as_index=False)[["slots", "credits"]].sum()


def _statement(
    accounts: Accounts,
    kind: str,
    holder: dict[str, object],
    granted: tuple[int, int],
    parts: Callable[[], Iterator[pd.DataFrame]],
    *,
    is_short: bool,
) -> Table:
    count, period = granted
    credits = int(holder["credits"])  # type: ignore[call-overload]
    unexplained = holder["unexplained_credits"]
    carried = 0 if pd.isna(unexplained) else int(unexplained)  # type: ignore[call-overload]
    opening = credits - period - carried
    columns = ["at", "entry", "slot", *(["machine"] if kind == "user" else []), "rule", "credits", "balance_credits"]
    first = [{"at": accounts.begin, "entry": "opening balance", "balance_credits": opening}]
    if carried:
        first.append({"entry": UNEXPLAINED, "credits": carried, "balance_credits": opening + carried})
    last = [{"at": accounts.end, "entry": "closing balance", "balance_credits": credits}]
    types = dict.fromkeys(("credits", "balance_credits"), "Int64")
    ends = (pd.DataFrame(rows, columns=columns).astype(types) for rows in (first, last))
    opened, closed = (
        end.assign(at=pd.to_datetime(end["at"], utc=True).dt.as_unit("us").dt.tz_convert(accounts.timezone))
        for end in ends
    )
    text = ["entry", "slot", "rule", *(["machine"] if kind == "user" else [])]

    def joined(rows: Sequence[pd.DataFrame]) -> pd.DataFrame:
        whole = pd.concat([part[columns].astype(dict.fromkeys(text, "object")) for part in rows])
        return whole.reset_index(drop=True)

    def pieces() -> Iterator[pd.DataFrame]:
        before, balance = [opened], opening + carried
        for grants in parts():
            balances = grants["credits"].cumsum() + balance
            middle = grants.assign(at=accounts.when(grants["at_us"]), entry="grant", balance_credits=balances)
            balance = int(balances.iloc[-1]) if len(balances) else balance
            yield joined([*before, middle])
            before = []
        yield joined([*before, closed])

    owner = holder.get("user") if kind == "machine" else None
    note = f"{count:,} grants in project {holder['project']}"
    if kind == "machine":
        note += f", linked to {owner}." if isinstance(owner, str) else ", linked to nobody: its credits wait."
    else:
        note += ", whoever the machines are linked to now."
    title = f"{kind.title()} {holder[kind]}"
    is_folded = not accounts.subjects
    if is_short:
        return Table(title, joined(list(pieces())), note, None, is_folded)
    rows = count + len(opened) + len(closed)
    return Table(title, next(pieces()).head(SHOWN_ROWS).copy(), note, None, is_folded, whole=LongTable(rows, pieces))
