"""Which descriptors are ready, without the cost of `selectors`' bookkeeping.

`Few` asks with poll: nothing is registered with the kernel, which spares a connection per command two microseconds of
sixteen; what it costs grows with the descriptors watched. `Many` is epoll on Linux and kqueue on macOS.
What it uses is taken when this is imported, and stays what it is when gevent puts its own in place later.
"""

from __future__ import annotations

import sys
from select import POLLIN, POLLOUT, poll
from typing import Final

FEW: Final = 128
"""Descriptors up to which poll costs less."""
EVENTS_A_POLL: Final = 256


class Few:
    """Descriptors to watch for answers; each must be forgotten before it is closed."""

    def __init__(self) -> None:
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
            return [fd for fd, _ in self._poll(patience_s, EVENTS_A_POLL)]

        def close(self) -> None:
            """Watch nothing more."""
            self._epoll.close()
