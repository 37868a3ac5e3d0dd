"""A sum beyond 2^63 breaks a claim or a link off half-way: the project is credited, and the slot still free."""

from __future__ import annotations

from typing import Final

TIER: Final = "server"
