"""The examiner of a clause: it sends, reads, and compares with what the clause expects.

The transcript records all that is sent and received, so that a deviation can be shown whole.
"""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn
from urllib.parse import quote, urlencode

from cpdaemon.signing import token
from cpsim.conformance.books import AccountsExaminer
from cpsim.conformance.clause import Known, Need
from cpsim.conformance.exchange import HttpRequest
from cpsim.conformance.findings import CannotRun, Deviation, NotVerifiable, Overdue, shown, shown_bytes
from cpsim.conformance.frames import DaemonConnection
from cpsim.conformance.recorded import KeptConnection, RecordedConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cpsim.conformance.accounts import AccountsView
    from cpsim.conformance.clause import Clause
    from cpsim.conformance.exchange import Reply
    from cpsim.conformance.target import TargetView
    from cpsim.conformance.upstream import Upstream

FIRST_LOOK_S: Final = 0.002
LONGEST_LOOK_S: Final = 0.25
MOST_LISTED_BYTES: Final = 4_000_000
MOST_AT_ONCE: Final = 8
"""The most requests that are sent at the same time: few enough for a live system."""
FIRST_BULK: Final = 30
FEWEST_IN_BULKS: Final = 300
BULKS_S: Final = 2.0
"""How long many commands may take a server, unless all of them are needed."""


class Bulked(NamedTuple):
    """How many commands were sent in bulks, and the errors."""

    sent: int
    errors: list[object]


class Examiner(AccountsExaminer):
    """Checks one clause.

    Args:
        target_view: the target.
        clause: the clause.
    """

    def __init__(self, target_view: TargetView, clause: Clause) -> None:
        self._target_view = target_view
        self._transport = target_view.transport
        self._clause = clause
        self._serial = itertools.count(1)
        self.transcript: list[str] = []
        self.measured: dict[str, str] = {}

    @property
    def timeout_s(self) -> float:
        """How long a reply may take."""
        return self._target_view.target.timeout_s

    @property
    def flush_interval_s(self) -> float:
        """For how long the daemon keeps commands."""
        return self._target_view.target.flush_interval_s

    @property
    def max_rate(self) -> float | None:
        """The most commands/s that may be sent; None for no limit."""
        return self._target_view.target.max_rate

    @property
    def mark(self) -> str:
        """What every id of this clause begins with."""
        return f"{self._target_view.target.slot_prefix}-{self._target_view.run}-{self._clause.id.lower()}-"

    @property
    def upstream(self) -> Upstream:
        """The server behind the daemon, which is ours."""
        assert self._transport.upstream is not None
        return self._transport.upstream

    @property
    def accounts(self) -> AccountsView:
        """The server's accounts."""
        return self._target_view.accounts

    @property
    def sees(self) -> bool:
        """Whether there is somebody who answers; in a rehearsal there is not."""
        return self._transport.sees

    @property
    def sees_accounts(self) -> bool:
        """Whether the server's accounts can be looked into."""
        return Need.ACCOUNTS in self._target_view.needs

    @property
    def project(self) -> tuple[str, str]:
        """The project that is examined: its id, and its secret."""
        assert self._target_view.target.credentials is not None
        return self._target_view.target.credentials

    @property
    def other(self) -> tuple[str, str]:
        """A second project of the server."""
        assert self._target_view.target.other is not None
        return self._target_view.target.other

    def new(self, kind: str = "slot") -> str:
        """A new id of a slot, a machine, a user, or a counter."""
        name = f"{self.mark}{next(self._serial)}"
        return name if kind == "slot" else f"{name}-{kind}"

    # what is expected

    def check(self, what: str, expected: object, got: object, *known: Known) -> None:
        """Compare; a deviation that a known quirk explains has the quirk's name.

        Raises:
            Deviation: they differ.
        """
        if got == expected or not self._transport.sees:
            return
        quirk = next((quirk for quirk, seen in known if seen == got), "")
        assert not quirk or quirk in self._clause.quirks, f"{self._clause.id} does not say that it shows {quirk}"
        raise Deviation(what, shown(expected), shown(got), quirk)

    def note(self, line: str) -> None:
        """Add a line to the transcript."""
        self.transcript.append(line)

    def note_sent(self, line: str, by: str = "") -> None:
        """Add what is sent to the transcript; a rehearsal, which lists nothing else, says by which means."""
        self.note(f"> {line}" if self._transport.sees else f"{line}{by}")

    def note_seen(self, line: str) -> None:
        """Add what is seen to the transcript."""
        if self._transport.sees:
            self.note(line)

    def measure(self, what: str, figure: str) -> None:
        """Keep a figure for the verdict."""
        self.note(f"{what}: {figure}")
        self.measured[what] = figure

    # at the server

    def request(
        self,
        path: str,
        body: bytes = b"",
        *,
        method: str = "POST",
        query: bytes = b"",
        authorization: str | None = "",
        project: tuple[str, str] | None = None,
    ) -> Reply:
        """Send a request below the server's base URL; the arguments are those of `signed`."""
        given = self.signed(path, body, method=method, query=query, authorization=authorization, project=project)
        return self.ask(given)

    def signed(
        self,
        path: str,
        body: bytes = b"",
        *,
        method: str = "POST",
        query: bytes = b"",
        authorization: str | None = "",
        project: tuple[str, str] | None = None,
    ) -> HttpRequest:
        """A request below the server's base URL.

        Args:
            path: below the base URL.
            body: the exact bytes.
            method: POST or GET.
            query: as it is sent; a GET's token follows it.
            authorization: the token; "" signs as the document says, None leaves it out.
            project: who signs.
        """
        assert self._target_view.target.server is not None
        if authorization == "":
            authorization = token(project or self.project, query if method == "GET" else body)
        headers = {}
        if method == "GET":
            if authorization is not None:
                query += b"&auth=" + quote(authorization, safe=",-").encode()
        elif authorization is not None:
            headers["Authorization"] = authorization
        target = f"{self._target_view.target.server.path}{path}" + (f"?{query.decode()}" if query else "")
        return HttpRequest(method, target, body, headers)

    def ask(self, request: HttpRequest) -> Reply:
        """Send a request as it is.

        Raises:
            NotVerifiable: there is no reply in time.
        """
        self.note_request(request)
        return self.seen(self._transport.ask(request), request)

    def ask_together(self, requests: Sequence[HttpRequest]) -> list[Reply]:
        """Send requests at the same time, at most eight; returns the replies in the order of the requests.

        Raises:
            NotVerifiable: there is no reply in time to one of them.
        """
        assert len(requests) <= MOST_AT_ONCE
        for request in requests:
            self.note_request(request, ", at the same time")
        replies = self._transport.ask_together(requests)
        return [self.seen(reply, request) for request, reply in zip(requests, replies, strict=True)]

    @contextmanager
    def kept(self) -> Iterator[KeptConnection]:
        """A connection on which several requests are sent."""
        with self._transport.keep() as connection:
            yield KeptConnection(self, self._transport, connection)

    def note_request(self, request: HttpRequest, how: str = "") -> None:
        """Add a request to the transcript."""
        self.note_sent(f"{request.method} {request.path} {shown_bytes(request.body)}".rstrip(), how)

    def note_acknowledged(self, frame: bytes) -> None:
        """Note what a frame leaves that the daemon has acknowledged."""
        self._target_view.leavings.note_frame(frame, (self._target_view.target.credentials or ("",))[0])

    def seen(self, reply: Reply, request: HttpRequest | None = None) -> Reply:
        """Add a reply to the transcript, note what the request to it leaves, and return it.

        Raises:
            NotVerifiable: it did not come in time.
        """
        self.note_seen(f"< {reply}")
        self._target_view.leavings.note(request, reply)
        if reply.is_late:
            self.give_up(f"no reply within {self.timeout_s:g} s, which is no reply that deviates: a longer --timeout")
        return reply

    def command(
        self,
        kind: str,
        slot: str | None,
        arguments: Mapping[str, object] | None = None,
        project: tuple[str, str] | None = None,
        **more: object,
    ) -> Reply:
        """Send one command to the server."""
        document = ({} if slot is None else {"slot": slot}) | dict(arguments or {}) | more
        return self.request(f"/batch/{kind}", compact(document), project=project)

    def signed_command(self, kind: str, slot: str, **arguments: object) -> HttpRequest:
        """The request of one command."""
        return self.signed(f"/batch/{kind}", compact({"slot": slot, **arguments}))

    def accept(
        self,
        kind: str,
        slot: str | None,
        arguments: Mapping[str, object] | None = None,
        *known: Known,
        project: tuple[str, str] | None = None,
        **more: object,
    ) -> None:
        """Send one command, which the server has to accept."""
        reply = self.command(kind, slot, arguments, project, **more)
        self.check(f"answer to {kind}", "accepted", reply.outcome, *known)

    def refuse(
        self,
        kind: str,
        slot: str | None,
        arguments: Mapping[str, object] | None = None,
        *,
        quirk: str = "",
        project: tuple[str, str] | None = None,
        **more: object,
    ) -> None:
        """Send one command, which the server has to refuse; a quirk may have it accepted."""
        reply = self.command(kind, slot, arguments, project, **more)
        self.check(f"answer to {kind}", "refused", reply.outcome, Known(quirk, "accepted"))

    def bulk(self, classes: Mapping[str, object], *known: Known) -> list[object]:
        """Send a bulk request, which has to be answered 200 and ok; returns its errors."""
        reply = self.request("/batch/bulk", compact(classes))
        self.check("status of the bulk", 200, reply.status, *known)
        self.check("result of the bulk", "ok", reply.document.get("result"))
        errors = reply.document.get("errors", [])
        return errors if isinstance(errors, list) else [errors]

    def in_bulks(self, kind: str, commands: Sequence[Mapping[str, object]], *, whole: bool = False) -> Bulked:
        """Send commands of a kind in bulks: a small one, which shows the server's pace, and as few others as may be.

        Args:
            kind: of the commands.
            commands: their arguments.
            whole: send all; else fewer where the server would need more than some seconds.
        """
        errors: list[object] = []
        clock = self._transport.clock
        began, sent, size = clock.monotonic(), 0, FIRST_BULK
        while sent < len(commands):
            if not whole and sent >= FEWEST_IN_BULKS and clock.monotonic() - began > BULKS_S:
                break
            part = commands[sent : sent + size]
            errors += self.bulk({kind: part})
            sent += len(part)
            pace_s = (clock.monotonic() - began) / sent
            size = len(commands) if not pace_s else max(1, int(min(BULKS_S, self.timeout_s / 4) / pace_s))
        return Bulked(sent, errors)

    def listing(self) -> list[str]:
        """The ids of this clause's slots that `/batch/slots` lists, wherever in them this clause's prefix is."""
        return self._outstanding(None, lambda slot, mine: mine in slot)

    def listed(self, slot: str, project: tuple[str, str] | None = None) -> bool:
        """Whether `/batch/slots` lists a slot."""
        return slot in self.outstanding(project)

    def outstanding(self, project: tuple[str, str] | None = None) -> list[str]:
        """The ids of this clause's slots that `/batch/slots` lists."""
        return self._outstanding(project, str.startswith)

    def _outstanding(self, project: tuple[str, str] | None, is_mine: Callable[[str, str], bool]) -> list[str]:
        if self._target_view.listing_bytes > MOST_LISTED_BYTES:
            self.give_up(
                f"/batch/slots lists {self._target_view.listing_bytes:,} bytes, too much to look at again and again: "
                "a project with fewer outstanding slots would do"
            )
        reply = self.request("/batch/slots", project=project)
        data = reply.document.get("data")
        if reply.status != 200 or not isinstance(data, list):
            raise Deviation("answer to /batch/slots", '200 and {"result": "ok", "data": [...]}', str(reply))
        return [slot for slot in data if isinstance(slot, str) and is_mine(slot, self.mark)]

    def see_listed(self, slot: str, project: tuple[str, str] | None = None) -> None:
        """A slot has to be listed as outstanding."""
        self.check(f"{slot} is listed by /batch/slots", expected=True, got=self.listed(slot, project))

    def see_unlisted(self, slot: str, *known: Known, project: tuple[str, str] | None = None) -> None:
        """A slot must not be listed as outstanding."""
        self.check(f"{slot} is listed by /batch/slots", False, self.listed(slot, project), *known)  # noqa: FBT003

    # at the daemon

    def connect(self) -> DaemonConnection:
        """A connection to the daemon; the caller closes it."""
        return RecordedConnection(self, self._transport.connect())

    def refusals(self, clients: int) -> int:
        """How many of some clients, who connect at once and send nothing, a full queue refused."""
        self.note_sent(f"connect {clients} clients at once")
        return self._transport.refusals(clients)

    def send(self, frame: bytes | str, expected: str = "OK", *known: Known) -> None:
        """Send a frame to the daemon on a connection of its own, which has to answer this."""
        data = frame.encode() if isinstance(frame, str) else frame
        with self.connect() as connection:
            connection.send(data)
            self.check(f"answer to {shown_bytes(data)}", expected, connection.reply(), *known)

    def restart(self, signal: str) -> None:
        """Have the daemon stopped, or killed, and started again, and wait until it listens.

        Args:
            signal: TERM or KILL, which stands where the command has `{signal}`.
        """
        assert self._target_view.target.restart_command is not None
        command = self._target_view.target.restart_command.replace("{signal}", signal)
        self._run(command, f"have the daemon restarted, by {signal}")
        clock = self._transport.clock
        deadline = clock.monotonic() + self.timeout_s
        while True:
            try:
                self.connect().close()
            except CannotRun:
                if clock.monotonic() > deadline:
                    raise
                clock.sleep(FIRST_LOOK_S)
            else:
                return

    @property
    def kills(self) -> bool:
        """Whether the daemon can be killed, and not only stopped."""
        return "{signal}" in (self._target_view.target.restart_command or "")

    def failed_commands(self) -> str:
        """What the daemon says of commands that were refused."""
        assert self._target_view.target.failed_command is not None
        return self._run(self._target_view.target.failed_command, "ask the daemon what was refused")

    def restart_server(self) -> None:
        """Have the server killed, or stopped, and started again, and wait until it answers."""
        command = (self._target_view.target.restart_command or "").replace("{signal}", "KILL")
        self._run(command, "have the server restarted, by KILL")
        heartbeat = self.signed("/heartbeat", method="GET", authorization=None)
        clock = self._transport.clock
        deadline = clock.monotonic() + self.timeout_s
        while True:
            try:
                reply = self._transport.ask(heartbeat)
            except CannotRun:
                if clock.monotonic() > deadline:
                    raise
            else:
                if reply.status == 200 or clock.monotonic() > deadline:
                    return
            clock.sleep(FIRST_LOOK_S)

    def _run(self, command: str, purpose: str) -> str:
        self.note(f"$ {command}" if self._transport.sees else purpose)
        return self._transport.run(command)

    def send_unrecorded(self, frame: str) -> None:
        """Send one of many frames, which has to be answered OK, without a line in the transcript."""
        with DaemonConnection(self._transport.connect()) as connection:
            connection.send(frame.encode())
            self.check(f"answer to {shown(frame)}", "OK", connection.reply())
        self.note_acknowledged(frame.encode())

    def wait_until_applied(self) -> None:
        """Wait until all that the daemon has acknowledged has reached the server.

        A slot of its own is allocated and discarded through the daemon after all else; what came before is then there.

        Raises:
            NotVerifiable: that took longer than the time-out; DELIVER-1 is the clause for it.
        """
        fence = self.new()
        self.send(f"alloc,slot={fence}")
        self.wait_or_give_up(f"alloc of {fence}", lambda: self.listed(fence))
        self.send(f"discard,slot={fence}")
        self.wait_or_give_up(f"discard of {fence}", lambda: not self.listed(fence))

    def wait_for(self, what: str, happened: Callable[[], bool]) -> float:
        """Wait until something has happened; returns how long that took, in seconds.

        Raises:
            Overdue: that took longer than the time-out.
        """
        clock = self._transport.clock
        began, pause_s = clock.monotonic(), FIRST_LOOK_S
        while not happened() and self._transport.sees:
            if clock.monotonic() - began > self.timeout_s:
                raise Overdue(what, f"within {self.timeout_s:g} s (--timeout)", "nothing of the kind")
            clock.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_LOOK_S)
        return clock.monotonic() - began

    def wait_or_give_up(self, what: str, happened: Callable[[], bool]) -> float:
        """Wait until the effect of a command shows that is not what the clause is about.

        Raises:
            NotVerifiable: that took longer than the time-out.
        """
        try:
            return self.wait_for(what, happened)
        except Overdue as late:
            self.give_up(f"what the daemon acknowledges does not show at the server: {late}; see DELIVER-1")

    def repeat(self, happened: Callable[[], bool], seconds: float) -> bool:
        """Poll for some time whether something has happened; returns whether it has."""
        deadline = self._transport.clock.monotonic() + seconds
        while self._transport.sees and self._transport.clock.monotonic() < deadline:
            if happened():
                return True
        return False

    def pause(self, seconds: float) -> None:
        """Let time pass between two things that are sent."""
        self._transport.clock.sleep(seconds)

    def give_up(self, why: str) -> NoReturn:
        """End the clause as not verifiable.

        Raises:
            NotVerifiable: always.
        """
        raise NotVerifiable(why)


def compact(document: object) -> bytes:
    """JSON as the daemon writes it."""
    return json.dumps(document, separators=(",", ":")).encode()


def form(arguments: Mapping[str, object]) -> bytes:
    """A query string."""
    return urlencode(arguments).encode()
