"""A CreditPiggy that shares no code with cpsim: a daemon and a server as somebody might write them from the document.

It has no control API, knows no batch ids, has message texts of its own, answers in HTTP/1.0, and its bulk errors do not
say which command they are for. Run as a program it prints its addresses, a line each, and ends with its input. An
argument makes it wrong in one way; `BUGS` lists them.
"""
# ruff: noqa: C901, PLR0911, PLR0912, SIM905 - it is written as a stranger would, with a branch for each bug

import asyncio
import hashlib
import json
import sys
import threading
from collections import defaultdict
from contextlib import suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from urllib.parse import parse_qsl, unquote

PROJECTS = {"alpha": "first secret", "beta": "second secret"}
ORDER = ["alloc", "counters", "meta", "discard", "claim"]
HASHES = {"sha-1": hashlib.sha1, "sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
QUIET_S = 0.06
BUGS = """
    keeps-newline reply-newline stays-open case-sensitive reads-once reply-twice knows-all-commands needs-no-slot
    needs-no-machine one-at-a-time waits-for-newline drops-some strips-nothing lower-case-ids swallows-er
    delivers-malformed checks-numbers short-frames
    one-project lists-everything lists-all-projects bulk-in-document-order bulk-stops bulk-hides-errors
    bulk-refuses-unknown refuses-with-200 refuses-with-400 realloc realloc-discarded reclaim-settled any-slot
    any-secret any-body reserialises one-algorithm case-sensitive-token unauthorised-is-400 unsigned-is-401
    auth-anywhere applies-unsigned no-get no-text no-jsonp suffix-ignored ascii-only min-above-max negative
    takes-any-number heartbeat-signed slots-bare
""".split()
BUG = sys.argv[1] if len(sys.argv) > 1 and __name__ == "__main__" else ""


class No(Exception):
    def __init__(self, status, said):
        super().__init__(said)
        self.status = status


class Books:
    def __init__(self):
        self.lock = threading.Lock()
        self.slots = defaultdict(dict)

    def do(self, project, command, given):
        if BUG == "one-project":
            project = ""
        with self.lock:
            return getattr(self, command)(self.slots[project], given)

    @staticmethod
    def whole(given, name, least=0):
        if name not in given:
            return None
        text = str(given[name])
        if BUG == "takes-any-number":
            return 1
        if BUG == "negative" and text.startswith("-"):
            return 0
        if not text.removeprefix("-").isdecimal() or isinstance(given[name], bool) or int(text) < least:
            raise No(500, f"what is {name} {text}?")
        return int(text)

    @staticmethod
    def need(given, name):
        if not isinstance(given.get(name), str) or not given[name]:
            raise No(500, f"say the {name}")
        return given[name]

    def open(self, slots, given):
        slot = slots.get(self.need(given, "slot"))
        if slot is None and BUG == "any-slot":
            slot = slots[given["slot"]] = {"state": "new", "counters": {}, "meta": {}}
        if slot is None:
            raise No(500, "never heard of that one")
        if slot["state"] != "new" and BUG != "reclaim-settled":
            raise No(500, "too late")
        return slot

    def alloc(self, slots, given):
        name = self.need(given, "slot")
        terms = {key: self.whole(given, key) for key in ("credits", "min", "max")}
        terms["expire"] = self.whole(given, "expire", 1)
        low, high = terms["min"], terms["max"]
        if low is not None and high is not None and low > high and BUG != "min-above-max":
            raise No(500, "that is no range")
        known = slots.get(name)
        if known and BUG != "realloc" and not (BUG == "realloc-discarded" and known["state"] == "gone"):
            raise No(500, "had that one before")
        slots[name] = {"state": "new", "counters": {}, "meta": {}, **terms}

    def counters(self, slots, given):
        slot = self.open(slots, given)
        values = {key: self.whole(given, key, -(10**18)) for key in given if key != "slot"}
        if not values:
            raise No(500, "count what?")
        for key, value in values.items():
            slot["counters"][key] = slot["counters"].get(key, 0) + value

    def meta(self, slots, given):
        slot = self.open(slots, given)
        if len(given) < 2:
            raise No(500, "note what?")
        slot["meta"].update(given)

    def discard(self, slots, given):
        self.open(slots, given)["state"] = "gone"

    def claim(self, slots, given):
        slot = self.open(slots, given)
        self.need(given, "machine")
        if slot.get("credits") is None:
            self.whole(given, "credits")
        slot["state"] = "paid"

    def outstanding(self, project):
        if BUG == "one-project":
            project = ""
        with self.lock:
            found = [self.slots[project]] if BUG != "lists-all-projects" else list(self.slots.values())
            every = BUG == "lists-everything"
            return [name for slots in found for name, slot in slots.items() if every or slot["state"] == "new"]


BOOKS = Books()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.serve()

    def do_POST(self):
        self.serve()

    def serve(self):
        path, _, self.query = self.path.partition("?")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/cp/api/heartbeat":
            if BUG == "heartbeat-signed" and "Authorization" not in self.headers:
                return self.say(400, "sign it", "text/plain")
            return self.say(200, "OK", "text/plain")
        place, _, suffix = path.removeprefix("/cp/api/batch/").partition(".")
        if not path.startswith("/cp/api/batch/") or place not in {*ORDER, "bulk", "slots"}:
            return self.say(404, "nothing here", "text/plain")
        if suffix not in {"", "json", "text", "jsonp"} and BUG != "suffix-ignored":
            return self.say(500, f"Unknown API protocol '{suffix}' requested", "text/plain")
        if (BUG == "no-text" and suffix == "text") or (BUG == "no-jsonp" and suffix == "jsonp"):
            suffix = ""
        callback = dict(parse_qsl(self.query)).get("callback", "jsonp_callback")
        try:
            status, answer = 200, {"result": "ok", **self.act(place, suffix)}
        except No as no:
            status, answer = no.status, {"result": "error", "message": str(no)}
            if status == 500:
                status = {"refuses-with-200": 200, "refuses-with-400": 400}.get(BUG, 500)
        if suffix == "text":
            lines = [f"{key}: {value}" for key, value in answer.items() if key != "data"]
            if "data" in answer:
                lines = answer["data"]
            return self.say(status, "\n".join(lines if status == 200 else ["ERROR", answer["message"]]), "text/plain")
        if suffix == "jsonp":
            return self.say(status, f"{callback}({json.dumps(answer)})", "text/javascript")
        return self.say(status, json.dumps(answer.get("data", answer) if BUG == "slots-bare" else answer), "text/json")

    def say(self, status, text, kind):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(data)

    def act(self, place, suffix):
        project, signed = self.signer()
        if place == "slots":
            return {"data": BOOKS.outstanding(project)}
        given = self.given(signed, suffix)
        if place != "bulk":
            BOOKS.do(project, place, given)
            return {}
        errors = []
        order = list(given) if BUG == "bulk-in-document-order" else [*ORDER, *(set(given) - set(ORDER))]
        for command in order:
            if command not in ORDER and BUG == "bulk-refuses-unknown":
                raise No(500, "never heard of that class")
            if command not in ORDER:
                errors.append({"message": f"what is {command}?", "code": 500})
                continue
            for arguments in given.get(command, []):
                try:
                    BOOKS.do(project, command, arguments)
                except No as no:
                    if BUG == "bulk-stops":
                        raise
                    errors.append({"message": str(no), "code": 500})
        return {"errors": errors} if errors and BUG != "bulk-hides-errors" else {}

    def signer(self):
        if self.command == "GET":
            if BUG == "no-get":
                raise No(400, "POST it")
            head, found, token = self.query.rpartition("auth=")
            if BUG == "auth-anywhere":
                token = token.partition("&")[0]
            if not found or (head and not head.endswith("&")) or "&" in token:
                raise No(400, "auth= comes last")
            token, signed = unquote(token), head[:-1].encode()
        else:
            token, signed = self.headers.get("Authorization"), self.body
            if token is None and BUG == "applies-unsigned":
                return "alpha", signed
            if token is None:
                raise No(401 if BUG == "unsigned-is-401" else 400, "sign it")
        parts = (token if BUG == "case-sensitive-token" else token.lower()).split(",")
        if len(parts) != 3 or parts[0] not in (["sha-256"] if BUG == "one-algorithm" else HASHES):
            raise No(400, "that is no signature")
        secret = PROJECTS.get(parts[1])
        if BUG == "reserialises" and self.command == "POST" and signed:
            with suppress(ValueError):
                signed = json.dumps(json.loads(signed), ensure_ascii=False, separators=(",", ":")).encode()
        if BUG == "any-body":
            return parts[1], signed
        wanted = None if secret is None else HASHES[parts[0]](signed + secret.encode()).hexdigest()
        if BUG == "any-secret":
            wanted = secret and parts[2]
        if wanted != parts[2]:
            raise No(400 if BUG == "unauthorised-is-400" else 401, "who are you?")
        return parts[1], self.body if self.command == "POST" else signed

    def given(self, signed, suffix):
        if self.command == "GET":
            pairs = dict(parse_qsl(signed.decode()))
            pairs.pop("callback", None)
            return pairs
        if suffix == "text":
            return dict(pair.split("=", 1) for pair in self.body.decode().split(","))
        try:
            text = self.body.decode("ascii" if BUG == "ascii-only" else "utf-8")
            given = json.loads(text)
        except ValueError as error:
            raise No(400, "that is no JSON") from error
        if not isinstance(given, dict):
            raise No(400, "that is no object")
        return given


class Daemon:
    def __init__(self, port):
        self.port = port
        self.queue = Queue()
        self.turn = asyncio.Lock() if BUG == "one-at-a-time" else None
        threading.Thread(target=self.forward, daemon=True).start()

    def forward(self):
        number = 0
        while True:
            command, given = self.queue.get()
            number += 1
            if BUG == "drops-some" and number % 5 == 0:
                continue
            body = json.dumps(given).encode()
            digest = hashlib.sha1(body + PROJECTS["alpha"].encode()).hexdigest()
            connection = HTTPConnection("127.0.0.1", self.port)
            connection.request("POST", f"/cp/api/batch/{command}", body, {"Authorization": f"sha-1,alpha,{digest}"})
            connection.getresponse().read()
            connection.close()

    async def meet(self, reader, writer):
        with suppress(ConnectionError):
            if self.turn is None:
                return await self.converse(reader, writer)
            async with self.turn:
                return await self.converse(reader, writer)

    async def converse(self, reader, writer):
        frame = await reader.read(4096)
        while frame and b"\n" not in frame.lstrip() and BUG != "reads-once" and len(frame) <= 4096:
            try:
                more = await asyncio.wait_for(reader.read(4096), None if BUG == "waits-for-newline" else QUIET_S)
            except TimeoutError:
                break
            if not more:
                break
            frame += more
        if frame:
            good = self.take(frame)
            if good or BUG != "swallows-er":
                writer.write((b"OK" if good else b"ER") + (b"\n" if BUG == "reply-newline" else b""))
        if BUG == "reply-twice":
            await reader.read(4096)
            writer.write(b"OK")
        if BUG == "stays-open":
            await reader.read()
        writer.close()

    def take(self, frame):
        if len(frame) > (1024 if BUG == "short-frames" else 1500):
            return False
        try:
            text = frame.decode()
        except UnicodeDecodeError:
            return False
        if BUG == "keeps-newline":
            text = text.lstrip()
        elif BUG != "strips-nothing":
            text = text.strip()
        if BUG == "lower-case-ids":
            text = text.upper()
        command, *pairs = text.split(",")
        if BUG != "case-sensitive":
            command = command.lower()
        given = {}
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals or "=" in value or not name:
                return False
            given[name.lower() if BUG == "lower-case-ids" else name] = value
        if any(not c.isprintable() for c in text.strip("\r\n")):
            return False
        if command not in ORDER:
            if BUG == "delivers-malformed" and given.get("slot"):
                self.queue.put(("alloc", given))
            return BUG == "knows-all-commands"
        if not given.get("slot") and BUG != "needs-no-slot":
            return False
        if command == "claim" and not given.get("machine") and BUG != "needs-no-machine":
            return False
        if BUG == "checks-numbers" and not given.get("credits", "1").isdigit():
            return False
        self.queue.put((command, given))
        return True


async def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    daemon = Daemon(server.server_port)
    listening = await asyncio.start_server(daemon.meet, "127.0.0.1", 0, backlog=256)
    print(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    print(f"http://127.0.0.1:{server.server_port}/cp/api", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    if BUG and BUG not in BUGS:
        sys.exit(f"no bug {BUG!r}")
    asyncio.run(main())
