"""The fault `down`."""

from __future__ import annotations

from cpsim.faults.action import Action


class DownFault(Action):
    effect = "connections are refused; a daemon in the same fake keeps its commands"
    stages = ("server",)
    hook = "state"
