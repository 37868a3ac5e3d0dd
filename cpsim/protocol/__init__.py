"""Names of the protocol that every room knows."""
