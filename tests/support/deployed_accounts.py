"""Accounts in databases of the shape that the server in production has: in SQL and, if it is given, Redis."""

import threading
from itertools import count

import sqlalchemy as sa

TABLES = {
    "core_piggyproject": "id INTEGER PRIMARY KEY, uuid VARCHAR(32), display_name VARCHAR(200)",
    "api_projectcredentials": "id INTEGER PRIMARY KEY, token VARCHAR(24), secret VARCHAR(48), project_id INTEGER",
    "core_piggyuser": "id INTEGER PRIMARY KEY, uuid VARCHAR(32), username VARCHAR(200)",
    "core_computingunit": "id INTEGER PRIMARY KEY, uuid VARCHAR(255), owner_id INTEGER",
    "core_projectuserrole": "id INTEGER PRIMARY KEY, user_id INTEGER, project_id INTEGER, credits INTEGER",
    "core_creditslot": 'id INTEGER PRIMARY KEY, uuid VARCHAR(255), project_id INTEGER, credits INTEGER, "minBound" '
    'INTEGER, "maxBound" INTEGER, "expireTime" INTEGER, status INTEGER, machine_id INTEGER, reason VARCHAR(32)',
}
SCHEMA = (
    *(f"CREATE TABLE {name} ({columns})" for name, columns in TABLES.items()),
    "INSERT INTO core_piggyproject VALUES (120, 'u', 'The project')",
    "INSERT INTO api_projectcredentials VALUES (1, 'p', 'hush', 120)",
    "INSERT INTO core_piggyuser VALUES (124, 'u', 'ann')",
    "INSERT INTO core_projectuserrole VALUES (117, 124, 120, 0)",
    "INSERT INTO core_computingunit VALUES (1, 'of-ann', 124)",
)
ALLOCATED_S = 1_700_000_000


class DeployedAccounts:
    """Slots as rows, paid ones deleted; counters in Redis, or nowhere.

    Args:
        engine: of the database.
        store: a client of Redis, or None.
    """

    def __init__(self, engine, store=None):
        self.engine = engine
        self.store = store
        self._lock = threading.Lock()
        self._ids = count(1000)
        self.run(*SCHEMA)

    def run(self, *statements, **values):
        with self.engine.begin() as connection:
            results = [connection.execute(sa.text(statement), values) for statement in statements]
            return [row._mapping for row in results[-1]] if results[-1].returns_rows else []

    @property
    def slots(self):
        """What `/batch/slots` lists, as a slot each: claimed ones of machines without a user too."""
        return {
            row["uuid"]: {"state": "allocated"} for row in self.run("SELECT uuid FROM core_creditslot WHERE status = 0")
        }

    def apply(self, kind, given):
        with self._lock:
            if kind == "alloc":
                self.run(
                    "INSERT INTO core_creditslot VALUES (:id, :slot, 120, :credits, :least, :most, :expires, 0, "
                    "NULL, NULL)",
                    id=next(self._ids),
                    slot=given["slot"],
                    credits=given.get("credits"),
                    least=given.get("min"),
                    most=given.get("max"),
                    expires=ALLOCATED_S + 60 * int(given.get("expire", 1440)),
                )
            elif kind != "meta":
                (slot,) = self.run("SELECT * FROM core_creditslot WHERE uuid = :slot", slot=given.pop("slot"))
                getattr(self, f"_{kind}")(slot, given)

    def _counters(self, slot, given):
        for name, amount in given.items() if self.store is not None else ():
            self.store.hincrby(self._key("CreditSlot", slot["id"]), name, amount)

    def _discard(self, slot, given):
        self.run("UPDATE core_creditslot SET status = 2, reason = :reason WHERE id = :id", id=slot["id"], **given)

    def _claim(self, slot, given):
        credits = slot["credits"]
        if credits is None:
            credits = int(given.get("credits", 1))
            credits = credits if slot["maxBound"] is None else min(credits, slot["maxBound"])
            credits = credits if slot["minBound"] is None else max(credits, slot["minBound"])
        machine = self._machine(given["machine"])
        if machine["owner_id"] is None:
            self.run(
                "UPDATE core_creditslot SET machine_id = :machine, credits = :credits WHERE id = :id",
                id=slot["id"],
                machine=machine["id"],
                credits=credits,
            )
            return
        self.run("UPDATE core_projectuserrole SET credits = credits + :credits WHERE id = 117", credits=credits)
        self.run("DELETE FROM core_creditslot WHERE id = :id", id=slot["id"])
        if self.store is not None:
            paid = self.store.hgetall(self._key("CreditSlot", slot["id"])) | {"credits": credits, "slots/completed": 1}
            self.store.delete(self._key("CreditSlot", slot["id"]))
            for name, amount in paid.items():
                self.store.hincrby(self._key("ProjectUserRole", 117), name, int(amount))

    def _machine(self, name):
        find = "SELECT * FROM core_computingunit WHERE uuid = :name"
        if not (rows := self.run(find, name=name)):
            self.run("INSERT INTO core_computingunit VALUES (:id, :name, NULL)", id=next(self._ids), name=name)
            rows = self.run(find, name=name)
        return rows[0]

    @staticmethod
    def _key(model, number):
        return f"cp:metrics/creditpiggy.core.models.{model}/{number}/counters"
