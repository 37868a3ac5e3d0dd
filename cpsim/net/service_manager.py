"""systemd, or another service manager of its protocols: the sockets that it passes, and what it is told.

The protocols are those of sd_listen_fds(3) and sd_notify(3): variables of the environment, and datagrams.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, NamedTuple

from cpsim.clock import SYSTEM_CLOCK
from cpsim.errors import CpsimError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping

    from cpsim.clock import Clock
    from cpsim.system.signals import Signals

FIRST_DESCRIPTOR: Final = 3
STATUS_S: Final = 10.0
"""How often the status is sent if it has changed, in seconds; with a watchdog, as often as that wants a sign."""


class PassedSocket(NamedTuple):
    """A listening socket that the service manager has bound: its FileDescriptorName=, its kind, and itself."""

    name: str
    kind: str
    """`unix` or `tcp`."""
    sock: socket.socket


def passed_sockets(environment: MutableMapping[str, str] = os.environ) -> list[PassedSocket]:
    """Return the sockets that the service manager has passed to this process, in order.

    The variables that name them are taken out of the environment.

    Raises:
        CpsimError: a descriptor is no listening stream socket at a path or a TCP address.
    """
    pid, number, names = (environment.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not number.isdigit():
        return []
    descriptors = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(number))
    named = zip_longest(descriptors, names.split(":")[: len(descriptors)], fillvalue="")
    return [_passed(int(descriptor), name) for descriptor, name in named]


def _passed(descriptor: int, name: str) -> PassedSocket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise CpsimError(f"descriptor {descriptor} ({name!r}) of LISTEN_FDS: {error.strerror}") from error
    sock.set_inheritable(False)
    kind = {socket.AF_UNIX: "unix", socket.AF_INET: "tcp", socket.AF_INET6: "tcp"}.get(sock.family)
    is_path = kind != "unix" or (isinstance(sock.getsockname(), str) and sock.getsockname())
    if sock.type != socket.SOCK_STREAM or kind is None or not is_path:
        raise CpsimError(f"socket {name!r} is no stream socket at a path or a TCP address: give ListenStream=")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise CpsimError(f"socket {name!r} does not listen: give Accept=no, so that one process serves all connections")
    return PassedSocket(name, kind, sock)


def by_kind(passed: Iterable[PassedSocket]) -> dict[str, socket.socket]:
    """Return the sockets of one daemon or server by their kinds.

    Raises:
        CpsimError: two are of one kind.
    """
    found: dict[str, socket.socket] = {}
    for name, kind, sock in passed:
        if kind in found:
            what = "UNIX sockets" if kind == "unix" else "TCP addresses"
            raise CpsimError(f"socket {name!r}: a daemon listens at one path and one TCP address, not at two {what}")
        found[kind] = sock
    return found


def tcp_of(passed: Iterable[PassedSocket]) -> socket.socket | None:
    """Return the one socket of an HTTP server; None if none was passed.

    Raises:
        CpsimError: there are several, or it is a UNIX socket.
    """
    found = list(passed)
    if len(found) > 1 or any(each.kind != "tcp" for each in found):
        raise CpsimError(f"socket {found[0].name!r}: HTTP is served at one TCP address; give one ListenStream=")
    return found[0].sock if found else None


class ServiceManager:
    """What the service manager of this process is told; without one, nothing is sent.

    The variables that name it are taken out of the environment.

    Args:
        environment: with NOTIFY_SOCKET, and with WATCHDOG_USEC if it wants a sign of life.
        clock: gives the time of a reload.

    Attributes:
        interval_s: how often `watch` is due, in seconds; None for never.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ, clock: Clock = SYSTEM_CLOCK) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        pid, watchdog_us = environment.pop("WATCHDOG_PID", ""), environment.pop("WATCHDOG_USEC", "")
        self._clock = clock
        self._status = ""
        self._has_watchdog = pid in {"", str(os.getpid())} and watchdog_us.isdigit() and int(watchdog_us) > 0
        every_s = int(watchdog_us) / 2e6 if self._has_watchdog else STATUS_S
        self.interval_s = every_s if self._address else None

    def wait(
        self,
        signals: Signals,
        read_again: Callable[[], object],
        after_a_turn: Callable[[Callable[[], object]], object],
        status: Callable[[], str],
        timeout_s: float | None = None,
    ) -> int:
        """Report that the process is ready, and what it does, until the signal that ends it.

        Args:
            signals: of the process.
            read_again: called at each SIGHUP.
            after_a_turn: calls a function as soon as each loop of the process has taken a turn.
            status: returns a line for `systemctl status`.
            timeout_s: longest wait, in seconds; None for any.

        Returns:
            As `Signals.wait`.
        """

        def reload() -> None:
            self.tell("RELOADING=1", f"MONOTONIC_USEC={self._clock.monotonic_ns() // 1000}")
            read_again()
            self.tell("READY=1")

        self._status = status()
        self.tell("READY=1", f"STATUS={self._status}")
        return signals.wait(reload, timeout_s, self.interval_s, lambda: self.watch(after_a_turn, status))

    def end(self) -> None:
        """Report that the process ends."""
        self.tell("STOPPING=1", f"STATUS=stopping; {self._status}")

    def watch(self, after_a_turn: Callable[[Callable[[], object]], object], status: Callable[[], str]) -> None:
        """Send the status if it has changed, and have the loops send a sign of life: one that hangs sends none."""
        before, self._status = self._status, status()
        if self._status != before:
            self.tell(f"STATUS={self._status}")
        if self._has_watchdog:
            after_a_turn(lambda: self.tell("WATCHDOG=1"))

    def tell(self, *assignments: str) -> None:
        """Send assignments, such as READY=1; called from any thread. Nobody waits for a manager that is away."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        text = "\n".join(assignment.replace("\n", " ") for assignment in assignments)
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003
            sock.sendto(text.encode(errors="replace"), address)
