"""The command line: a group, and the commands that add themselves to it."""

from cpsim.cli import (
    completion,
    daemon,
    execute,
    expect,
    judge,
    lists,
    load,
    proxy,
    record,
    report,
    run,
    runs,
    scenarios,
    serve,
    verify,
)
from cpsim.cli.group import cli, main

__all__ = [
    "cli",
    "completion",
    "daemon",
    "execute",
    "expect",
    "judge",
    "lists",
    "load",
    "main",
    "proxy",
    "record",
    "report",
    "run",
    "runs",
    "scenarios",
    "serve",
    "verify",
]
