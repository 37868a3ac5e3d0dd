"""Kinds of failure, from a journal's error texts: few, and the same for every target."""

from __future__ import annotations

from typing import Final

LOST: Final = "lost with its worker"
"""The error of an operation lost with its worker; the times in its record are bounds."""
DROPPED: Final = "request for a connection dropped"
"""What the system has tried again: a full queue of the target drops it in silence."""
FAILURES: Final = (
    (DROPPED, "dropped"),
    ("backlog full", "backlog"),
    ("cannot connect: no port is free here", "ports"),
    ("cannot connect: Too many open files", "files"),
    ("cannot connect: Connection refused", "refused"),
    ("cannot connect: interrupted", "interrupted"),
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
"""Prefix of an error text, and the kind; the first match counts."""
UNANSWERED: Final = ("backlog full", "cannot connect", "cannot send", "no answer in time", "interrupted")
"""Prefixes of the errors of operations that were not sent, or not answered."""
OURS: Final = {"ports", "files"}
"""Kinds that mean that the sender ran out of a resource; they say nothing about the target."""


def was_answered(error: str) -> bool:
    """Whether the target did anything about an operation with this error, if only close; without an error, it did."""
    return not error.startswith(UNANSWERED)


def kind_of(error: str) -> str:
    """The kind of a failure: `timeout`, `ER`, `HTTP 503`, ...; `other` if it is none of these."""
    if error.startswith("HTTP "):
        return error[:8]
    return next((kind for beginning, kind in FAILURES if error.startswith(beginning)), "other")
