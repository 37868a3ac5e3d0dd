"""Counters named `credits`, `slots/completed` and `slots/allocated` add to the server's own sums."""

from __future__ import annotations

from typing import Final

TIER: Final = "server"
