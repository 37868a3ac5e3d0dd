"""Parts of the protocol that every room uses."""
