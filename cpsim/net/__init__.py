"""Addresses: bound, reached, refused."""
