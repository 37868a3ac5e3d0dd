"""What happens to a command between its sender and the accounts: the exchange, and what an interceptor may decide.

An interceptor sees an exchange `before` the command is applied and, in the reverse order, its reply `after` that. A
carrier of frames, requests or calls knows only the decisions.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Exchange(NamedTuple):
    """A request, and the commands in it.

    Attributes:
        hook: where it is: at the "daemon", at the "server", or a "delivery" by a daemon in the server's process.
        subjects: (kind, slot id) of the request and of each command in it; the slot id is "" where there is none.
        project: the project of the commands, "" if it is unknown.
        time_s: when it came, or goes on after a delay, in seconds on the clock of who asks the interceptors.
    """

    hook: str
    subjects: Sequence[tuple[str, str]]
    project: str = ""
    time_s: float = 0.0


class Later(NamedTuple):
    """Go on after `delay_s` seconds; the first bytes of a daemon's answer, `begun`, are sent at once."""

    delay_s: float
    begun: bytes = b""


class HttpReply(NamedTuple):
    """What a server answers to a request."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"


class Answer(NamedTuple):
    """Answer with a reply: bytes to a frame, a page to a request."""

    reply: object


class End(Enum):
    """Do not answer."""

    CLOSE = "close the connection"
    RESET = "reset the connection"
    HANG = "keep the connection until the client leaves"
    CUT = "send half of the reply's body, and close the connection"
    CRASH = "end the process"
    ANSWER_AND_CRASH = "send the reply, and end the process"


Decision = Later | Answer | End


class Interceptor(Protocol):
    """Decides about exchanges; None lets them pass."""

    def before(self, exchange: Exchange, /) -> Decision | None:
        """Decide about a command that has come; an answer or an end drops it."""

    def after(self, exchange: Exchange, reply: object, /) -> Answer | End | None:
        """Decide about the reply to a command."""


class Passage:
    """An exchange on its way through interceptors.

    Args:
        exchange: the exchange.
        interceptors: in order; each is asked for only if those before it let the exchange pass.

    Attributes:
        delay_s: seconds to wait before all else.
        begun: the first bytes of the answer.
        pause_s: seconds between these and the rest.
        instead: the decision to drop the command; None to apply it.
        passed: the interceptors that it has met.
    """

    def __init__(self, exchange: Exchange, interceptors: Iterable[Interceptor]) -> None:
        self.exchange = exchange
        self.delay_s = 0.0
        self.begun, self.pause_s = b"", 0.0
        self.instead: Answer | End | None = None
        self.passed: list[Interceptor] = []
        for interceptor in interceptors:
            self.passed.append(interceptor)
            decision = interceptor.before(exchange)
            if isinstance(decision, Later) and decision.begun:
                self.begun = self.begun or decision.begun
                self.pause_s += decision.delay_s
            elif isinstance(decision, Later):
                self.delay_s += decision.delay_s
                exchange = exchange._replace(time_s=exchange.time_s + decision.delay_s)
            elif decision is not None:
                self.instead = decision
                break

    def __bool__(self) -> bool:
        """Whether there is an interceptor."""
        return bool(self.passed)

    def back(self, reply: object) -> Answer | End:
        """Return what to do with the reply to the command, or with the answer in its place."""
        for interceptor in reversed(self.passed):
            decision = interceptor.after(self.exchange, reply)
            if isinstance(decision, End):
                return decision
            if decision is not None:
                reply = decision.reply
        return Answer(reply)
