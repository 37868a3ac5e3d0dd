"""The command line: a group, and the commands that add themselves to it."""

from cpsim.cli import daemon, lists, report, run, scenarios, serve, verify
from cpsim.cli.group import cli, main

__all__ = ["cli", "daemon", "lists", "main", "report", "run", "scenarios", "serve", "verify"]
