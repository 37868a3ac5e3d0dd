"""Who earned what: a ledger as pandas frames, and the reports that are made of them."""

from cpsim.accounting.accounts import Accounts

__all__ = ["Accounts"]
