"""Pollers: which descriptors are ready, without the bookkeeping of `selectors`, and with microsecond waits.

`Few` uses poll: it registers nothing with the kernel, which saves two of sixteen microseconds per connection; its cost
grows with the number of descriptors. `Many` uses epoll on Linux and kqueue on macOS.
poll and epoll count whole milliseconds, rounded up. So select, which counts microseconds, takes the end of a wait; it
costs more per descriptor, and takes none above a thousand.
The functions are bound at import, so that gevent's later patches do not replace them.
"""

from __future__ import annotations

import sys
from select import POLLIN, POLLOUT, poll, select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FEW: Final = 128
"""Descriptors up to which poll costs less."""
EVENTS_A_POLL: Final = 256
COARSE_S: Final = 0.002
"""Shorter waits need a finer clock than whole milliseconds."""
SELECTABLE: Final = 1_024
"""select takes descriptors below this."""


def parts_of(patience_s: float, *, selectable: bool) -> tuple[float, int]:
    """Of a wait, the seconds that select takes or, if it is long, the whole milliseconds for poll and epoll."""
    if patience_s >= COARSE_S:
        return 0.0, int(patience_s * 1000 - 1)
    return patience_s if selectable else 0.0, 0


class Few:
    """Descriptors to poll for answers; call `forget` before a descriptor is closed.

    Args:
        watched: the caller's mapping of all descriptors.
        writing: the descriptors to report when they are writable.
    """

    def __init__(self, watched: Mapping[int, object], writing: Mapping[int, object]) -> None:
        self._watched = watched
        self._writing = writing
        self._poll = poll()
        self._register = self._poll.register
        self.forget = self._poll.unregister

    def watch(self, fd: int, *, writing: bool = False) -> None:
        """Report a descriptor when it is readable or, with `writing`, writable."""
        self._register(fd, POLLOUT if writing else POLLIN)

    def written(self, fd: int) -> None:
        """Report the descriptor when it is readable from now on."""
        self._register(fd, POLLIN)

    def poll(self, patience_s: float) -> list[int]:
        """The ready descriptors, after at most `patience_s` seconds."""
        coarse_ms = 0
        if patience_s > 0:
            fine_s, coarse_ms = parts_of(patience_s, selectable=max(self._watched, default=0) < SELECTABLE)
            if fine_s:
                reading = self._watched.keys() - self._writing.keys()
                readable, writable, _ = select(reading, self._writing, (), fine_s)
                return readable + writable
        return [fd for fd, _ in self._poll.poll(coarse_ms)]

    def close(self) -> None:
        """Stop polling."""


if sys.platform == "darwin":
    from select import KQ_EV_ADD, KQ_EV_DELETE, KQ_FILTER_READ, KQ_FILTER_WRITE, kevent, kqueue

    class Many:
        """Descriptors to poll for answers; a closed one is forgotten."""

        def __init__(self) -> None:
            self._kqueue = kqueue()

        def watch(self, fd: int, *, writing: bool = False) -> None:
            """Report a descriptor when it is readable or, with `writing`, writable."""
            filter_ = KQ_FILTER_WRITE if writing else KQ_FILTER_READ
            self._kqueue.control([kevent(fd, filter_, KQ_EV_ADD)], 0)

        def written(self, fd: int) -> None:
            """Report the descriptor when it is readable from now on."""
            self._kqueue.control([kevent(fd, KQ_FILTER_WRITE, KQ_EV_DELETE)], 0)
            self.watch(fd)

        def forget(self, fd: int) -> None:
            """Nothing to do: closing the descriptor is enough."""

        def poll(self, patience_s: float, most: int = EVENTS_A_POLL) -> list[int]:
            """The ready descriptors, at most so many, after at most `patience_s` seconds."""
            return [event.ident for event in self._kqueue.control(None, most, patience_s)]

        def close(self) -> None:
            """Stop polling."""
            self._kqueue.close()

else:
    from select import EPOLLIN, EPOLLOUT, epoll

    class Many:
        """Descriptors to poll for answers; a closed one is forgotten."""

        def __init__(self) -> None:
            self._epoll = epoll()
            self._poll = self._epoll.poll
            self._own_fd = self._epoll.fileno()

        def watch(self, fd: int, *, writing: bool = False) -> None:
            """Report a descriptor when it is readable or, with `writing`, writable."""
            self._epoll.register(fd, EPOLLOUT if writing else EPOLLIN)

        def written(self, fd: int) -> None:
            """Report the descriptor when it is readable from now on."""
            self._epoll.modify(fd, EPOLLIN)

        def forget(self, fd: int) -> None:
            """Nothing to do: closing the descriptor is enough."""

        def poll(self, patience_s: float, most: int = EVENTS_A_POLL) -> list[int]:
            """The ready descriptors, at most so many, after at most `patience_s` seconds."""
            coarse_ms = 0
            if patience_s > 0:
                fine_s, coarse_ms = parts_of(patience_s, selectable=self._own_fd < SELECTABLE)
                if fine_s:
                    select((self._own_fd,), (), (), fine_s)
            return [fd for fd, _ in self._poll(coarse_ms / 1000, most)]

        def close(self) -> None:
            """Stop polling."""
            self._epoll.close()
