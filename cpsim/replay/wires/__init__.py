"""Wires: transports from the engine to an endpoint."""
