"""A load from many processes and machines: Locust starts, shows and stops it, the replay engine sends it.

Importing this imports Locust, which makes the process's sockets and sleeps its own.
"""
# ruff: noqa: E402 - what is not installed is named before it is imported

from cpsim.system.extras import require

require("load", "cpsim.load")

from cpsim.load.user import CreditPiggyUser

__all__ = ["CreditPiggyUser"]
