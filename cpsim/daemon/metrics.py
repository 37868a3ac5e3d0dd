"""The metrics of daemons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from cpsim.metrics.exposition import Family

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cpsim.daemon.site import Daemon

STATUS: Final[tuple[tuple[Literal["counter", "gauge"], str, str, str], ...]] = (
    ("counter", "delivered_commands", "delivered", "Commands of the spool that the server accepted."),
    ("counter", "refused_commands", "refused", "Commands of the spool that the server refused."),
    ("counter", "retries", "retries", "Attempts to deliver commands of the spool that failed and are repeated."),
    ("gauge", "dead_letters", "dead_letters", "Commands in the spool that are sent no more."),
    ("gauge", "spool_full", "full", "1 if commands are answered ER because the spool or its disk is full."),
    ("gauge", "outage_seconds", "trouble_s", "How long all attempts to deliver have failed; 0 if the last succeeded."),
)
"""Metrics of a spool: type, name, field of its `Status`, and description."""


def daemon_metrics(daemons: Sequence[Daemon]) -> list[Family]:
    """Return the metrics of daemons that serve; however much waits in them, that takes the same time.

    Raises:
        CpsimError: a spool cannot be read.
    """
    labelled = [({"project": each.project_id, "daemon": " ".join(each.addresses.values())}, each) for each in daemons]
    for _, daemon in labelled:
        daemon.delays.note()  # or what has just left would be missing
    # before the rest, and as of now: a command that these count waits nowhere below
    delays = [(labels, daemon.delays.buckets.read()) for labels, daemon in labelled]
    replies = [(labels, *daemon.listener.replies.read()) for labels, daemon in labelled if daemon.listener is not None]
    spools = [(labels, daemon.spool_path) for labels, daemon in labelled if daemon.spool_path is not None]
    statuses = [(labels, status) for labels, each in labelled if (status := each.spool_status()) is not None]
    oldest = [
        *((labels, daemon.delays.oldest_s()) for labels, daemon in labelled if daemon.spool_path is None),
        *((labels, status.oldest_s) for labels, status in statuses),
    ]
    by_reply = [
        (labels | {"kind": kind, "reply": reply.decode(errors="replace")}, count)
        for labels, counts, _ in replies
        for (kind, reply), count in counts.items()
    ]
    latencies = [(labels, latency) for labels, _, latency in replies]
    queued = [(labels, daemon.pending) for labels, daemon in labelled]
    sizes = [(labels, _size_bytes(path)) for labels, path in spools]
    return [
        Family("counter", "cpsim_daemon_replies", "Replies: OK by kind of command, ER without a kind.", by_reply),
        Family(
            "histogram",
            "cpsim_daemon_reply_duration_seconds",
            "Time from the first bytes of a command to the reply.",
            latencies,
        ),
        Family(
            "histogram",
            "cpsim_daemon_apply_delay_seconds",
            "Time from when the daemon took a command until the server had answered for it.",
            delays,
        ),
        Family("gauge", "cpsim_daemon_queued_commands", "Commands that are taken and not delivered.", queued),
        Family(
            "gauge",
            "cpsim_daemon_oldest_command_age_seconds",
            "Age of the oldest command that is not delivered; 0 without one.",
            oldest,
        ),
        Family("gauge", "cpsim_daemon_spool_size_bytes", "Size of the spool's files, without its reserve.", sizes),
        *(
            Family(kind, f"cpsim_daemon_{name}", text, [(labels, getattr(each, field)) for labels, each in statuses])
            for kind, name, field, text in STATUS
        ),
    ]


def _size_bytes(spool: Path) -> int:
    """Return the size of a spool's file and of its write-ahead log, in bytes."""
    return sum(file.stat().st_size for file in (spool, spool.with_name(f"{spool.name}-wal")) if file.exists())
