"""What Slurm calls the states of jobs, and the nodes that they ran on."""

from __future__ import annotations

import re
from typing import Final

from cpsim.scenario.formats.job_log import wrong

STATES: Final = {
    "COMPLETED": "completed",
    **dict.fromkeys(
        ("BOOT_FAIL", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
         "RECONFIG_FAIL", "TIMEOUT"),
        "failed",
    ),
    **dict.fromkeys(("CANCELLED", "REVOKED"), "cancelled"),
    "REQUEUED": "part",
    **dict.fromkeys(
        ("COMPLETING", "CONFIGURING", "PENDING", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "RESV_DEL_HOLD", "RUNNING",
         "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED"),
        "unfinished",
    ),
}  # fmt: skip
"""Job states as sacct and jobcomp print them, and what they mean."""


def status(column: str, text: str) -> str:
    """The status that a state means; `CANCELLED by 1001` is cancelled. Raises ValueError, naming the column."""
    word = text.strip().partition(" ")[0].removesuffix("+")
    if word not in STATES:
        raise wrong(column, text, f"a state of Slurm, such as {', '.join(list(STATES)[:3])}")
    return STATES[word]


def first_node(text: str) -> str:
    """The first of a list of nodes: of `n[07-09,12],login` that is `n07`; "" for none."""
    found = re.match(r"([^,\[]*)(?:\[([^,\]-]*))?", text.strip())
    node = "" if found is None else found[1] + (found[2] or "")
    return "" if node.lower() in {"none assigned", "none", "(null)", "unknown"} else node
