"""The command line: a group, and the commands that add themselves to it."""

from cpsim.cli import daemon, lists, load, run, serve
from cpsim.cli.group import cli, main

__all__ = ["cli", "daemon", "lists", "load", "main", "run", "serve"]
