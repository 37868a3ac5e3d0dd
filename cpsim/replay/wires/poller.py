"""Which descriptors are ready, without the cost of `selectors`' bookkeeping, and soon enough.

`Few` asks with poll: nothing is registered with the kernel, which spares a connection per command two microseconds of
sixteen; what it costs grows with the descriptors watched. `Many` is epoll on Linux and kqueue on macOS.
poll and epoll count whole milliseconds, and wait one more rather than one less. So the last of a wait is left to
select, which counts microseconds, but asks more for each descriptor and knows none above a thousand.
What it uses is taken when this is imported, and stays what it is when gevent puts its own in place later.
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
"""What is shorter than this cannot be told in whole milliseconds."""
SELECTABLE: Final = 1_024
"""Descriptors that select can ask for are below this."""


class Few:
    """Descriptors to watch for answers; each must be forgotten before it is closed.

    Args:
        watched: the descriptors, as whoever watches them knows them.
        writing: those of them that are to be reported when they can be written.
    """

    def __init__(self, watched: Mapping[int, object], writing: Mapping[int, object]) -> None:
        self._watched = watched
        self._writing = writing
        self._poll = poll()
        self._register = self._poll.register
        self.forget = self._poll.unregister

    def watch(self, fd: int, *, writing: bool = False) -> None:
        """Report a descriptor once it can be read or, first, written."""
        self._register(fd, POLLOUT if writing else POLLIN)

    def written(self, fd: int) -> None:
        """From now on, report it when it can be read."""
        self._register(fd, POLLIN)

    def poll(self, patience_s: float) -> list[int]:
        """The descriptors to report, after at most `patience_s` seconds."""
        if patience_s >= COARSE_S:
            patience_s = int(patience_s * 1000 - 1) / 1000
        elif patience_s > 0:
            if max(self._watched, default=0) < SELECTABLE:
                reading = self._watched.keys() - self._writing.keys()
                readable, writable, _ = select(reading, self._writing, (), patience_s)
                return readable + writable
            patience_s = 0.0
        return [fd for fd, _ in self._poll.poll(patience_s * 1000)]

    def close(self) -> None:
        """Watch nothing more."""


if sys.platform == "darwin":
    from select import KQ_EV_ADD, KQ_EV_DELETE, KQ_FILTER_READ, KQ_FILTER_WRITE, kevent, kqueue

    class Many:
        """Descriptors to watch for answers; one that is closed is forgotten."""

        def __init__(self) -> None:
            self._kqueue = kqueue()

        def watch(self, fd: int, *, writing: bool = False) -> None:
            """Report a descriptor once it can be read or, first, written."""
            filter_ = KQ_FILTER_WRITE if writing else KQ_FILTER_READ
            self._kqueue.control([kevent(fd, filter_, KQ_EV_ADD)], 0)

        def written(self, fd: int) -> None:
            """From now on, report it when it can be read."""
            self._kqueue.control([kevent(fd, KQ_FILTER_WRITE, KQ_EV_DELETE)], 0)
            self.watch(fd)

        def forget(self, fd: int) -> None:
            """The descriptor is about to be closed, and that is enough."""

        def poll(self, patience_s: float) -> list[int]:
            """The descriptors to report, after at most `patience_s` seconds."""
            return [event.ident for event in self._kqueue.control(None, EVENTS_A_POLL, patience_s)]

        def close(self) -> None:
            """Watch nothing more."""
            self._kqueue.close()

else:
    from select import EPOLLIN, EPOLLOUT, epoll

    class Many:
        """Descriptors to watch for answers; one that is closed is forgotten."""

        def __init__(self) -> None:
            self._epoll = epoll()
            self._poll = self._epoll.poll
            self._own_fd = self._epoll.fileno()

        def watch(self, fd: int, *, writing: bool = False) -> None:
            """Report a descriptor once it can be read or, first, written."""
            self._epoll.register(fd, EPOLLOUT if writing else EPOLLIN)

        def written(self, fd: int) -> None:
            """From now on, report it when it can be read."""
            self._epoll.modify(fd, EPOLLIN)

        def forget(self, fd: int) -> None:
            """The descriptor is about to be closed, and that is enough."""

        def poll(self, patience_s: float) -> list[int]:
            """The descriptors to report, after at most `patience_s` seconds."""
            if patience_s >= COARSE_S:
                patience_s = int(patience_s * 1000 - 1) / 1000
            elif patience_s > 0:
                if self._own_fd < SELECTABLE:
                    select((self._own_fd,), (), (), patience_s)
                patience_s = 0.0
            return [fd for fd, _ in self._poll(patience_s, EVENTS_A_POLL)]

        def close(self) -> None:
            """Watch nothing more."""
            self._epoll.close()
