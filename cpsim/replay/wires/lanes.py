"""The wire to several daemons: a lane for each site."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cpsim.replay.wires.one_shot import OneShot

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from numpy import int32

    from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint
    from cpsim.replay.wires.wire import Answer


class Lanes:
    """Wires to several daemons behind one interface: the first byte of a payload is the daemon's index.

    Args:
        endpoints: the daemons, at most 256.
        in_flight: expected commands in flight, in all lanes together.
    """

    def __init__(self, endpoints: Sequence[UnixEndpoint | TcpEndpoint], in_flight: int) -> None:
        first = OneShot(endpoints[0], in_flight)
        self._wires = [first, *(OneShot(endpoint, in_flight, first) for endpoint in endpoints[1:])]
        self.poll = first.poll
        self._wire_of: dict[int, OneShot] = {}

    def reach(self, timeout_s: float) -> None:
        """Connect once to each daemon, and send nothing. Raises OSError."""
        for wire in self._wires:
            wire.reach(timeout_s)

    def send(self, payload: bytes) -> int:
        """See `Wire`."""
        wire = self._wires[payload[0]]
        fd = wire.send(payload[1:])
        self._wire_of[fd] = wire
        return fd

    def receive(self, fd: int) -> Answer | None:
        """See `Wire`."""
        return self._wire_of[fd].receive(fd)

    @property
    def dropped(self) -> int:
        """See `Wire`."""
        return sum(wire.dropped for wire in self._wires)

    def abandon(self, fd: int) -> bool:
        """See `Wire`."""
        return fd in self._wire_of and self._wire_of[fd].abandon(fd)

    def close(self) -> None:
        """See `Wire`."""
        for wire in self._wires:
            wire.close()


def addressed(payloads: Sequence[bytes], lanes: npt.NDArray[int32]) -> list[bytes]:
    """Payloads for `Lanes`: each with its lane's index as the first byte."""
    return [bytes((lane,)) + payload for lane, payload in zip(lanes.tolist(), payloads, strict=True)]
