"""Kinds of failure, from the texts of a journal: few, and the same for every target."""

from __future__ import annotations

from typing import Final

LOST: Final = "lost with its worker"
"""An operation of which nothing was heard any more; the times in its record are only bounds."""
FAILURES: Final = (
    ("backlog full", "backlog"),
    ("cannot connect: no port is free here", "ports"),
    ("cannot connect: Too many open files", "files"),
    ("cannot connect: Connection refused", "refused"),
    ("cannot connect", "unreachable"),
    ("cannot send", "unreachable"),
    ("no answer in time", "timeout"),
    ("interrupted", "interrupted"),
    ("ER", "ER"),
    ("reply lost: Connection reset", "reset"),
    ("reply lost", "closed"),
    ("garbage reply", "garbage"),
    (LOST, "worker"),
)
"""How a text begins, and what is meant; the first that fits."""
OURS: Final = {"ports", "files"}
"""Of these the sender ran out; they say nothing of the target."""


def kind_of(error: str) -> str:
    """The kind of a failure: `timeout`, `ER`, `HTTP 503`, ...; `other` if it is none of these."""
    if error.startswith("HTTP "):
        return error[:8]
    return next((kind for beginning, kind in FAILURES if error.startswith(beginning)), "other")
