"""What a fault does, as an interceptor of exchanges; `actions/` has one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from cpsim.protocol.exchange import Answer, Decision, End, Exchange

BOTH: Final = ("daemon", "server")


class Action:
    """What a fault does; the name of its file is its name.

    Args:
        value: its argument, if it takes one.

    Attributes:
        effect: what it does, in words.
        stages: where it can happen.
        takes: the name of its argument, in `cpsim.faults.spec.VALUES`; "" if it takes none.
        default: of the argument; None if it must be given.
        hook: the moment at which it may happen: before a command is answered ("answer"), when the accounts have the
            command ("delivery"), or at any time, because it is a state and not an event ("state").
        crashes: whether it ends the process.
    """

    effect: ClassVar[str]
    stages: ClassVar[tuple[str, ...]] = BOTH
    takes: ClassVar[str] = ""
    default: ClassVar[float | None] = None
    hook: ClassVar[str] = "answer"
    crashes: ClassVar[bool] = False

    def __init__(self, value: float | None) -> None:
        self.value = 0.0 if value is None else value

    def before(self, _: Exchange, /) -> Decision | None:
        """Decide about a command that has come."""
        return None

    def after(self, _: Exchange, __: object, /) -> Answer | End | None:
        """Decide about the reply to a command."""
        return None
