"""A listener's network, and its connections."""

from __future__ import annotations

import selectors
import socket
from _socket import socket as RawSocket  # noqa: N812 - the class below `socket.socket`
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from cpdaemon.commands import KINDS
from cpsim.quirks.policies.reading import READ_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from cpsim.protocol.exchange import Passage

    Frame = tuple[str, dict[str, str]]


class Link:
    """A listener's network: which sockets have something, and who connects. A simulation replaces it."""

    def __init__(self) -> None:
        self.selector: selectors.BaseSelector = selectors.DefaultSelector()
        self.wake_end, self.wake = socket.socketpair()
        """Ends of a connection to itself: what is sent to `wake` ends a wait."""
        self.client: Callable[[int], RawSocket] = partial(RawSocket, socket.AF_UNSPEC, socket.SOCK_STREAM, 0)
        """Returns the socket of an accepted client."""


class FrameConnection:
    """One client: its frame and the state of its answer.

    Attributes:
        call: the acknowledged command, outdated if the frame has `grown` since.
        position: of the command in a spool; 0 before.
        stored: whether the spool has a frame of it on disk.
        answered: whether `OK` or `ER` was sent, or is due once the spool has the command.
        ended: whether the frame is complete.
        sealed: whether the connection is closed, so that the command is final.
        shut: whether the sending side was shut down, which tells the client that no more follows.
        watched: whether the socket is registered with the selector.
        held: whether it is kept, unanswered, until the client leaves.
        passage: the faults that its command has met, if any.
        answer: sends the reply in the listener's place.
        since_s: when its first bytes came, or shortly before.
    """

    frame = b""
    call: Frame | None = None
    deadline = 0.0
    position = 0
    stored = answered = ended = grown = sealed = shut = watched = held = False
    passage: Passage | None = None
    answer: Callable[[bytes], object] | None = None
    since_s = 0.0

    def __init__(self, sock: RawSocket) -> None:
        self.sock = sock

    def end_sending(self) -> None:
        """Shut down the sending side toward an answered client that has not closed."""
        self.shut = True
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)


def cannot_complete(frame: bytes) -> bool:
    """Return whether no further bytes can make this frame well formed."""
    word, comma, _ = frame.lstrip().lower().partition(b",")
    kinds = [kind.encode() for kind in KINDS]
    if comma:
        return len(frame) > READ_BYTES or word not in kinds
    return len(frame) > READ_BYTES or not any(kind.startswith(word) for kind in kinds)
