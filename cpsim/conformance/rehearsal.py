"""A rehearsal: a clause runs, and its transcript lists what it would send; nothing is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from cpsim.conformance.examiner import Examiner, shown_bytes
from cpsim.conformance.exchange import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from cpsim.conformance.clause import Known
    from cpsim.conformance.exchange import HttpRequest


class RehearsalEnd(Exception):
    """The clause has sent all its commands, and reads their results."""


class Rehearsal(Examiner):
    """An examiner who sends nothing, sees nothing, and takes everything as expected."""

    @property
    def accounts(self) -> NoReturn:
        """Nothing is there to be looked into.

        Raises:
            RehearsalEnd: always.
        """
        raise RehearsalEnd

    @property
    def upstream(self) -> RehearsedUpstream:  # type: ignore[override]  # noqa: D102 - inherited
        return RehearsedUpstream()

    def send_unrecorded(self, frame: str) -> None:  # noqa: D102 - inherited
        pass

    def restart(self, signal: str) -> None:  # noqa: D102 - inherited
        self.note(f"have the daemon restarted, by {signal}")

    def failed_commands(self) -> str:  # noqa: D102 - inherited
        self.note("ask the daemon what was refused")
        return ""

    def check(self, what: str, expected: object, got: object, *known: Known) -> None:  # noqa: D102 - inherited
        pass

    def ask(self, request: HttpRequest) -> Reply:  # noqa: D102 - inherited
        self.note(f"{request.method} {request.path} {shown_bytes(request.body)}".rstrip())
        return Reply(200, "", b"{}")

    def connect(self) -> RehearsedConnection:  # type: ignore[override]  # noqa: D102 - inherited
        return RehearsedConnection(self.note)

    def outstanding(self, project: tuple[str, str] | None = None) -> list[str]:  # noqa: D102 - inherited
        self.request("/batch/slots", project=project)
        return []

    def see_slot(self, slot: str, *known: Known, project: tuple[str, str] | None = None, **expected: object) -> None:  # noqa: D102 - inherited
        pass

    def _see(
        self,
        kind: str,
        id: str,
        view: Mapping[str, object] | None,
        known: tuple[Known, ...],
        expected: dict[str, object],
    ) -> None:
        pass

    def see_machine(self, machine: str, *known: Known, **expected: object) -> None:  # noqa: D102 - inherited
        pass

    def see_user(self, user: str, *known: Known, **expected: object) -> None:  # noqa: D102 - inherited
        pass

    def see_total(self, name: str, key: str, expected: object, *known: Known) -> None:  # noqa: D102 - inherited
        pass

    def link(self, machine: str, user: str) -> None:  # noqa: D102 - inherited
        self.note(f"link {machine} to {user}, through the control API")

    def see_no_link(self, machine: str, user: str) -> None:  # noqa: D102 - inherited
        self.link(machine, user)

    def clock_us(self) -> int:  # noqa: D102 - inherited
        return 0

    def pause(self, seconds: float) -> None:  # noqa: D102 - inherited
        pass

    def repeat(self, happened: Callable[[], bool], seconds: float) -> bool:  # noqa: ARG002, D102 - inherited
        return True

    def release(self, machine: str) -> None:  # noqa: D102 - inherited
        self.note(f"release {machine}, through the control API")

    def advance(self, minutes: int) -> None:  # noqa: D102 - inherited
        self.note(f"advance the server's clock by {minutes} minutes and a second, through the control API")

    def wait_for(self, what: str, happened: Callable[[], bool]) -> float:  # noqa: ARG002, D102 - inherited
        happened()
        return 0.0


class RehearsedConnection:
    """A connection to no daemon."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def send(self, data: bytes) -> None:
        """Write down what would be sent."""
        self._note(shown_bytes(data))

    def end(self) -> None:
        """Nothing more would be sent."""

    def reply(self) -> str:
        """Nothing comes back."""
        return ""

    def everything(self) -> str:
        """Nothing comes back."""
        return ""

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class RehearsedUpstream:
    """No server."""

    deliveries = ()

    def answer(self, answer: str, count: int | None = None, refused: frozenset[str] = frozenset()) -> None:
        """Nothing is answered."""

    def wait_for(self, condition: object, timeout_s: float) -> bool:
        """Nothing comes."""
        del condition, timeout_s
        return True

    def serve_normally(self) -> None:
        """Nothing is served."""

    refuse = stop = serve_normally
