"""A run: from a scenario to a verdict, a summary and a run folder."""
