"""A process of its own that follows a replay from the journals that the replay writes.

The process that replays flushes its journals once a second, and does little more. The other has low priority.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

from cpsim.clock import SYSTEM_CLOCK
from cpsim.system.mapped import mapped, writing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from cpsim.clock import Clock
    from cpsim.evidence.journal import Journal

FLUSH_S: Final = 1.0
ALIGNED: Final = 64
"""Arrays that are handed over begin at multiples of so many bytes."""
PLACE: Final = struct.Struct("<q")
START: Final = "import os; os.nice(10); from {} import main; main()"


class SupportsFileno(Protocol):
    """A file, or what has one."""

    def fileno(self) -> int:
        """The descriptor of the file."""


class Follower:
    """The other process, seen from the one that replays; a context manager that ends it.

    Args:
        module: whose `main` it runs. Its arguments are descriptors, that of its `Channel` last; `handed` returns what
            it is handed.
        clock: by which journals are flushed.
        answers: whether it answers, in lines of JSON on standard output.
    """

    def __init__(self, module: str, clock: Clock = SYSTEM_CLOCK, *, answers: bool = False) -> None:
        self._module, self._answers = module, answers
        self._now_s = clock.monotonic
        self._control, self._theirs = socket.socketpair()
        self._process: subprocess.Popen[bytes] | None = None
        self._told: tuple[object, ...] = ()
        self._flushed_s = -math.inf
        self._heard = b""

    def start(self, handed: object, fds: Sequence[int] = ()) -> None:
        """Start the process, with what it is handed and descriptors.

        Raises:
            NoRoom: what it is handed cannot be written to a temporary file.
        """
        fds = [*fds, self._theirs.fileno()]
        with tempfile.TemporaryFile() as file:
            with writing():
                _hand_over(handed, file)
            self._process = subprocess.Popen(  # noqa: S603 - this Python
                [sys.executable, "-P", "-c", START.format(self._module), *map(str, fds)],
                stdin=file,
                stdout=subprocess.PIPE if self._answers else None,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C ends the replay, which is followed until all is judged
            )
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)
        self._theirs.close()

    @property
    def is_started(self) -> bool:
        """Whether the process was started."""
        return self._process is not None

    def follow(self, journals: Sequence[SupportsFileno]) -> None:
        """Have it follow the files of journals, one for each share of the slots."""
        for place, journal in enumerate(journals):
            self._send({"journal": place, "of": len(journals)}, [journal.fileno()])

    def flush_journals(self, journals: Sequence[Journal], **known: object) -> None:
        """Write what journals hold to their files, and tell what is not in them, at most once a second."""
        now_s = self._now_s()
        if now_s - self._flushed_s < FLUSH_S:
            return
        self._flushed_s = now_s
        for journal in journals:
            journal.flush()
        self.tell_known([journal.errors for journal in journals], **known)

    def tell_known(self, errors: Sequence[Sequence[str]], **known: object) -> None:
        """Tell the texts of each journal's errors and what else is known, if any of it is new."""
        told = (known, *map(len, errors))
        if told != self._told:
            self._told = told
            self._send({"errors": [list(texts) for texts in errors], **known})

    def answers(self) -> Iterator[dict[str, Any]]:
        """What it has answered since the last time.

        Raises:
            EOFError: it has ended.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            try:
                data = os.read(self._process.stdout.fileno(), 65_536)
            except BlockingIOError:
                return
            if not data:
                raise EOFError
            *lines, self._heard = (self._heard + data).split(b"\n")
            yield from map(json.loads, lines)

    def _send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        with suppress(OSError):  # the process has ended: the run goes on without it
            socket.send_fds(self._control, [json.dumps(message).encode() + b"\n"], descriptors)

    def close(self) -> None:
        """End the process."""
        self._control.close()
        self._theirs.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _hand_over(handed: object, file: IO[bytes]) -> None:
    """Write an object to a file: its arrays, then all else and where they are, and last the place of that."""
    spans = []

    def write(buffer: pickle.PickleBuffer) -> None:
        begin = file.tell()
        with buffer.raw() as content:
            file.write(content)
        spans.append((begin, file.tell()))
        file.write(bytes(-file.tell() % ALIGNED))

    document = pickle.dumps(handed, 5, buffer_callback=write)
    place = file.tell()
    file.write(pickle.dumps((document, spans)) + PLACE.pack(place))
    file.flush()


def handed() -> Any:  # noqa: ANN401 - as it was given
    """What this process was handed on standard input; its arrays take memory only where they are read."""
    content = memoryview(mapped(sys.stdin.buffer))
    (place,) = PLACE.unpack(content[-PLACE.size :])
    document, spans = pickle.loads(content[place : -PLACE.size])  # noqa: S301 - from the process that started this one
    return pickle.loads(document, buffers=[content[begin:end] for begin, end in spans])  # noqa: S301 - likewise


class Channel:
    """What the process that replays tells, seen from the one that follows.

    Args:
        descriptor: of the channel.
    """

    def __init__(self, descriptor: int) -> None:
        self.sock = socket.socket(fileno=descriptor)
        self.sock.settimeout(None)  # gevent's do not block
        self._received = b""
        self._descriptors: list[int] = []

    def receive(self) -> list[dict[str, Any]]:
        """Wait for messages; one about a journal has its `descriptor`.

        Raises:
            EOFError: the process that replays has ended.
        """
        data, fds, _, _ = socket.recv_fds(self.sock, 65_536, 1)
        if not data:
            raise EOFError
        *lines, self._received = (self._received + data).split(b"\n")
        self._descriptors += fds
        messages: list[dict[str, Any]] = [json.loads(line) for line in lines]
        for message in messages:
            if "journal" in message:
                message["descriptor"] = self._descriptors.pop(0)
        return messages
