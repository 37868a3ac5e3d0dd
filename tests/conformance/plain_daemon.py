"""A daemon as somebody writes it from docs/protocol.md alone, with none of cpsim's code.

It is right as it is, and in each of `SAME`, and wrong in one way in each fault of `planted_daemons.py`.
What is in doubt, because its reply got lost, it does not send again, for counters would double.
"""

import asyncio
import hashlib
import json
import threading
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException

PROJECT, SECRET = "Site", "hush"
ORDER = ["alloc", "counters", "meta", "discard", "claim"]
QUIET_S = 0.06
LONGEST_FRAME = 1500


class Malformed(Exception):
    pass


class PlainDaemon:
    """Takes frames at a port of its own, and forwards to another; what a subclass overrides makes it another daemon."""

    flush_s = 0.02
    timeout_s = 60.0
    backlog = 64
    reads_on = True
    slowness_s = 0.0

    def __init__(self, port):
        self.port = port
        self.queue, self.changed, self.ended = [], threading.Condition(), False
        self.taken = 0

    # frames

    async def meet(self, reader, writer):
        try:
            frame = await self.read(reader)
            reply = await self.reply_to(frame, reader)
            if self.slowness_s:
                await asyncio.sleep(self.slowness_s)
            await self.say(writer, reply)
        except OSError:
            pass
        finally:
            writer.close()

    async def read(self, reader):
        frame = await reader.read(4096)
        while self.reads_on and frame and not frame.endswith(b"\n") and len(frame) <= LONGEST_FRAME:
            try:
                more = await asyncio.wait_for(reader.read(4096), QUIET_S)
            except TimeoutError:
                break
            if not more:
                break
            frame += more
        return frame

    async def reply_to(self, frame, reader):
        try:
            self.take(*self.parse(frame))
        except (Malformed, UnicodeDecodeError):
            return b"ER"
        return b"OK"

    async def say(self, writer, reply):
        writer.write(reply)

    def parse(self, frame):
        if len(frame.strip()) > LONGEST_FRAME:
            raise Malformed
        text = self.strip(frame.decode())
        kind, *pairs = self.split(text)
        kind = kind.lower()
        if kind not in ORDER or not text.isprintable():
            raise Malformed
        return kind, self.checked(kind, [self.pair(pair) for pair in pairs])

    def strip(self, text):
        return text.strip()

    def split(self, text):
        return text.split(",")

    def pair(self, pair):
        name, equals, value = pair.partition("=")
        if not name or not equals or "=" in value:
            raise Malformed
        return name, value

    def checked(self, kind, pairs):
        given = dict(pairs)
        if len(given) < len(pairs) or not given.get("slot") or (kind == "claim" and not given.get("machine")):
            raise Malformed
        return given

    def take(self, kind, given):
        with self.changed:
            self.taken += 1
            self.keep(kind, given)
            self.changed.notify()

    def keep(self, kind, given):
        self.queue.append((kind, given))

    # batches

    def deliver(self):
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.queue or self.ended)
                if self.ended:
                    return
                self.changed.wait_for(lambda: self.ended, self.flush_s)
            while not self.ended and (batch := self.next_batch()):
                self.send(batch)

    def next_batch(self):
        """What may go in one bulk, in which a server applies one kind after the other."""
        with self.changed:
            ranks, size = {}, 0
            for kind, given in self.queue:
                rank = ORDER.index(kind)
                if ranks.get(given["slot"], 0) > rank:
                    break
                ranks[given["slot"]] = rank
                size += 1
            batch, self.queue[:size] = self.queue[:size], []
            return batch

    def send(self, batch):
        pause_s = 0.05
        while not self.ended:
            try:
                status, body = self.post(batch)
            except ConnectionRefusedError:
                done = self.after_refused(batch)
            except (OSError, HTTPException):
                done = self.after_lost(batch)
            else:
                done = self.after(batch, status, body)
            if done:
                return
            with self.changed:
                self.changed.wait_for(lambda: self.ended, pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def after_refused(self, batch):
        return False

    def after_lost(self, batch):
        return True

    def after(self, batch, status, body):
        try:
            if status == 200 and json.loads(body)["result"] == "ok":
                return True
        except (ValueError, KeyError, TypeError):
            return False
        if status == 400 and len(batch) > 1:
            for part in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self.send(part)
            return True
        return False

    def post(self, batch):
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)) as connection:
            self.request(connection, batch)
            reply = connection.getresponse()
            return reply.status, reply.read()

    def request(self, connection, batch):
        body = self.encode(batch)
        connection.request("POST", "/api/batch/bulk", body, {"Authorization": self.token(body)})

    def document(self, batch):
        return {kind: [given for each, given in batch if each == kind] for kind in {kind for kind, _ in batch}}

    def encode(self, batch):
        return json.dumps(self.document(batch)).encode()

    def token(self, signed):
        return f"sha-256,{PROJECT},{hashlib.sha256(signed + SECRET.encode()).hexdigest()}"

    # life

    async def serve(self, started):
        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self.meet, "127.0.0.1", 0, backlog=self.backlog)
        self.address = server.sockets[0].getsockname()[1]
        started.set()
        await self.end.wait()
        server.close()


@contextmanager
def running(daemon):
    """Runs a daemon; yields its port."""
    started = threading.Event()
    threads = [
        threading.Thread(target=lambda: asyncio.run(daemon.serve(started))),
        threading.Thread(target=daemon.deliver),
    ]
    for thread in threads:
        thread.start()
    started.wait()
    try:
        yield daemon.address
    finally:
        with daemon.changed:
            daemon.ended = True
            daemon.changed.notify_all()
        daemon.loop.call_soon_threadsafe(daemon.end.set)
        for thread in threads:
            thread.join()


# daemons that say the same otherwise


class Http10(PlainDaemon):
    """HTTP/1.0, header names in capitals, and the algorithm and project in another case."""

    def request(self, connection, batch):
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"
        body = self.encode(batch)
        connection.request("POST", "/api/batch/bulk.json", body, {"AUTHORIZATION": self.token(body).upper()})


class Chunks(PlainDaemon):
    """A body in chunks, without a length."""

    def request(self, connection, batch):
        body = self.encode(batch)
        pieces = (body[:7], body[7:])
        headers = {"authorization": self.token(body)}
        connection.request("POST", "/api/batch/bulk", iter(pieces), headers, encode_chunked=True)


class Layout(PlainDaemon):
    """JSON of another layout: indented, names backwards, not in ASCII, every class there, numbers as numbers."""

    def encode(self, batch):
        document = {kind: [] for kind in reversed(ORDER)}
        for kind, given in batch:
            whole = {"credits", "min", "max", "expire"} if kind != "counters" else given.keys() - {"slot"}
            values = {
                name: self.value(value) if kind != "meta" and name in whole else value for name, value in given.items()
            }
            document[kind].append(dict(reversed(values.items())))
        return json.dumps(document, indent=2, ensure_ascii=False).encode()

    @staticmethod
    def value(text):
        return int(text) if text.removeprefix("-").isdecimal() and str(int(text)) == text else text


class Singles(PlainDaemon):
    """Each command by itself; one that is refused is done."""

    def next_batch(self):
        with self.changed:
            batch, self.queue[:1] = self.queue[:1], []
            return batch

    def request(self, connection, batch):
        ((kind, given),) = batch
        body = json.dumps(given).encode()
        connection.request("POST", f"/api/batch/{kind}", body, {"Authorization": self.token(body)})

    def after(self, batch, status, body):
        return status == 500 or super().after(batch, status, body)


class Slow(PlainDaemon):
    """Replies after 50 ms, and in two pieces."""

    slowness_s = 0.05

    async def say(self, writer, reply):
        writer.write(reply[:1])
        await writer.drain()
        await asyncio.sleep(0.005)
        writer.write(reply[1:])


class ShortQueue(PlainDaemon):
    """A listen queue of five."""

    backlog = 5


class Clocks(PlainDaemon):
    """Says OK a millisecond after it has handed the command on."""

    flush_s = 0.0
    slowness_s = 0.001


SAME = (Http10, Chunks, Layout, Singles, Slow, ShortQueue, Clocks)
