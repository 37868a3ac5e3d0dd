"""A `cpsim` whose commands are forks of one process that has imported all of it, for tests of many commands.

A command has the arguments, folder, environment, streams and ignored signals of whoever calls it, is given the signals
that the caller is sent, ends when the caller is killed, and gives its status. Commands of Locust, which wants to be
imported first, and those with modules of their own on `PYTHONPATH` are no forks.
"""

import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

APART = ("load",)
"""Commands that are processes of their own."""
PASSED_ON = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
CALLER = """#!{python} -IS
import json, os, signal, socket, sys
if sys.argv[1:2] and sys.argv[1] in {apart} or os.environ.get("PYTHONPATH") != {path!r}:
    os.execv({program!r}, [{program!r}, *sys.argv[1:]])
ignored = [number for number in {passed_on} if signal.getsignal(number) == signal.SIG_IGN]
asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), ignored]).encode("ascii")
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
socket.send_fds(connection, [len(asked).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(asked)
answers = connection.makefile()
command = int(answers.readline())
for number in set({passed_on}) - set(ignored):
    signal.signal(number, lambda number, _: os.kill(command, number))
status = int(answers.readline())
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@contextmanager
def prepared(folder):
    """Put a program `cpsim` into a folder; its commands are forks while the context lasts."""
    address = str(folder / "cpsim.socket")
    texts = {"python": sys.executable, "program": str(Path(sys.executable).with_name("cpsim")), "address": address}
    others = {"apart": APART, "passed_on": [int(number) for number in PASSED_ON], "path": os.environ.get("PYTHONPATH")}
    caller = folder / "cpsim"
    caller.write_text(CALLER.format(**texts, **others), encoding="utf-8")
    caller.chmod(0o755)
    command = [sys.executable, "-P", __file__, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"listening\n"
        yield
        process.stdin.close()


def serve(listener):
    """Fork a process for each command that is asked for, until standard input ends; return in that process alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while all(key.fileobj is listener for key, _ in selector.select()):
            connection, _ = listener.accept()
            if os.fork() == 0:
                return attend(connection)
            connection.close()
    sys.exit()


def attend(connection):
    """Fork once more, and return what was asked for in that process; watch it in this one, and its caller."""
    length, streams, *_ = socket.recv_fds(connection, 4, 3)
    asked = connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
    ended, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    command = os.fork()
    if command == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)
        for opened in (ended, wake, connection):
            opened.close()
        take(streams)
        return json.loads(asked)
    with suppress(OSError):  # the caller is gone
        connection.sendall(b"%d\n" % command)
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    with selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        selector.register(connection, selectors.EVENT_READ)
        if any(key.fileobj is connection for key, _ in selector.select()):
            with suppress(ProcessLookupError):
                os.killpg(command, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
    with suppress(OSError):
        connection.sendall(b"%d\n" % status)
    os._exit(0)


def take(streams):
    """Make the standard streams anew, of descriptors."""
    for number, (name, stream) in enumerate(zip(("stdin", "stdout", "stderr"), streams, strict=True)):
        os.dup2(stream, number)
        os.close(stream)
        by_line = number == 2 or os.isatty(number)
        setattr(sys, name, os.fdopen(number, "w" if number else "r", 1 if by_line else -1, closefd=False))


def main():
    """Import everything, listen, and be what is asked for."""
    import cpsim

    package = Path(cpsim.__file__).parent
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package.parent).with_suffix("").parts
        if place[1] not in {"load", "__main__"}:
            import_module(".".join(place).removesuffix(".__init__"))
    for library in ("pandas", "duckdb", "pyarrow.parquet", "faker.factory"):
        import_module(library)
    from cpsim.__main__ import main

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(100)
    print("listening", flush=True)
    gc.collect()
    gc.freeze()  # or each command would touch, and so copy, all of it
    arguments, folder, environment, ignored = serve(listener)
    listener.close()
    for number in PASSED_ON:
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    if signal.SIGINT not in ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    sys.argv[:] = ["cpsim", *arguments]
    main()


if __name__ == "__main__":
    main()
