"""Addresses: listening, refusing, and HTTP."""
