"""Answer with hostile replies, and see that whoever asks comes to an end.

    python tests/torture/replies.py --subject courier

A server on a real socket answers each request in one of more than a hundred ways: no HTTP, half of it, without an end,
byte by byte, nested, packed, in other encodings, with statuses and lengths that are none. The client, the daemon's
courier, `cpsim verify`, `cpsim run` and `cpsim report` are sent there. Each has to come to an end, with an error that
says why or without; what the courier delivers to a server that recovers is applied once. The exit status is 0 if so;
each reply for which it is not has a line, which repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

from cpdaemon import Client, CreditPiggyError
from cpdaemon.endpoint import UrlEndpoint
from cpsim.cli import main as command_line
from cpsim.daemon.client import BulkClient
from cpsim.daemon.courier import Courier
from cpsim.daemon.spool import Spool
from cpsim.store.log import Log
from cpsim.testing import ManualClock

TIMEOUT_S = 0.2
GUARD_S = 120
"""Who has not ended by then is stuck."""
HOSTILE = 4
"""Requests of a courier that are answered so, before the server recovers."""
STEPS = 300
"""Attempts and waits within which a courier has to deliver all."""
SLOTS = ["a", "b", "c"]
HOLD, RESET, DRIP = "hold", "reset", "drip"
"""What a server does after a reply: nothing, while the client waits; reset; or send another byte now and then."""


def http(body, head=b"HTTP/1.1 200 OK\r\n"):
    return head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def ok(**fields):
    """A reply of status 200 that says ok, and more."""
    return http(json.dumps({"result": "ok", **fields}).encode())


GOOD = b'{"result": "ok"}'
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(30 * 2**20))
STATUSES = (
    *(b"000", b"1", b"99", b"100", b"101", b"103", b"199", b"201", b"202", b"204", b"205", b"206", b"226", b"299"),
    *(b"300", b"301", b"302", b"304", b"307", b"308", b"400", b"401", b"402", b"403", b"404", b"405", b"407", b"408"),
    *(b"409", b"410", b"411", b"412", b"413", b"414", b"415", b"417", b"418", b"421", b"422", b"423", b"425", b"426"),
    *(b"428", b"429", b"431", b"451", b"500", b"501", b"502", b"503", b"504", b"505", b"507", b"511", b"599", b"600"),
    *(b"999", b"1000", b"-1", b"2OO", b"", b"0x200", b"200.0", "²⁰⁰".encode()),
)
BODIES = {
    "empty": b"",
    "blank": b" \r\n\t",
    "a word": b"OK",
    "a page": b"<h1>It works!</h1>",
    "XML": b'<?xml version="1.0"?><result>ok</result>',
    "no object": b"[]",
    "null": b"null",
    "a number": b"1",
    "a text": b'"ok"',
    "NaN": b'{"result": NaN}',
    "a number without end": b'{"result": "ok", "errors": ' + b"9" * 5_000 + b"}",
    "a large exponent": b'{"result": "ok", "errors": 1e999}',
    "half of JSON": b'{"result": "o',
    "two documents": GOOD + GOOD,
    "a comment": b"/* ok */" + GOOD,
    "JSONP": b"callback(" + GOOD + b")",
    "a name twice": b'{"result": "ok", "result": "error"}',
    "no UTF-8": b'{"result": "ok", "errors": "\xff"}',
    "UTF-16": GOOD.decode().encode("utf-16"),
    "UTF-32": GOOD.decode().encode("utf-32"),
    "a mark": b"\xef\xbb\xbf" + GOOD,
    "NULs": bytes(1_000),
    "half a surrogate": b'{"result": "ok", "errors": "\\ud800"}',
    "nested": b'{"result": "ok", "errors": ' + b"[" * 900 + b"]" * 900 + b"}",
    "nested deeply": b"[" * 100_000,
    "objects in objects": b'{"a":' * 100_000,
    "another result": b'{"result": "maybe"}',
    "a result of another type": b'{"result": ["ok"]}',
    "an error without words": b'{"result": "error"}',
    "errors that are none": b'{"result": "ok", "errors": 5}',
    "an error of nothing": b'{"result": "ok", "errors": [null]}',
    "an error elsewhere": b'{"result": "ok", "errors": [{"class": "alloc", "index": 99, "message": "no"}]}',
    "data that is none": b'{"result": "ok", "data": 5}',
    "slots that are none": b'{"result": "ok", "data": [{}, null, [[]]]}',
    "a long text": json.dumps({"result": "x" * 2_000_000}).encode(),
    "many fields": json.dumps(dict.fromkeys(map(str, range(100_000)))).encode(),
    "a billion laughs": b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>',
}
HEADS = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.9\r\n",
    "a mail server": b"220 mail ESMTP\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "HTTP/0.9": GOOD,
    "HTTP/3.7": b"HTTP/3.7 200 OK\r\n\r\n" + GOOD,
    "ICY": b"ICY 200 OK\r\n\r\n",
    "a lower protocol": b"http/1.1 200 OK\r\nContent-Length: 16\r\n\r\n" + GOOD,
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 16\r\n\r\n" + GOOD,
    "line feeds alone": b"HTTP/1.1 200 OK\nContent-Length: 16\n\n" + GOOD,
    "carriage returns alone": b"HTTP/1.1 200 OK\rContent-Length: 16\r\r" + GOOD,
    "empty lines before": b"\r\n" * 50 + http(GOOD),
    "a NUL in a header": HEAD + b"X: \0\r\nContent-Length: 16\r\n\r\n" + GOOD,
    "letters of no kind in a header": HEAD + b"X\xff\xfe: \xff\r\nContent-Length: 16\r\n\r\n" + GOOD,
    "a header without a name": HEAD + b": nonsense\r\n\r\n",
    "a header without a colon": HEAD + b"nonsense\r\n\r\n",
    "a folded header": HEAD + b"X: a\r\n  b\r\nContent-Length: 16\r\n\r\n" + GOOD,
    "a long header": HEAD + b"X: " + b"y" * 1_000_000 + b"\r\n\r\n",
    "a long line": b"HTTP/1.1 200 " + b"y" * 1_000_000,
    "many headers": HEAD + b"X: y\r\n" * 10_000 + b"\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "a hundred to go on": b"HTTP/1.1 100 Continue\r\n\r\n" * 100 + http(GOOD),
    "a redirection to itself": b"HTTP/1.1 301 Moved\r\nLocation: /api/batch/bulk\r\nContent-Length: 0\r\n\r\n",
    "a redirection elsewhere": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "to be asked later": b"HTTP/1.1 503 No\r\nRetry-After: 99999999999\r\nContent-Length: 0\r\n\r\n",
    "to be asked never": b"HTTP/1.1 429 No\r\nRetry-After: -1\r\nContent-Length: 0\r\n\r\n",
    **{
        f"length {length.decode('latin-1')!r}": HEAD + b"Content-Length: " + length + b"\r\n\r\n" + GOOD
        for length in (
            b"-5",
            b"+16",
            b"16.0",
            b"0x10",
            b"1e1",
            b"",
            b"x",
            b"9" * 30,
            b"16, 16",
            b"16, 17",
            b"16 16",
            b"\xb2",
        )
    },
    "a length too short": HEAD + b"Content-Length: 5\r\n\r\n" + GOOD,
    "a length too long": HEAD + b"Content-Length: 500\r\n\r\n" + GOOD,
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 16\r\n\r\n" + GOOD,
    "a length and chunks": HEAD
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n"
    + GOOD
    + b"\r\n0\r\n\r\n",
    **{
        f"chunks of {size.decode()!r}": CHUNKED + size + b"\r\n" + GOOD + b"\r\n0\r\n\r\n"
        for size in (b"xyz", b"-10", b"10 ", b"0x10", b"f" * 20, b"", b"10;" + b"x" * 20_000, b"7fffffffffffffff")
    },
    "chunks without an end": CHUNKED + b"10\r\n" + GOOD + b"\r\n",
    "chunks that run on": CHUNKED + b"5\r\n" + GOOD + b"\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"10\r\n" + GOOD + b"\r\n0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    "a coding that nobody knows": HEAD + b"Transfer-Encoding: zip\r\n\r\n" + GOOD,
    "packed": http(gzip.compress(GOOD), HEAD + b"Content-Encoding: gzip\r\n"),
    "packed, without an end": http(BOMB, HEAD + b"Content-Encoding: gzip\r\n"),
    "packed, and not": http(GOOD, HEAD + b"Content-Encoding: br\r\n"),
    "a body too long": HEAD + b"Content-Length: 20000000\r\n\r\n" + b"x" * 20_000_000,
    "two answers": http(GOOD)[:-16].replace(b"close", b"keep-alive") + GOOD + http(b'{"result": "error"}'),
    "an answer, and rubbish": http(GOOD).replace(b"close", b"keep-alive") + b"\0\xff" * 500,
}
ENDS = {
    "nothing": (b"", None),
    "nothing, and a reset": (b"", RESET),
    "silence": (b"", HOLD),
    "half a status line": (b"HTTP/1.1 20", None),
    "half a status line, and silence": (b"HTTP/1.1 20", HOLD),
    "half a head": (HEAD + b"Content-Le", None),
    "half a head, and silence": (HEAD + b"Content-Le", HOLD),
    "half a head, and a reset": (HEAD + b"Content-Le", RESET),
    "half a body": (http(GOOD)[:-3], None),
    "half a body, and silence": (http(GOOD)[:-3], HOLD),
    "half a body, and a reset": (http(GOOD)[:-3], RESET),
    "a head that drips": (HEAD + b"X: ", DRIP),
    "a body that drips": (HEAD + b"Content-Length: 1000000\r\n\r\n", DRIP),
    "a body without an end that drips": (HEAD + b"\r\n", DRIP),
    "chunks that drip": (CHUNKED + b"fffff\r\n", DRIP),
    "a good reply, and silence": (http(GOOD).replace(b"Connection: close\r\n", b""), HOLD),
    "a good reply, and a reset": (http(GOOD), RESET),
}
REPLIES = {
    **{
        f"status {status.decode(errors='replace')!r}": (http(GOOD, b"HTTP/1.1 %b Hm\r\n" % status), None)
        for status in STATUSES
    },
    **{f"a body: {name}": (http(body), None) for name, body in BODIES.items()},
    **{f"a refusal: {name}": (http(body, b"HTTP/1.1 500 No\r\n"), None) for name, body in BODIES.items()},
    **{name: (reply, None) for name, reply in HEADS.items()},
    **ENDS,
}
"""Replies to a request over HTTP: the bytes, and what the server does then."""
PATIENT = {name: reply for name, reply in REPLIES.items() if reply[1] in {None, RESET} or name == "a head that drips"}
"""Those for a command that waits a minute for each reply."""
FRAMES = {
    **{
        repr(reply): (reply, None)
        for reply in (b"", b"O", b"E", b"ok", b"er", b"KO", b"OKOK", b"OK\n", b"\0\0", b"\xff\xfe")
    },
    "UTF-16": ("OK".encode("utf-16"), None),
    "HTTP": (http(GOOD), None),
    "a megabyte": (b"OK" * 500_000, None),
    "silence": (b"", HOLD),
    "half, and silence": (b"O", HOLD),
    "half, and a reset": (b"O", RESET),
    "a reset": (b"", RESET),
    "OK, and silence": (b"OK", HOLD),
    "no answer that drips": (b"\r", DRIP),
}
"""Replies of a daemon."""


class Stuck(BaseException):
    """Who asked has not come to an end."""


class Ledger:
    """What a server that knows batch ids has applied; it answers nonsense as often as it is told, and then well."""

    def __init__(self, probed=(), posted=(), given_up=()):
        self.nonsense = {"probe": list(probed), "post": list(posted), "give up": list(given_up)}
        self.applied = Counter()
        self.seen = set()
        self.refused = set()

    def answer(self, batch_id, document):
        """The reply to one request, with nonsense after it has been done."""
        slots = [arguments["slot"] for arguments in document.get("alloc", [])]
        what = "probe" if batch_id == "probe" else "post" if slots else "give up" if batch_id else ""
        reply = ok() if batch_id is None else ok(batch=batch_id)
        if what == "give up":
            reply = ok(batch=batch_id, applied=batch_id in self.seen)
            self.refused |= {batch_id} - self.seen
        elif what == "post" and batch_id in self.refused:
            return http(b'{"result":"error","message":"given up"}', b"HTTP/1.1 409 Conflict\r\n")
        elif what == "post" and batch_id not in self.seen:
            self.applied.update(slots)
            self.seen |= {batch_id} - {None}
        nonsense = self.nonsense.get(what)
        return nonsense.pop(0) if nonsense else reply


class HostileServer:
    """Answers every connection in the way that is set; a context manager, reached at `address`."""

    def __init__(self):
        self.answer = lambda request: (b"", None)
        """Called with what was received; returns the reply and what to do then."""
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1_000)
        self.address = self._listening.getsockname()
        self._leaving = threading.Event()
        self._threads = []

    def __enter__(self):
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._leaving.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        for thread in self._threads:
            thread.join()

    def _accept(self):
        while not self._leaving.is_set():
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock):
        with sock, contextlib.suppress(OSError):
            sock.settimeout(GUARD_S)
            request = _request(sock)
            if not request:
                return
            reply, then = self.answer(request)
            sock.sendall(reply)
            if then == RESET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif then is not None:
                sock.settimeout(TIMEOUT_S / 5)
                while not self._leaving.is_set():
                    with contextlib.suppress(TimeoutError):
                        if not sock.recv(65_536):
                            return
                    if then == DRIP:
                        sock.sendall(b"x")


def _request(sock):
    """What a client sends up to the end of its request, or of its frame."""
    received = b""
    while piece := sock.recv(65_536):
        received += piece
        head, end, body = received.partition(b"\r\n\r\n")
        if not head.startswith((b"GET ", b"POST ", b"PUT ", b"DELETE ", b"HEAD ", b"OPTIONS ", b"PATCH ")):
            return received
        lengths = [
            line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
        ]
        if end and len(body) >= int(lengths[0] if lengths else 0):
            return received
    return received


# Who is answered so. Each returns what is wrong, or None.


def ask_client(server, reply, _):
    server.answer = lambda _: reply
    url = UrlEndpoint("http", *server.address, "/api")
    with Client(url, ("demo", "secret"), TIMEOUT_S) as client, contextlib.suppress(CreditPiggyError):
        client.alloc("s", credits=1)
    with Client(url, ("demo", "secret"), TIMEOUT_S) as client:
        client.send_many([])


def ask_client_of_daemon(server, reply, _):
    server.answer = lambda _: reply
    with Client("{}:{}".format(*server.address), timeout_s=TIMEOUT_S) as client, contextlib.suppress(CreditPiggyError):
        client.alloc("s", credits=1)


def ask_courier(server, reply, folder):
    """The server is hostile to some requests, each of which it has performed, and then recovers."""
    ledger, left, lock = Ledger(), [HOSTILE], threading.Lock()

    def answer(request):
        head, _, body = request.partition(b"\r\n\r\n")
        names = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.decode().split("\r\n"))
        }
        with lock:
            good = ledger.answer(names.get("creditpiggy-batch"), json.loads(body))
            left[0] -= 1
            return reply if left[0] >= 0 else (good, None)

    server.answer = answer
    clock = ManualClock()
    spool = Spool(folder / "spool", clock=clock, open_log=partial(Log, threaded=False))
    client = BulkClient(UrlEndpoint("http", *server.address, "/api"), ("demo", "secret"), TIMEOUT_S)
    try:
        last = spool.put([f"alloc,slot={slot}" for slot in SLOTS], {}, lambda _: None)
        spool.wait()
        spool.release(last)
        courier = Courier(spool, client, 0.0, clock=clock, chance=random.Random(1))
        for _ in range(STEPS):
            if not spool.pending:
                break
            clock.advance(courier.step() or 0.0)
        spool.wait()
        if spool.pending:
            return f"{spool.pending} commands are still there after {STEPS} steps"
    finally:
        client.close()
        spool.close()
        for path in folder.glob("spool*"):
            path.unlink()
    twice = [slot for slot, count in ledger.applied.items() if count > 1]
    return f"applied twice: {', '.join(twice)}" if twice else None


def ask_command(arguments, server, reply, folder):
    """Run the command line in this process; it has to end with a status of its own, and without a traceback."""
    server.answer = lambda _: reply
    (folder / "secret").write_text("secret", encoding="utf-8")
    out, err = io.StringIO(), io.StringIO()
    url = "http://{}:{}/api".format(*server.address)
    place = {
        "URL": url,
        "DAEMON": "{}:{}".format(*server.address),
        "OUTPUT": f"{folder}/out",
        "SECRET": f"{folder}/secret",
    }
    sys.argv = ["cpsim", *(place.get(word, word) for word in arguments)]
    status = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command_line()
        except SystemExit as exited:
            status = exited.code
        finally:
            for path in folder.glob("out*/*"):
                path.unlink()
            for path in folder.glob("out*"):
                path.rmdir()
    if status not in {0, 1, 2, 64} or "Traceback" in err.getvalue():
        return f"exit status {status}: {' '.join(err.getvalue().split())[-300:]}"
    return None


ACCOUNT = ("--project", "demo", "--secret-file", "SECRET")
SOME = ("-k", "ALLOC-1", "-k", "HTTP-1", "--timeout", str(TIMEOUT_S))
FEW = ("smoke", "--set", "arrivals.jobs=2", "--timeout", str(TIMEOUT_S), "--output", "OUTPUT", "--seed", "1")
SUBJECTS = {
    "client": (ask_client, REPLIES),
    "client of a daemon": (ask_client_of_daemon, FRAMES),
    "courier": (ask_courier, REPLIES),
    "verify": (partial(ask_command, ("verify", "URL", *ACCOUNT, *SOME)), REPLIES),
    "verify of a daemon": (partial(ask_command, ("verify", "DAEMON", "-k", "WIRE-1", "--timeout", "0.2")), FRAMES),
    "run": (partial(ask_command, ("run", *FEW, "--target", "URL", *ACCOUNT)), REPLIES),
    "run at a daemon": (partial(ask_command, ("run", *FEW, "--target", "DAEMON")), FRAMES),
    "report": (partial(ask_command, ("report", "URL", "summary")), PATIENT),
}
"""Who is answered, and the replies."""


def attempt(server, subject, name, folder):
    """Answer a subject in one way; returns what is wrong, or None."""
    ask, replies = SUBJECTS[subject]

    is_stuck = []

    def stuck(*_):
        is_stuck.append(True)  # pytest, in the verifier, reports what is raised, and goes on
        raise Stuck

    before = signal.signal(signal.SIGALRM, stuck)
    signal.setitimer(signal.ITIMER_REAL, GUARD_S)
    try:
        wrong = ask(server, replies[name], folder)
    except Stuck:
        wrong = None
    except Exception as error:  # noqa: BLE001 - none should come
        wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return f"stuck after {GUARD_S} s" if is_stuck else wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--subject", choices=SUBJECTS, help="only this one")
    parser.add_argument("--reply", help="only this reply")
    given = parser.parse_args()
    counts, failed = Counter(), 0
    with tempfile.TemporaryDirectory(dir="/tmp") as name, HostileServer() as server:
        os.chdir(name)
        for subject in [given.subject] if given.subject else SUBJECTS:
            for reply in [given.reply] if given.reply else SUBJECTS[subject][1]:
                wrong = attempt(server, subject, reply, Path(name))
                counts[subject] += 1
                if wrong is not None:
                    failed += 1
                    print(
                        f"python tests/torture/replies.py --subject {subject!r} --reply {reply!r}  # {wrong}",
                        flush=True,
                    )
        os.chdir("/")
    print(json.dumps({"kinds": len(REPLIES) + len(FRAMES), "failed": failed, **counts}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
