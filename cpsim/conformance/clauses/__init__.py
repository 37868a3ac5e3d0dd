"""The clauses of the suite, as pytest tests."""
