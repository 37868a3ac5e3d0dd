"""Which descriptors are ready, without the cost of `selectors`' bookkeeping.

`Few` asks with poll: nothing is registered with the kernel, which spares a connection per command two microseconds of
sixteen; what it costs grows with the descriptors watched. `Many` is epoll on Linux and kqueue on macOS.
"""

from __future__ import annotations

import select
import sys
from typing import Final

FEW: Final = 128
"""Descriptors up to which poll costs less."""
EVENTS_A_POLL: Final = 256


class Few:
    """Descriptors to watch for answers; each must be forgotten before it is closed."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._register = self._poll.register
        self.forget = self._poll.unregister

    def watch(self, fd: int, *, writing: bool = False) -> None:
        """Report a descriptor once it can be read or, first, written."""
        self._register(fd, select.POLLOUT if writing else select.POLLIN)

    def written(self, fd: int) -> None:
        """From now on, report it when it can be read."""
        self._register(fd, select.POLLIN)

    def poll(self, patience_s: float) -> list[int]:
        """The descriptors to report, after at most `patience_s` seconds."""
        return [fd for fd, _ in self._poll.poll(patience_s * 1000)]

    def close(self) -> None:
        """Watch nothing more."""


if sys.platform == "darwin":

    class Many:
        """Descriptors to watch for answers; one that is closed is forgotten."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()

        def watch(self, fd: int, *, writing: bool = False) -> None:
            """Report a descriptor once it can be read or, first, written."""
            filter_ = select.KQ_FILTER_WRITE if writing else select.KQ_FILTER_READ
            self._kqueue.control([select.kevent(fd, filter_, select.KQ_EV_ADD)], 0)

        def written(self, fd: int) -> None:
            """From now on, report it when it can be read."""
            self._kqueue.control([select.kevent(fd, select.KQ_FILTER_WRITE, select.KQ_EV_DELETE)], 0)
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

    class Many:
        """Descriptors to watch for answers; one that is closed is forgotten."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._poll = self._epoll.poll

        def watch(self, fd: int, *, writing: bool = False) -> None:
            """Report a descriptor once it can be read or, first, written."""
            self._epoll.register(fd, select.EPOLLOUT if writing else select.EPOLLIN)

        def written(self, fd: int) -> None:
            """From now on, report it when it can be read."""
            self._epoll.modify(fd, select.EPOLLIN)

        def forget(self, fd: int) -> None:
            """The descriptor is about to be closed, and that is enough."""

        def poll(self, patience_s: float) -> list[int]:
            """The descriptors to report, after at most `patience_s` seconds."""
            return [fd for fd, _ in self._poll(patience_s, EVENTS_A_POLL)]

        def close(self) -> None:
            """Watch nothing more."""
            self._epoll.close()
