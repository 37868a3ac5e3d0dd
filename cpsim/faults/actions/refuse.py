"""The fault `refuse`."""

from __future__ import annotations

from cpsim.faults.action import Action


class RefuseFault(Action):
    effect = "connections are refused"
    stages = ("daemon",)
    hook = "state"
