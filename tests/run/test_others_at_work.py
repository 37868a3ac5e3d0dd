"""Sums of accounts to which others send commands while they are read: the tables are not of one moment."""

from dataclasses import replace

import pytest
from claims_alone import claims_alone

from cpdaemon.endpoint import parse_endpoint
from cpsim import fake
from cpsim.accounts.observer import Observer
from cpsim.clock import SYSTEM_CLOCK
from cpsim.evidence.files import EvidenceFolder
from cpsim.evidence.writing import writers
from cpsim.run.observing import conclude, imbalances_before


class Site:
    """A site at which a run was valid; `others` claim slots between the reading of slots and that of machines."""

    def __init__(self, site, evidence):
        self.accounts = site.accounts
        self.evidence = replace(evidence, seen=None)
        self.observer = Observer(parse_endpoint(site.addresses["http"]), ("p", "hush"), 60.0)
        self.claimed = 0

    def others(self, project, times, machine="m"):
        table = self.observer.control.table

        def busy(name, query=None):
            if name == "accounts.parquet" and self.claimed < times:
                self.claim(project, machine)
            return table(name, query)

        self.observer.control.table = busy

    def claim(self, project, machine):
        self.claimed += 1
        slot = {"slot": f"other-{self.claimed}"}
        claim = slot | {"machine": machine, "credits": 5}
        self.accounts.apply(project, [("alloc", slot), ("counters", slot | {"events": 2}), ("claim", claim)])

    def conclude(self, timeout_s=0.1):
        return conclude(self.evidence, self.observer, timeout_s, SYSTEM_CLOCK, [])


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "cp.sock"
    with fake.Fake({"p": "hush", "others": "hush"}, unix=path, http=fake.ANY_PORT) as started:
        yield Site(started, claims_alone(path, started.addresses["http"], ("p", "hush")))


def test_the_sums_of_another_project_are_passed_over_while_it_is_at_work(site):
    site.others("others", times=1_000)
    seen, verdict = site.conclude()
    assert (verdict.ruling, verdict.not_verified, site.claimed) == ("valid", [], 1)
    assert seen.seen.meanwhile == {"others": {"credits": 5, "events": 2}}


def test_the_sums_of_the_run_s_own_project_are_read_again_until_it_is_quiet(site):
    site.others("P", times=3)
    _, verdict = site.conclude(timeout_s=60.0)
    assert (verdict.ruling, verdict.not_verified, site.claimed) == ("valid", [], 3)


def test_of_the_run_s_own_project_that_is_never_quiet_nobody_can_say(site, tmp_path):
    site.others("p", times=1_000_000)
    seen, verdict = site.conclude()
    assert verdict.ruling == "unknown"
    [said] = verdict.not_verified
    assert said.startswith("6 sums of the accounts: claims that came while they were read granted as much as they are")
    for name, write in writers(seen).items():
        write(tmp_path / name)
    read = EvidenceFolder(tmp_path).whole().seen
    assert read.meanwhile == seen.seen.meanwhile == {"p": {"credits": 5, "events": 2}}


@pytest.mark.parametrize("project", ["p", "others"])
def test_what_is_off_by_more_than_came_meanwhile_is_found(site, project):
    for _ in range(2):
        site.claim(project, "m")
    view = site.observer.view
    site.observer.view = lambda: without_two(view())
    site.others(project, times=1_000_000)
    _, verdict = site.conclude()
    assert verdict.ruling == "invalid"
    assert verdict.counts["over-credited"] == 2


def without_two(view):
    """All but the first two slots of the others."""
    rows = enumerate(view.slots["slot"].to_pylist())
    return replace(view, slots=view.slots.take([place for place, slot in rows if slot not in {"other-1", "other-2"}]))


def test_sums_that_commands_under_way_put_out_of_balance_are_not_so_before_a_run(site):
    site.others("others", times=1_000)
    assert imbalances_before(site.observer, None, 5.0) == ()
    assert site.claimed == 1


def test_accounts_that_begin_anew_meanwhile_explain_what_was_there(site):
    site.claim("others", "m")
    totals, reads = site.observer.control.totals, iter(range(2))

    def anew():
        found = totals()
        if next(reads, 1):
            found["projects"].pop("others")
        return found

    site.observer.control.totals = anew
    assert site.observer.view_and_meanwhile()[1] == {"others": {"credits": 5, "events": 2}}
