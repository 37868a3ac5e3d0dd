"""What the machine allows: a server and a client in C, which do nothing but answer and nothing but ask."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SOURCES = Path(__file__).parent / "limit"
ROUND_S = 1.0


class Limit:
    """The programs, built into a folder.

    Raises:
        FileNotFoundError: this machine has no C compiler.
    """

    def __init__(self, folder: Path) -> None:
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if compiler is None:
            raise FileNotFoundError("there is no C compiler (cc, gcc or clang)")
        self._folder = folder / "limit"
        self._folder.mkdir()
        for name in ("server", "client", "http"):
            command = [compiler, "-O2", "-pthread", "-o", self._folder / name, SOURCES / f"{name}.c"]
            subprocess.run(command, check=True)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The path of a UNIX socket at which the server answers, while the context lasts."""
        path = self._folder / "limit.sock"
        with subprocess.Popen([self._folder / "server", path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield str(path)
            finally:
                process.terminate()
        path.unlink()

    @contextmanager
    def serving_tcp(self) -> Iterator[str]:
        """The HOST:PORT at which the server answers, while the context lasts."""
        with subprocess.Popen([self._folder / "server"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield f"127.0.0.1:{process.stdout.readline().strip()}"
            finally:
                process.terminate()

    @contextmanager
    def serving_http(self) -> Iterator[str]:
        """The URL at which a server answers over HTTP, while the context lasts."""
        with subprocess.Popen([self._folder / "http"], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield f"http://127.0.0.1:{process.stdout.readline().strip()}/api"
            finally:
                process.terminate()

    def oneshot(self, address: str, threads: int, *, one_core: bool = False) -> float:
        """One-shot commands a second that the client gets answered at a path or a HOST:PORT.

        With `one_core`, all its threads share a core, as a sender with one thread has it.
        """
        port = address.removeprefix("127.0.0.1:")
        return self._ask("oneshot" if port == address else "tcp", port, str(ROUND_S), threads, one_core=one_core)

    def http(self, url: str, requests: Sequence[bytes], threads: int) -> float:
        """Requests a second that the client gets answered on kept connections, each request once."""
        file = self._folder / "requests"
        file.write_bytes(b"".join(b"%d\n%s" % (len(request), request) for request in requests))
        return self._ask("http", url.split(":")[2].split("/", maxsplit=1)[0], str(file), threads)

    def _ask(self, kind: str, where: str, what: str, threads: int, *, one_core: bool = False) -> float:
        command = [str(self._folder / "client"), kind, where, what, str(threads)]
        if one_core:
            command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), *command]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        answered, _, elapsed_s = done.stdout.split()
        return int(answered) / float(elapsed_s)
