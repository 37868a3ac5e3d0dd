"""Each quirk, switched on alone, is found by the clauses that docs/conformance.md says, and nothing else is found."""

import re
from pathlib import Path

import pytest

from cpsim.conformance.clause import Level, Need, catalogue
from cpsim.quirks import NAMED, QUIRKS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/conformance.md").read_text(encoding="utf-8")
FOUND = {
    quirk: re.findall(r"[A-Z]+-\d+", ids)
    for quirk, ids in re.findall(r"^\| `([\w-]+)` \| (?:server|daemon) \| (.+) \|$", PAGE, re.MULTILINE)
}


BEYOND_THE_FAKE = {("EXPIRE-3", "expire-live")}
"""What the operator of a deployed server can turn on."""


def by_default(id):
    """Whether a clause of the pair is examined without --thorough."""
    return not {Need.BEHIND, Need.RESTART, Need.THOROUGH} & {*catalogue()[id].needs}


OF_THE_PAIR = {quirk: seen for quirk, ids in FOUND.items() if (seen := [id for id in ids if by_default(id)])}

KEPT_S = {"flush-starves": 3.0}
"""For quirks that show only where a daemon keeps commands for a while: longer than a busy machine holds up the next."""


@pytest.mark.parametrize("quirk", OF_THE_PAIR)
def test_a_quirk_is_found_under_its_own_name_and_nothing_else_is(examine_fake, of_the_pair, unseen, quirk):
    """Of the clauses that should find nothing, each quirk meets every fifth, and every clause a fifth of the quirks."""
    place = list(OF_THE_PAIR).index(quirk)
    others = [] if quirk in KEPT_S else [id for number, id in enumerate(of_the_pair) if (number + place) % 5 == 0]
    clauses = {*OF_THE_PAIR[quirk], *others}
    outcome = examine_fake({quirk}, clauses, flush_interval_s=KEPT_S.get(quirk, 0.0))
    assert outcome.deviant == dict.fromkeys(OF_THE_PAIR[quirk], quirk)
    is_must = any(catalogue()[id].level is Level.MUST for id in OF_THE_PAIR[quirk])
    assert outcome.ruling == ("invalid" if is_must else "valid")
    assert unseen(outcome) == set()


@pytest.mark.parametrize("quirk", KEPT_S)
def test_nor_is_anything_else_found_where_commands_are_kept_for_a_while(examine_fake, of_the_pair, quirk):
    others = [id for number, id in enumerate(of_the_pair) if number % 5 == 0 and id not in OF_THE_PAIR[quirk]]
    assert examine_fake({quirk}, others, flush_interval_s=0.2).ruling == "valid"


@pytest.mark.parametrize("quirk", OF_THE_PAIR)
def test_and_does_not_count_where_it_is_known(examine_fake, quirk):
    kept_s = KEPT_S.get(quirk, 0.0)
    outcome = examine_fake({quirk}, OF_THE_PAIR[quirk], profile="deployed", flush_interval_s=kept_s)
    assert outcome.ruling == "valid"
    assert outcome.quirks == [quirk]
    assert outcome.counts == {"known quirk": len(OF_THE_PAIR[quirk])}


def test_the_page_speaks_of_every_quirk(page):
    assert list(FOUND) == list(QUIRKS)
    middle = {quirk: seen for quirk, ids in FOUND.items() if (seen := [id for id in ids if "FORWARD" in id])}
    assert middle == page.OF_THE_MIDDLE | page.OF_BOTH


def test_the_page_is_current(page):
    assert page.page(FOUND) == PAGE


def test_every_clause_that_can_name_a_quirk_does():
    for clause in catalogue().values():
        for quirk in set(clause.quirks) - NAMED.keys():
            # nor is the fake started again
            seen = clause.id in FOUND[quirk] or Need.RESTART in clause.needs
            assert seen or (clause.id, quirk) in BEYOND_THE_FAKE
