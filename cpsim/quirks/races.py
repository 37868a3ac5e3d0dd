"""Nothing is locked: of commands at once for one slot, several are accepted, and credits paid at once are lost."""

from __future__ import annotations

from typing import Final

TIER: Final = "server"
