"""Load from many processes and machines: Locust starts, shows and stops it; the replay engine sends it.

Importing this module imports Locust, which patches the process's sockets and sleeps.
"""
# ruff: noqa: E402 - a missing extra is reported before the import

from cpsim.system.extras import require

require("load", "cpsim.load")

from cpsim.load.user import CreditPiggyUser

__all__ = ["CreditPiggyUser"]
