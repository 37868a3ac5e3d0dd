"""A server whose clock is set by hand, and its accounts as they are loaded from an export."""

import pytest

from cpsim.accounting import Accounts
from cpsim.server.control.inspection import Inspector
from cpsim.server.service import AccountServer

DAY_US = 86_400_000_000
START_US = 1_767_225_600_000_000
"""2026-01-01, midnight in UTC."""


class Site:
    """An account server, told what to do and when."""

    def __init__(self, folder, quirks=frozenset(), projects=("p", "q"), store=None):
        self.folder = folder
        self.now_us = START_US
        self.server = AccountServer(dict.fromkeys(projects, "s"), lambda: self.now_us, quirks, store=store)
        self.inspector = Inspector(self.server)

    def at(self, days):
        """Go to a time, in days since the start."""
        self.now_us = START_US + round(days * DAY_US)
        return self

    def apply(self, *calls, project="p"):
        return self.server.apply(project, [(kind, arguments) for kind, arguments in calls])

    def alloc(self, slot, project="p", **terms):
        assert not self.apply(("alloc", {"slot": slot, "expire": 10**6, **terms}), project=project)

    def claim(self, slot, machine, project="p", **arguments):
        assert not self.apply(("claim", {"slot": slot, "machine": machine, **arguments}), project=project)

    def count(self, slot, project="p", **counters):
        assert not self.apply(("counters", {"slot": slot, **counters}), project=project)

    def export(self):
        self.folder.mkdir(exist_ok=True)
        (self.folder / "slots.parquet").write_bytes(self.inspector.slots_parquet())
        (self.folder / "accounts.parquet").write_bytes(self.inspector.accounts_parquet())
        return self.folder

    def load(self, **options):
        return Accounts.load(self.export(), **options)


@pytest.fixture
def make_site(tmp_path):
    """Return make_site(*quirks) -> Site."""
    return lambda *quirks: Site(tmp_path / "export", frozenset(quirks))


@pytest.fixture
def site(make_site):
    return make_site()


@pytest.fixture
def week(site):
    """A week of two projects: links, ranges, discards, an expiry, counters, and a slot that is left."""
    site.server.link([("m1", "ann"), ("m2", "bob")])
    site.alloc("fixed", credits=7)
    site.alloc("low", min=5, max=20)
    site.alloc("high", min=5, max=20)
    site.alloc("asked", min=5, max=20)
    site.alloc("free")
    site.alloc("late", min=3)
    site.alloc("bad", credits=100)
    site.apply(("alloc", {"slot": "gone", "expire": 1440, "max": 4}))
    site.alloc("other", project="q", credits=50)
    site.at(1).count("low", events=10, failures=-1)
    site.claim("fixed", "m1", credits=9)
    site.claim("low", "m1", credits=1)
    site.at(2).claim("high", "m2", credits=99)
    site.claim("other", "m1", project="q")
    site.at(3).count("asked", events=5)
    site.claim("asked", "m3", credits=12)
    site.apply(("discard", {"slot": "bad", "reason": "lost"}))
    site.at(6).claim("free", "m1")
    return site.at(7)


def cells(frame, *columns):
    """The rows of some columns, as tuples of plain values; None where there is nothing."""
    chosen = frame[list(columns)].astype(object)
    return [tuple(row) for row in chosen.where(chosen.notna(), None).to_numpy().tolist()]
