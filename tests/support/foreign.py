"""A server that is not ours: its accounts are a dictionary, and how they are shown is the test's affair."""

import io
import json
import sys
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq


class Accounts:
    """Slots as a dictionary each, and all else counted from them."""

    def __init__(self):
        self.lock = threading.Lock()
        self.slots = {}

    def apply(self, kind, given):
        with self.lock:
            if kind == "alloc":
                terms = {name: given.get(name) for name in ("credits", "min", "max")}
                self.slots[given["slot"]] = terms | {"state": "allocated", "counters": Counter(), "meta": {}}
                return
            slot = self.slots[given.pop("slot")]
            if kind == "counters":
                slot["counters"].update({name: int(amount) for name, amount in given.items()})
            elif kind == "meta":
                slot["meta"].update(given)
            elif kind == "discard":
                slot.update(state="discarded", reason=given["reason"])
            else:
                granted = int(given.get("credits", 1))
                granted = granted if slot["max"] is None else min(granted, slot["max"])
                granted = granted if slot["min"] is None else max(granted, slot["min"])
                slot.update(state="claimed", machine=given["machine"], granted=granted)

    def rows(self):
        """The rows of each kind, as lines of a ledger; the first machine belongs to Ann, on the others credit waits."""
        unsettled = dict.fromkeys(("machine", "granted", "reason"))
        slots = [{"project": "p", "slot": slot_id, **unsettled, **slot} for slot_id, slot in self.slots.items()]
        earned, sums = Counter(), defaultdict(Counter)
        for slot in slots:
            if slot["state"] == "claimed":
                earned[slot["machine"]] += slot["granted"]
                sums[slot["machine"]].update(slot["counters"])
        own = min(earned, default=None)
        machines = [
            {"project": "p", "machine": machine, "user": "ann" if machine == own else None}
            | {"credits": credits, "counters": dict(sums[machine])}
            | {"waiting_credits": 0 if machine == own else credits}
            | {"waiting_counters": {} if machine == own else dict(sums[machine])}
            for machine, credits in earned.items()
        ]
        users = [{"project": "p", "user": "ann", "credits": earned[own], "counters": dict(sums[own])}]
        total = sum(sums.values(), Counter())
        projects = [{"project": "p", "credits": earned.total(), "counters": dict(total)}]
        return {"slot": slots, "machine": machines, "user": users, "project": projects}


def tables(accounts):
    """What the accounts are as Parquet, in types of their own."""
    rows = accounts.rows()
    numbers, texts = pa.map_(pa.large_string(), pa.int32()), pa.map_(pa.string(), pa.string())
    types = {"counters": numbers, "waiting_counters": numbers, "meta": texts, "machine": pa.large_string()}
    types |= {"state": pa.dictionary(pa.int8(), pa.string())}
    types |= dict.fromkeys(("credits", "granted", "waiting_credits"), pa.uint16())

    def table(rows, names):
        columns = {name: [row.get(name) for row in rows] for name in names}
        return pa.table(
            {
                name: pa.array([list(v.items()) if isinstance(v, dict) else v for v in values], types.get(name))
                for name, values in columns.items()
            }
        )

    slots = table(rows["slot"], list(rows["slot"][0])).append_column("colour", pa.array(["red"] * len(rows["slot"])))
    named = [
        {**row, "kind": kind, "id": row[kind], "user": row.get("user") if kind == "machine" else None}
        for kind in ("machine", "user", "project")
        for row in rows[kind]
    ]
    return slots, table(named, ["kind", *(name for name in named[0] if name not in {"kind", "machine"})])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        accounts, place = self.server.accounts, self.path.rpartition("/")[2]
        if self.path == "/__cpsim/totals":
            answer = b'{"pending": 0, "projects": {}}'
        elif self.path == "/__cpsim/clock":
            answer = None
        elif self.path.startswith(("/__cpsim/", "/shown/")):
            answer = self.server.shows(accounts).get(place)
        elif place == "slots":
            open_slots = [slot_id for slot_id, slot in accounts.slots.items() if slot["state"] == "allocated"]
            answer = json.dumps({"result": "ok", "data": open_slots}).encode()
        else:
            accounts.apply(place, json.loads(body))
            answer = b'{"result": "ok"}'
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Length", str(len(answer or b"")))
        self.end_headers()
        self.wfile.write(answer or b"")
        self.wfile.flush()


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with five, some of sixty clients at once wait a second for their connections

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave
            super().handle_error(request, client_address)


@contextmanager
def serving(accounts, shows=lambda accounts: {}):
    """The base URL of a server with these accounts, which shows documents of them by name, at paths that end so."""
    server = Server(("127.0.0.1", 0), Handler)
    server.accounts, server.shows = accounts, shows
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def written(accounts, folder):
    """A folder with the accounts as JSON lines, a file a table."""
    folder.mkdir(exist_ok=True)
    for kind, rows in accounts.rows().items():
        path = folder / f"{kind}s.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder


def ledger(accounts):
    """The accounts as JSON lines of all tables."""
    rows = [{"type": kind, **row} for kind, rows in accounts.rows().items() for row in rows]
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()
