"""The page of a run while it goes on, served by a process of its own that follows the replay.

It is made when somebody asks for it, and stays the same for ten times the processor time that it took.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cpsim.clock import SYSTEM_CLOCK
from cpsim.evidence.journal import RECORD_TYPE, Journal, merged
from cpsim.evidence.reader import JournalReader
from cpsim.judge.verdict import Verdict
from cpsim.net.addresses import listen_tcp
from cpsim.net.http.carrier import Carrier
from cpsim.net.http.messages import Failure, Response
from cpsim.net.listen import is_loopback
from cpsim.replay.engine import Effort
from cpsim.run.documents import run_document, verdict_document
from cpsim.run.drivers import Replayed
from cpsim.run.follower import Channel, Follower, handed
from cpsim.run.page import html
from cpsim.run.pipeline import ApplyDelay, Run
from cpsim.run.summary import summarise
from cpsim.server.control.access import Access

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from cpdaemon.endpoint import TcpEndpoint
    from cpsim.clock import Clock
    from cpsim.net.http.application import Caller
    from cpsim.net.http.messages import Request
    from cpsim.run.plan import Plan

REST: Final = 10
"""A page stays the same for so many times the processor time that it took to make."""
LEAST_REST_S: Final = 1.0
STATUS: Final = "running"
UNREPORTED: Final = "an error whose text is not known before the end"
HTML: Final = b"text/html; charset=utf-8"
PLAIN: Final = b"text/plain; charset=utf-8"
HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


class LivePage(Follower):
    """Serves the page of a run, once it has begun; a context manager, at whose end nothing is served any more.

    Args:
        address: where to listen; port 0 takes a free one.
        final: where the page will be when the run has ended.
        clock: by which journals are flushed.

    Attributes:
        url: of the page.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, address: TcpEndpoint, final: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self._sock = listen_tcp(address.host, address.port)
        super().__init__("cpsim.run.live", clock)
        self._final = final
        host, port = self._sock.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def begin(self, plan: Plan, faults: Sequence[str]) -> None:
        """Start the process, for a plan and the faults that are set during its replay."""
        self.start((plan, tuple(faults), str(self._final)), [self._sock.fileno()])

    def flush(self, journals: Sequence[Journal], faults_since_s: float, judged: str = "") -> None:
        """Write what journals hold to their files, at most once a second.

        Args:
            journals: those that are followed.
            faults_since_s: when the faults were set, in seconds since the replay began.
            judged: what is judged so far, as a text.
        """
        self.flush_journals(journals, since_s=faults_since_s, judged=judged)

    def tell(self, errors: Sequence[Sequence[str]], judged: str = "") -> None:
        """Tell the texts of each journal's errors and what is judged so far, if either is new."""
        self.tell_known(errors, since_s=0.0, judged=judged)

    def close(self) -> None:
        """End the process, and listen no more."""
        super().close()
        self._sock.close()


@contextmanager
def live_page(address: TcpEndpoint, folder: Path) -> Iterator[LivePage]:
    """Serve the page of a run in the context, and print its URL on standard error.

    Args:
        address: where to listen.
        folder: of the run.

    Raises:
        OSError: the address cannot be bound.
    """
    with LivePage(address, folder / "report.html") as live:
        print(f"cpsim: the page of this run: {live.url}", file=sys.stderr, flush=True)
        yield live


class _Pages:
    """The `Application` that serves the page.

    Args:
        plan: of the run.
        faults: that are set during its replay.
        final: where its page will be.
        host: where it is served.
    """

    def __init__(self, plan: Plan, faults: Sequence[str], final: str, host: str) -> None:
        self._plan, self._faults, self._final = plan, faults, final
        self._assignment = plan.assignment()
        self._access = Access(host) if is_loopback(host) else None
        self._lock = Lock()
        self._journals: dict[int, Journal] = {}
        self._of = 1
        self._errors: list[list[str]] = []
        self._since_s = 0.0
        self._judged = ""
        self._page, self._until_s = b"", 0.0

    def hear(self, message: dict[str, Any]) -> None:
        """Take what the replaying process tells."""
        with self._lock:
            if "journal" in message:
                self._journals[message["journal"]] = Journal(descriptors=[message["descriptor"]])
                self._of = message["of"]
            else:
                self._errors, self._since_s = message["errors"], message["since_s"]
                self._judged = message["judged"]

    def answer(self, request: Request, _: Caller, /) -> Response:
        """Answer a request for the page."""
        try:
            if self._access is not None:
                self._access.check_page(request)
        except Failure as failure:
            return self.refusal(failure.status, str(failure))
        if request.path != "/":
            return self.refusal(404, f"there is no {request.path!r}, only /")
        if request.method not in {"GET", "HEAD"}:
            return Response(405, b"use GET\n", PLAIN, ((b"allow", b"GET, HEAD"),))
        if SYSTEM_CLOCK.monotonic() >= self._until_s:
            before = os.times()
            self._page = self._made().encode("utf-8", "replace")
            after = os.times()
            took_s = after.user + after.system - before.user - before.system
            self._until_s = SYSTEM_CLOCK.monotonic() + max(LEAST_REST_S, REST * took_s)
        return Response(200, self._page, HTML, HEADERS)

    def finish(self, commands: Sequence[Response], /) -> Sequence[Response]:
        """No request waits for others."""
        return commands

    def refusal(self, status: int, message: str, /) -> Response:
        """The answer to a request for anything else."""
        return Response(status, f"{message}\n".encode(), PLAIN)

    def _made(self) -> str:
        """The page of the run as far as it is known."""
        records, errors = self._records()
        effort = Effort(0.0, {})
        elapsed_s = float(records["answered_ns"].max(initial=0)) / 1e9
        evidence = Replayed(records, errors, elapsed_s, effort, 0).evidence(self._plan, self._assignment.schedule_us)
        unknown = "the run has not ended"
        faults = tuple({"fault": text, "selected": None, "fired": None} for text in self._faults)
        evidence = replace(evidence, faults=faults, faults_unknown=unknown if faults else "")
        judged = f" ({self._judged})" if self._judged else ""
        verdict = Verdict(not_verified=[f"The run has not ended: what was applied is verified at its end{judged}."])
        run = Run(self._plan, evidence, effort, verdict, ApplyDelay(unknown=unknown), self._since_s)
        summary = summarise(run, {})
        summary.limit = None
        shown = verdict_document(evidence, verdict) | {"verdict": STATUS}
        return html(run, summary, run_document(run, summary), shown, live=self._final)

    def _records(self) -> tuple[npt.NDArray[np.void], list[str]]:
        """The records in the journals' files, and their errors."""
        with self._lock:
            journals, errors = sorted(self._journals.items()), self._errors
        parts = []
        for place, journal in journals:
            records = JournalReader(journal).read().copy()
            texts = list(errors[place]) if place < len(errors) else [""]
            missing = int(records["error"].max(initial=0)) + 1 - len(texts)
            ops = self._assignment.ops if self._of == 1 else self._assignment.part(place, self._of).ops
            parts.append((records, [*texts, *[UNREPORTED] * missing], ops))
        return merged(parts) if parts else (np.empty(0, RECORD_TYPE), [""])


def main() -> None:
    """Serve the page of a run, which is on standard input, until the process that replays it ends."""
    listening, control = map(int, sys.argv[1:])
    sock, channel = socket.socket(fileno=listening), Channel(control)
    plan, faults, final = handed()
    pages = _Pages(plan, faults, final, sock.getsockname()[0])
    carrier = Carrier(pages, [sock], "cpsim-live")
    carrier.start()
    carrier.call(carrier.accept)
    with suppress(EOFError):
        while True:
            for message in channel.receive():
                pages.hear(message)
    carrier.stop()
