"""Accounting: a ledger as pandas frames, and reports on who earned what."""
# ruff: noqa: E402 - a missing extra is reported before the import

from cpsim.system.extras import require

require("report", "cpsim.accounting")

from cpsim.accounting.accounts import Accounts
from cpsim.accounting.blocks import Figure, Note, Report, Table, first_of
from cpsim.accounting.building import build
from cpsim.accounting.ranking import ranked, tied

__all__ = ["Accounts", "Figure", "Note", "Report", "Table", "build", "first_of", "ranked", "tied"]
