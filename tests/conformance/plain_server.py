"""A server written from docs/protocol.md alone, small and right, in whose seams `planted` puts one fault each.

It shares no code with cpsim. A thread serves each connection, which may be kept and pipelined. With accounts it
answers the reads of docs/reference/control-api.md, links, releases, and a clock that can be moved.
"""

import hashlib
import json
import socket
import threading
import time
from contextlib import suppress
from itertools import count
from urllib.parse import parse_qsl, unquote

PROJECTS = {"alpha": "first secret", "beta": "second secret"}
ORDER = ["alloc", "counters", "meta", "discard", "claim"]
HASHES = {"sha-1": hashlib.sha1, "sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
JSON = "application/json"
OPEN = "allocated"


class No(Exception):
    """A request is turned away, or a command refused."""

    def __init__(self, said, status=500):
        super().__init__(said)
        self.status = status


def add(sums, name, value):
    sums[name] = sums.get(name, 0) + value


class Project:
    def __init__(self):
        self.slots, self.machines, self.users, self.reasons, self.counters = {}, {}, {}, {}, {}


class Books:
    """The accounts. Each method is a seam."""

    def __init__(self):
        self.lock = threading.RLock()
        self.projects = {name: Project() for name in PROJECTS}
        self.owners = {}
        self.ahead_s = 0
        self.numbers = count(1)

    def now_us(self):
        return int((time.time() + self.ahead_s) * 1e6)

    def slot_id(self, text):
        return text

    def machine_id(self, text):
        return text

    def counter_name(self, text):
        return text

    def user_id(self, text):
        return text

    def meta_name(self, text):
        return text

    def meta_value(self, text):
        return text

    def reason_text(self, text):
        return text

    def moment(self, what):
        """Between looking and doing."""

    def apply(self, name, command, given):
        with self.lock:
            getattr(self, command)(self.projects[name], given)

    def whole(self, given, name, least=0):
        if name not in given:
            return None
        value = given[name]
        if isinstance(value, str) and value.removeprefix("-").isdecimal() and value.isascii():
            value = int(value)
        if type(value) is not int or value < least:
            raise No(f"{name} must be a whole number, {least} or more")
        return value

    def text(self, given, name):
        if not isinstance(given.get(name), str) or not given[name]:
            raise No(f"no {name} is given")
        return given[name]

    def find(self, project, given):
        slot = project.slots.get(self.slot_id(self.text(given, "slot")))
        if slot is None:
            raise No("there is no such slot")
        self.expire(slot)
        return slot

    def expire(self, slot):
        if slot["state"] == OPEN and slot["expires_us"] <= self.now_us():
            slot["state"] = "expired"

    def check_open(self, slot, command):
        if slot["state"] != OPEN:
            raise No(f"the slot is {slot['state']}")

    def opened(self, project, given, command):
        slot = self.find(project, given)
        self.check_open(slot, command)
        return slot

    def minutes_us(self, minutes):
        return minutes * 60_000_000

    def alloc(self, project, given):
        name = self.slot_id(self.text(given, "slot"))
        credits, low, high = (self.whole(given, key) for key in ("credits", "min", "max"))
        minutes = self.whole(given, "expire", 1)
        self.check_terms(credits, low, high, minutes)
        self.check_new(project, name)
        self.moment("alloc")
        now_us = self.now_us()
        project.slots[name] = {
            "slot": given["slot"], "state": OPEN, "credits": credits, "min": low, "max": high, "machine": None,
            "granted": None, "reason": None, "counters": {}, "meta": {}, "allocated_us": now_us, "settled_us": None,
            "expires_us": now_us + self.minutes_us(1440 if minutes is None else minutes),
        }  # fmt: skip

    def check_terms(self, credits, low, high, minutes):
        if low is not None and high is not None and low > high:
            raise No("min is above max")

    def check_new(self, project, name):
        if name in project.slots:
            raise No("the id is used")

    def counters(self, project, given):
        slot = self.opened(project, given, "counters")
        values = {name: self.whole(given, name, float("-inf")) for name in given if name != "slot"}
        self.check_counters(slot, values)
        for name, value in values.items():
            self.count(slot, self.counter_name(name), value)

    def check_counters(self, slot, values):
        if not values:
            raise No("no counter is given")

    def count(self, slot, name, value):
        before = slot["counters"].get(name, 0)
        self.moment("counters")
        slot["counters"][name] = before + value

    def meta(self, project, given):
        slot = self.opened(project, given, "meta")
        notes = {self.meta_name(name): value for name, value in given.items() if name != "slot"}
        if not notes or not all(isinstance(value, str) for value in notes.values()):
            raise No("no text is given")
        self.check_meta(slot, notes)
        self.note(slot, notes)

    def check_meta(self, slot, notes):
        pass

    def note(self, slot, notes):
        slot["meta"].update({name: self.meta_value(value) for name, value in notes.items()})

    def discard(self, project, given):
        slot = self.opened(project, given, "discard")
        reason = given.get("reason", "unspecified")
        self.check_reason(reason)
        self.moment("discard")
        self.settle(slot, "discarded", reason=self.reason_text(reason))
        add(project.reasons, self.reason_text(reason), 1)

    def check_reason(self, reason):
        if not isinstance(reason, str):
            raise No("the reason must be text")

    def settle(self, slot, state, **more):
        slot.update(state=state, settled_us=self.now_us(), **more)

    def claim(self, project, given):
        slot = self.opened(project, given, "claim")
        machine = self.machine_id(self.text(given, "machine"))
        asked = self.whole(given, "credits") if slot["credits"] is None else None
        self.check_claim(project, slot, machine, given)
        granted = self.grant(slot, asked)
        self.moment("claim")
        self.settle(slot, "claimed", machine=given["machine"], granted=granted)
        self.pay(project, machine, granted, slot["counters"])

    def check_claim(self, project, slot, machine, given):
        pass

    def grant(self, slot, asked):
        if slot["credits"] is not None:
            return slot["credits"]
        wanted = 1 if asked is None else asked
        wanted = wanted if slot["min"] is None else max(wanted, slot["min"])
        return wanted if slot["max"] is None else min(wanted, slot["max"])

    def pay(self, project, machine, credits, counters):
        has = self.machine(project, machine)
        self.credit(has, "credits", "counters", credits, counters)
        user = self.owners.get(machine)
        if user is None:
            self.credit(has, "waiting_credits", "waiting_counters", credits, counters)
        else:
            self.credit(self.user(project, user), "credits", "counters", credits, counters)
        for name, value in counters.items():
            self.total(project, name, value)

    def total(self, project, name, value):
        add(project.counters, name, value)

    def credit(self, account, what, which, credits, counters):
        before = account[what]
        self.moment(what)
        account[what] = before + credits
        for name, value in counters.items():
            add(account[which], name, value)

    def machine(self, project, name):
        empty = {"machine": name, "credits": 0, "counters": {}, "waiting_credits": 0, "waiting_counters": {}}
        return project.machines.setdefault(name, empty)

    def user(self, project, name):
        return project.users.setdefault(name, {"user": name, "credits": 0, "counters": {}})

    def link(self, machine, user):
        with self.lock:
            machine, user = self.machine_id(machine), self.user_id(user)
            if self.owners.get(machine, user) != user:
                return False
            self.owners[machine] = user
            for project in self.projects.values():
                has = project.machines.get(machine)
                if has is not None:
                    self.hand_over(has, self.user(project, user))
            return True

    def hand_over(self, has, account):
        self.credit(account, "credits", "counters", has["waiting_credits"], has["waiting_counters"])
        has.update(waiting_credits=0, waiting_counters={})

    def release(self, machine):
        with self.lock:
            return self.owners.pop(self.machine_id(machine), None) is not None

    def listed(self, name):
        with self.lock:
            return [slot["slot"] for slot in self.projects[name].slots.values() if self.is_outstanding(slot)]

    def is_outstanding(self, slot):
        self.expire(slot)
        return slot["state"] == OPEN


class Server:
    """HTTP in front of books.

    Args:
        with_accounts: whether the control API is there.
    """

    def __init__(self, *, with_accounts=False):
        self.books = Books()
        self.with_accounts = with_accounts
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.connections = set()

    def __enter__(self):
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}/api"
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        with suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                self.connections.add(connection)
                threading.Thread(target=self.serve, args=[connection], daemon=True).start()

    # HTTP

    def serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError, ValueError), connection, connection.makefile("rb") as incoming:
            state = {}
            while line := incoming.readline():
                method, path, _ = line.decode("latin-1").split(" ", 2)
                headers = {}
                while (header := incoming.readline().decode("latin-1")) not in {"\r\n", ""}:
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = self.read_body(incoming, method, path, headers)
                status, kind, text = self.answer(method, path, headers, body, state)
                stays = headers.get("connection", "").lower() != "close" and self.stays(status)
                self.reply(connection, status, kind, text.encode(), stays)
                if not stays:
                    break
        self.connections.discard(connection)

    def read_body(self, incoming, method, path, headers):
        return incoming.read(int(headers.get("content-length", 0)))

    def stays(self, status):
        return True

    def reply(self, connection, status, kind, data, stays):
        connection.sendall(self.head(status, kind, data, stays) + data)

    def head(self, status, kind, data, stays):
        keep = "keep-alive" if stays else "close"
        lines = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}", f"Content-Length: {len(data)}"]
        return "\r\n".join([*lines, f"Connection: {keep}", "", ""]).encode()

    def answer(self, method, path, headers, body, state):
        path, _, query = path.partition("?")
        if self.with_accounts and path.startswith("/__cpsim/"):
            return self.control(path.removeprefix("/__cpsim/"), dict(parse_qsl(query)), body)
        if path == "/api/heartbeat":
            return 200, "text/plain", "OK"
        place, _, suffix = path.removeprefix("/api/batch/").partition(".")
        if not path.startswith("/api/batch/") or place not in {*ORDER, "bulk", "slots"}:
            return 404, "text/plain", "not here"
        if suffix not in {"", "json", "text", "jsonp"}:
            return 500, "text/plain", f"Unknown API protocol '{suffix}' requested"
        try:
            project, signed = self.signer(method, place, query, headers, body, state)
            status, document = 200, {"result": "ok", **self.act(project, place, suffix, method, signed, body)}
        except No as no:
            status, document = self.refusal(no)
        return status, *self.written(suffix, query, status, document)

    def refusal(self, no):
        return no.status, {"result": "error", "message": str(no)}

    def written(self, suffix, query, status, document):
        if suffix == "text":
            lines = document.get("data", [f"{name}: {value}" for name, value in document.items()])
            return "text/plain", "\n".join(lines if status == 200 else ["ERROR", *lines])
        if suffix == "jsonp":
            return (
                "text/javascript",
                f"{dict(parse_qsl(query)).get('callback', 'jsonp_callback')}({self.dumps(document)})",
            )
        return JSON, self.dumps(document)

    def dumps(self, document):
        return json.dumps(document)

    # who signs

    def signer(self, method, place, query, headers, body, state):
        if method == "GET":
            signed, found, token = query.rpartition("auth=")
            if not found or "&" in token or (signed and not signed.endswith("&")):
                raise No("auth= comes last", 400)
            token, signed = unquote(token), signed[:-1].encode()
        else:
            token, signed = headers.get("authorization"), body
            if token is None:
                raise No("it is not signed", 400)
        parts = token.lower().split(",")
        if len(parts) != 3 or parts[0] not in HASHES:
            raise No("the token must be ALGORITHM,PROJECT,DIGEST", 400)
        algorithm, project, digest = parts
        if not self.is_signed(place, method, algorithm, project, digest, self.covered(signed)):
            raise No("the signature does not match", 401)
        return project, signed

    def covered(self, signed):
        return signed

    def secret(self, project):
        return PROJECTS.get(project)

    def is_signed(self, place, method, algorithm, project, digest, data):
        secret = self.secret(project)
        return secret is not None and self.matches(digest, algorithm, data, secret.encode())

    def matches(self, digest, algorithm, data, secret):
        return digest == HASHES[algorithm](data + secret).hexdigest()

    # what is to be done

    def act(self, project, place, suffix, method, signed, body):
        if place == "slots":
            return {"data": self.listing(project)}
        given = self.given(suffix, method, signed, body)
        if place == "bulk":
            return self.bulk(project, given)
        self.command(project, place, given)
        return {}

    def command(self, project, place, given):
        self.books.apply(project, place, given)

    def listing(self, project):
        return self.books.listed(project)

    def given(self, suffix, method, signed, body):
        if method == "GET":
            pairs = dict(parse_qsl(signed.decode(), keep_blank_values=True))
            pairs.pop("callback", None)
            return pairs
        if suffix == "text":
            return dict(pair.partition("=")[::2] for pair in body.decode().split(","))
        try:
            given = self.loads(body)
        except ValueError as error:
            raise No("the body is no JSON", 400) from error
        if not isinstance(given, dict):
            raise No("the body is no object", 400)
        return given

    def loads(self, body):
        return json.loads(body)

    def order(self, given):
        return [*ORDER, *(set(given) - set(ORDER))]

    def bulk(self, project, given):
        errors = []
        for command in self.order(given):
            if command in given and command not in ORDER:
                errors.append(self.error(f"there is no {command}"))
                continue
            for arguments in self.commands(given.get(command, [])):
                try:
                    self.of_bulk(project, command, arguments)
                except No as no:
                    errors.append(self.error(str(no)))
        return {"errors": self.errors(errors)} if errors else {}

    def of_bulk(self, project, command, arguments):
        self.books.apply(project, command, arguments)

    def commands(self, given):
        return given

    def error(self, said):
        return {"message": said, "code": 500}

    def errors(self, errors):
        return errors

    # the control API

    def control(self, place, query, body):
        books, project = self.books, self.books.projects.get(query.get("project"))
        if place in {"slots", "machines", "users"}:
            items = list(getattr(project, place).values())[int(query.get("cursor", 0)) :]
            for item in items if place == "slots" else []:
                books.expire(item)
            return 200, JSON, json.dumps({"items": items, "next": None})
        answers = {
            "totals": lambda: {
                "pending": 0,
                "projects": {name: self.totals(each) for name, each in books.projects.items()},
            },
            "clock": lambda: {"now_us": books.now_us(), "rate": 1.0},
            "clock/advance": lambda: setattr(books, "ahead_s", books.ahead_s + int(query["seconds"])) or {},
            "links": lambda: [pair for pair in json.loads(body) if not books.link(*pair)],
            "releases": lambda: [each for each in json.loads(body) if not books.release(each)],
        }
        if place == "ledger.jsonl":
            return 200, JSON, "\n".join(map(json.dumps, self.ledger()))
        return (200, JSON, json.dumps(answers[place]())) if place in answers else (404, "text/plain", "not here")

    def ledger(self):
        for name, project in self.books.projects.items():
            for kind in ("machine", "user"):
                for each in getattr(project, f"{kind}s").values():
                    yield {"type": kind, "project": name, **each}

    def totals(self, project):
        states = [(self.books.expire(slot), slot["state"])[1] for slot in project.slots.values()]
        parts = {state: states.count(state) for state in ("claimed", "discarded", "expired")}
        outstanding = {"allocated": len(states), "outstanding": states.count(OPEN)}
        return {**outstanding, **parts, "counters": project.counters, "reasons": project.reasons}
