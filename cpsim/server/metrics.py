"""The metrics of an account server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.metrics.exposition import Family

if TYPE_CHECKING:
    from cpsim.metrics.duration_buckets import DurationBuckets
    from cpsim.server.control.views import Totals
    from cpsim.server.service import AccountServer

STATES = ("outstanding", "claimed", "discarded", "expired")


def server_metrics(accounts: AccountServer, totals: Totals, latency: DurationBuckets) -> list[Family]:
    """Return the metrics of a server.

    Args:
        accounts: the server.
        totals: its totals.
        latency: how long requests of the API have taken.
    """
    projects = totals.projects.items()
    return [
        Family(
            "counter",
            "cpsim_server_commands",
            "Commands that the server received.",
            [
                ({"project": project, "kind": kind, "outcome": outcome}, count)
                for (project, kind, outcome), count in list(accounts.counts.items())
            ],
        ),
        Family(
            "histogram",
            "cpsim_server_request_duration_seconds",
            "Time from a whole request of the HTTP API to its answer.",
            [({}, latency.read())],
        ),
        Family(
            "gauge",
            "cpsim_server_pending_commands",
            "Commands that daemons of this process have acknowledged, and the accounts do not have.",
            [({}, totals.pending)],
        ),
        Family(
            "gauge",
            "cpsim_server_slots",
            "Slots by state.",
            [
                ({"project": name, "state": state}, getattr(project, state))
                for name, project in projects
                for state in STATES
            ],
        ),
        Family(
            "gauge",
            "cpsim_server_credits",
            "Credit that the project has granted.",
            [({"project": name}, project.credits) for name, project in projects],
        ),
        Family(
            "counter",
            "cpsim_server_malformed_frames",
            "Frames that daemons of this process have refused, since the last reset.",
            [({"project": name}, accounts.journal.malformed(name)[0]) for name, _ in projects],
        ),
    ]
