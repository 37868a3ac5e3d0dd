"""The accounts' tier: the ledger, and the server that answers for it."""
