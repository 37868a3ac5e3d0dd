"""Logs and traces that a workload is read from."""
