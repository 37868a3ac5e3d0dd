"""Who earned what: a ledger as pandas frames, and the reports that are made of them."""
# ruff: noqa: E402 - what is not installed is named before it is imported

from cpsim.system.extras import require

require("report", "cpsim.accounting")

from cpsim.accounting.accounts import Accounts
from cpsim.accounting.blocks import Figure, Note, Report, Table, first_of
from cpsim.accounting.building import build

__all__ = ["Accounts", "Figure", "Note", "Report", "Table", "build", "first_of"]
