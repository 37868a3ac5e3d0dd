"""What quirks of the daemon replace in how it delivers commands; the defaults are those of a daemon that loses none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cpdaemon.errors import CreditPiggyError
    from cpdaemon.signing import Call


def is_never(error: CreditPiggyError) -> bool:  # noqa: ARG001 - quirks look at it
    """Whether a batch whose delivery failed with an error counts as delivered."""
    return False


@dataclass(frozen=True)
class DeliveryPolicy:
    """How a courier delivers.

    Attributes:
        durable: whether OK means that the command is on disk, where there is a disk.
        order: the places of a batch's commands in the order in which they are sent; None keeps theirs.
        full: the number of commands that are sent at once; None is the most that a batch holds.
        restarts: whether each command that comes begins the flush interval anew.
        settles: whether a batch whose delivery failed with an error counts as delivered.
        follows: whether a redirection is followed, by GET.
        sees_errors: whether the errors of a reply are looked at.
        retry_s: seconds until a batch with a lost reply is sent again, whole, or with commands that come meanwhile, to
            a server that is not asked whether it knows batches; None asks it, and does not send twice what may double.
        busy: with more commands than these, and the server out of reach, it tries again at once; None waits.
    """

    durable: bool = True
    order: Callable[[Sequence[Call]], list[int]] | None = None
    full: int | None = None
    restarts: bool = False
    settles: Callable[[CreditPiggyError], bool] = is_never
    follows: bool = False
    sees_errors: bool = True
    retry_s: float | None = None
    busy: int | None = None
