"""The command line: a group, and the commands that add themselves to it."""

from cpsim.cli import lists, run, servers, verify
from cpsim.cli.group import cli, main

__all__ = ["cli", "lists", "main", "run", "servers", "verify"]
