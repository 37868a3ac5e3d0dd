"""Prints the accounts of the CreditPiggy server in production as JSON lines: slots and users, of SQL and Redis.

    export CREDITPIGGY_DATABASE=postgresql+psycopg://reader:SECRET@db.example.org/creditpiggy
    export CREDITPIGGY_REDIS=redis://:SECRET@redis.example.org:6379/0
    cpsim run challenge --target URL --project ID --secret-file FILE --accounts program:deployed

CREDITPIGGY_REDIS_PREFIX is the setting REDIS_KEYS_PREFIX of that server, if it has one. There is no transaction over
both stores: what is read while commands are applied may not agree. Sums of users are those of Redis, which has them
whole where claims overlapped. Machines have no balances there, and metadata is nowhere: neither is printed.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import islice
from typing import TYPE_CHECKING, Final

import redis
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from cpsim.accounts.sources import PAUSE_S
from cpsim.accounts.sources.sql import connected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

DATABASE, REDIS, PREFIX = "CREDITPIGGY_DATABASE", "CREDITPIGGY_REDIS", "CREDITPIGGY_REDIS_PREFIX"
SLOTS: Final = """
SELECT s.id AS id, c.token AS project, s.uuid AS slot, s.status AS status, s.machine_id AS machine_id,
    m.uuid AS machine, s.reason AS reason, s.credits AS credits, s."minBound" AS least, s."maxBound" AS most,
    s."expireTime" AS expires_s
FROM core_creditslot s JOIN api_projectcredentials c ON c.project_id = s.project_id
LEFT JOIN core_computingunit m ON m.id = s.machine_id
"""
USERS: Final = """
SELECT r.id AS id, c.token AS project, u.username AS username
FROM core_projectuserrole r JOIN api_projectcredentials c ON c.project_id = r.project_id
JOIN core_piggyuser u ON u.id = r.user_id
"""
KEY: Final = "{}metrics/creditpiggy.core.models.{}/{}/counters"
OWN: Final = ("credits", "slots/completed")
"""Fields of a user's hash that are the server's own, and no counters."""
TOGETHER: Final = 1_000
"""Rows whose hashes are asked for at once."""


def main() -> None:
    """Print all lines."""
    for variable in (DATABASE, REDIS):
        if not os.environ.get(variable):
            sys.exit(f"the environment variable {variable} is not set")
    try:
        store = redis.Redis.from_url(os.environ[REDIS], decode_responses=True)
        with connected(make_url(os.environ[DATABASE]), PAUSE_S) as connection:
            for row, counters in with_counters(connection.exec_driver_sql(SLOTS).mappings(), "CreditSlot", store):
                print(json.dumps(slot_line(row, counters)))
            for row, counters in with_counters(connection.exec_driver_sql(USERS).mappings(), "ProjectUserRole", store):
                print(json.dumps(user_line(row, counters)))
    except SQLAlchemyError as error:
        sys.exit(f"SQL: {' '.join(str(getattr(error, 'orig', None) or type(error).__name__).split())}")
    except (redis.RedisError, ValueError) as error:
        sys.exit(f"Redis: {' '.join(str(error).split())}")


def with_counters(
    rows: Iterable[Mapping[str, object]], model: str, store: redis.Redis
) -> Iterator[tuple[Mapping[str, object], dict[str, int]]]:
    """Rows of SQL, each with the hash of its counters."""
    left = iter(rows)
    while chunk := list(islice(left, TOGETHER)):
        pipeline = store.pipeline(transaction=False)
        for row in chunk:
            pipeline.hgetall(KEY.format(os.environ.get(PREFIX, ""), model, row["id"]))
        for row, found in zip(chunk, pipeline.execute(), strict=True):
            yield row, {name: int(amount) for name, amount in found.items()}


def slot_line(row: Mapping[str, object], counters: dict[str, int]) -> dict[str, object]:
    """A slot. One that was discarded after its claim is both there; here it is discarded."""
    is_discarded = row["status"] == 2  # 0 is free, and 1 is never written
    is_claimed = row["machine_id"] is not None and not is_discarded
    expires_s = row["expires_s"]
    return {
        "type": "slot",
        "project": row["project"],
        "slot": row["slot"],
        "state": "discarded" if is_discarded else "claimed" if is_claimed else "allocated",
        "machine": row["machine"] if is_claimed else None,
        "reason": row["reason"] if is_discarded else None,
        "granted": row["credits"] if is_claimed else None,
        "min": row["least"],
        "max": row["most"],
        "expires_us": None if expires_s is None else int(expires_s) * 1_000_000,
        "counters": counters,
    }


def user_line(row: Mapping[str, object], counters: dict[str, int]) -> dict[str, object]:
    """A user in a project."""
    return {
        "type": "user",
        "project": row["project"],
        "user": row["username"],
        "credits": counters.get("credits", 0),
        "counters": {name: amount for name, amount in counters.items() if name not in OWN},
    }


if __name__ == "__main__":
    main()
