"""Exit of a test that cannot begin."""

from __future__ import annotations

import sys
from typing import NoReturn

import psutil

from cpsim.load.guard import FAILED
from cpsim.ui.printable import printable


def leave(why: object) -> NoReturn:
    """Print the reason, kill this process's workers, which Locust would leave waiting for a master, and exit."""
    print(f"cpsim: {printable(str(why))}", file=sys.stderr)
    for worker in psutil.Process().children():
        worker.kill()
    sys.exit(FAILED)
