"""A fake with faults, on real sockets."""

import pytest

from cpdaemon import Client
from cpsim.fake import ANY_PORT, Fake


@pytest.fixture(params=["memory", "store"])
def fake(request, here):
    store = here / "accounts" if request.param == "store" else None
    with Fake({"p": "s"}, unix=here / "cp.sock", tcp=ANY_PORT, http=ANY_PORT, store=store) as fake:
        yield fake
        fake.faults.clear()
        fake.wait_until_idle()
        with fake.accounts.reading() as ledger:
            assert list(ledger.violations()) == []


@pytest.fixture
def slots(fake):
    """Return slots() -> the ids of the slots in the accounts, once all that was acknowledged has come there."""

    def slots():
        fake.wait_until_idle()
        with fake.accounts.reading() as ledger:
            return list(ledger.project("p").slots)

    return slots


@pytest.fixture(params=["unix", "tcp"])
def client(request, fake):
    """A client of the daemon."""
    with Client(fake.addresses[request.param], timeout_s=60) as client:
        yield client


@pytest.fixture
def web(fake):
    """A client of the server."""
    with Client(fake.addresses["http"], ("p", "s"), timeout_s=60) as client:
        yield client
