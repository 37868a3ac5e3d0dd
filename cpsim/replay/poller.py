"""Which descriptors are ready: epoll on Linux, kqueue on macOS, without the cost of `selectors`' bookkeeping."""

from __future__ import annotations

import select
import sys
from typing import Final

EVENTS_A_POLL: Final = 256

if sys.platform == "darwin":

    class Poller:
        """Descriptors to watch for answers; a descriptor that is closed is forgotten."""

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

        def poll(self, patience_s: float) -> list[int]:
            """The descriptors to report, after at most `patience_s` seconds."""
            return [event.ident for event in self._kqueue.control(None, EVENTS_A_POLL, patience_s)]

        def close(self) -> None:
            """Watch nothing more."""
            self._kqueue.close()

else:

    class Poller:
        """Descriptors to watch for answers; a descriptor that is closed is forgotten."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._poll = self._epoll.poll

        def watch(self, fd: int, *, writing: bool = False) -> None:
            """Report a descriptor once it can be read or, first, written."""
            self._epoll.register(fd, select.EPOLLOUT if writing else select.EPOLLIN)

        def written(self, fd: int) -> None:
            """From now on, report it when it can be read."""
            self._epoll.modify(fd, select.EPOLLIN)

        def poll(self, patience_s: float) -> list[int]:
            """The descriptors to report, after at most `patience_s` seconds."""
            return [fd for fd, _ in self._poll(patience_s, EVENTS_A_POLL)]

        def close(self) -> None:
            """Watch nothing more."""
            self._epoll.close()
