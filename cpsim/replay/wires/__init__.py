"""The ways that lead to an endpoint."""
