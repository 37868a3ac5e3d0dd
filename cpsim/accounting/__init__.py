"""Who earned what: a ledger as pandas frames, and the reports that are made of them."""

from cpsim.accounting.accounts import Accounts
from cpsim.accounting.blocks import Figure, Note, Report, Table, first_of
from cpsim.accounting.building import build

__all__ = ["Accounts", "Figure", "Note", "Report", "Table", "build", "first_of"]
