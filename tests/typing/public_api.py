"""What a user's type checker sees of the public API; `nox -s lint` checks it, and nothing runs it."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import pandas as pd

import cpdaemon
from cpdaemon import Alloc, AsyncClient, Client, Command, CreditPiggyError, Outcome
from cpsim.accounting import Accounts, Report, build
from cpsim.accounting.blocks import Block, Table
from cpsim.fake import ANY_PORT, Fake
from cpsim.testing import CreditPiggy, CreditPiggyServer


def manage(job: str) -> None:
    """A job manager."""
    cpdaemon.cpapi_setup("/run/creditapi.socket")
    assert_type(cpdaemon.cpapi_alloc(job, min=1, max=5), None)
    cpdaemon.cpapi_counters(job, events=5, **{"job/cpuusage": 7})
    cpdaemon.cpapi_meta(job, site="here")
    cpdaemon.cpapi_claim(job, "worker-7", credits=3)
    cpdaemon.cpapi_discard(job, reason="lost")
    cpdaemon.cpapi_alloc(job, credits="5")  # type: ignore[arg-type]


def send(commands: list[Command]) -> list[CreditPiggyError | None]:
    """A client of one's own."""
    client = Client("https://cp.example.org/api", ("physics", "secret"), timeout_s=5)
    assert_type(client.send(Alloc("job", credits=5)), None)
    return [outcome.error for outcome in assert_type(client.send_many(commands), list[Outcome])]


async def send_async(commands: list[Command]) -> None:
    """The same in an event loop."""
    async with AsyncClient("/run/creditapi.socket") as client:
        assert_type(await client.alloc("job", min=1, max=5), None)
        await client.counters("job", events=5)
        assert_type(await client.send_many(commands), list[Outcome])
        await client.claim("job", 7)  # type: ignore[arg-type]


def test_job(creditpiggy: CreditPiggy, creditpiggy_server: CreditPiggyServer) -> None:
    """A test with the fixtures."""
    manage("job")
    creditpiggy.wait_for_claim("job", timeout_s=5)
    creditpiggy.assert_claimed("job", machine="worker-7", credits=3, counters={"events": 5})
    creditpiggy.clock.advance(hours=25)
    with creditpiggy.faults.hang():
        manage("other")
    assert_type(creditpiggy.endpoint, str)


def serve(folder: Path) -> None:
    """A fake."""
    with Fake({"physics": "secret"}, unix=folder / "d.sock", http=ANY_PORT) as fake:
        assert_type(fake.addresses["http"], str)


def account(folder: Path) -> pd.DataFrame:
    """A notebook."""
    with Accounts.load(folder) as accounts:
        assert_type(build(accounts), list[Report])
        return accounts.machines


def report(frames: Accounts) -> list[Block]:
    """A report of one's own."""
    return [Table("Users", frames.users)]
