"""The reports that come with the project, and one's own."""

import pytest

from cpsim.accounting import Accounts, Figure, Note, Table, build
from cpsim.config import catalog
from cpsim.errors import CpsimError

from .conftest import cells

NAMES = [
    *("summary", "anomalies", "comparison", "concentration", "counters", "credit-over-time", "expired"),
    *("leaderboards", "machine-statement", "outcomes", "outstanding", "reconciliation", "turnaround", "user-statement"),
    "users",
]


def table(accounts, report, title):
    """The frame of a report's table."""
    (made,) = build(accounts, [report])
    (found,) = [block.frame for block in made.blocks if not isinstance(block, Note) and block.title == title]
    return found


def notes(accounts, report):
    (made,) = build(accounts, [report])
    return [block.text for block in made.blocks if isinstance(block, Note)]


def test_all_that_come_with_the_project_are_listed():
    assert catalog.report_names() == NAMES
    for name in NAMES:
        title, _ = catalog.describe_report(catalog.find_report(name))
        assert ": " in title


def test_by_default_there_are_all_that_have_something_to_say(week):
    with week.load() as accounts:
        names = [report.name for report in build(accounts)]
    assert names == [name for name in NAMES if name not in {"comparison", "reconciliation"}]


@pytest.mark.parametrize("name", NAMES)
def test_each_makes_tables_whose_columns_say_their_units(week, name):
    with week.load(timezone="Europe/Zurich") as accounts, week.load() as others:
        accounts.against = others
        (report,) = build(accounts, [name])
        assert report.blocks
        for block in report.blocks:
            assert isinstance(block, Table | Figure | Note)
            if not isinstance(block, Note):
                assert not block.frame.columns.duplicated().any()
                assert not [column for column in block.frame if column.endswith("_us")]
            if isinstance(block, Figure):
                assert {block.x, *block.y} <= set(block.frame.columns)


def test_an_empty_ledger_makes_reports_that_say_nothing_wrong(site):
    with site.load() as accounts:
        reports = build(accounts)
        assert [report.name for report in reports] == ["summary"]
        assert build(accounts, ["leaderboards"])[0].blocks == [Note("There is nothing to report.")]


def test_a_machine_statement(week):
    with week.load(since="2026-01-03", projects=["p"], top=1) as accounts:
        accounts.subjects = ("m1",)
        found = table(accounts, "machine-statement", "Machine m1")
        assert cells(found, "entry", "slot", "rule", "credits", "balance_credits") == [
            ("opening balance", None, None, None, 12),
            ("grant", "free", "as asked, or default", 1, 13),
            ("closing balance", None, None, None, 13),
        ]
        assert [at.isoformat() for at in found["at"]] == [
            "2026-01-03T00:00:00+00:00",
            "2026-01-07T00:00:00+00:00",
            "2026-01-07T00:00:00.000001+00:00",
        ]


def test_a_user_statement_shows_what_came_through_machines_that_left(site):
    site.alloc("waiting", credits=2)
    site.claim("waiting", "m")
    site.server.link([("m", "ann")])
    site.alloc("a", credits=5)
    site.claim("a", "m")
    site.server.release(["m"])
    site.alloc("since", credits=9)
    site.claim("since", "m")
    site.at(1).server.link([("n", "ann")])
    site.alloc("b", credits=3)
    site.claim("b", "n")
    with site.load() as accounts:
        found = table(accounts, "user-statement", "User ann")
        assert cells(found, "entry", "slot", "machine", "credits", "balance_credits") == [
            ("opening balance", None, None, None, 0),
            ("grant", "a", "m", 5, 5),
            ("grant", "waiting", "m", 2, 7),
            ("grant", "b", "n", 3, 10),
            ("closing balance", None, None, None, 10),
        ]


def test_a_statement_of_nobody_is_told(week):
    with week.load() as accounts:
        accounts.subjects = ("nobody",)
        with pytest.raises(CpsimError, match='no machine and no user "nobody"'):
            build(accounts, ["machine-statement"])
        accounts.subjects = ("ann",)
        assert build(accounts, ["machine-statement"])[0].blocks == [Note("There is nothing to report.")]


def test_ranks_change(site):
    """In January x leads; in February y has overtaken, and z is new."""
    for slot, machine, credits in (("a", "x", 10), ("b", "y", 5)):
        site.alloc(slot, credits=credits)
        site.claim(slot, machine)
    site.at(40)
    for slot, machine, credits in (("c", "y", 20), ("d", "z", 1)):
        site.alloc(slot, credits=credits)
        site.claim(slot, machine)
    with site.load(since="2026-02-01") as accounts:
        found = table(accounts, "leaderboards", "Leading machines")
        assert cells(found, "rank", "rank_change", "machine", "credits") == [
            (1, 1, "y", 25),
            (2, -1, "x", 10),
            (3, None, "z", 1),
        ]


def test_ties_have_one_rule_in_all_leaderboards(site):
    """Who has as much has the same rank, and then names decide; who is left out with the last rank is counted."""
    credits = {"d": 5, "b": 5, "a": 1, "c": 9, "e": 5}
    for machine, amount in credits.items():
        site.alloc(f"slot of {machine}", credits=amount)
        site.count(f"slot of {machine}", events=amount)
    site.at(0.5)
    for machine in credits:
        site.claim(f"slot of {machine}", machine)
    expected = [(1, "c", 9), (2, "b", 5), (2, "d", 5)]
    with site.at(1).load(top=3) as accounts:
        assert cells(table(accounts, "leaderboards", "Leading machines"), "rank", "machine", "credits") == expected
        recent = table(accounts, "leaderboards", "Leading machines by recent average credit")
        assert cells(recent, "rank", "machine", "credits") == expected
        assert cells(table(accounts, "counters", "Leading machines"), "rank", "machine", "total") == expected
        claims = table(accounts, "outcomes", "Claims by machine")
        assert cells(claims, "rank", "machine", "claimed") == [(1, "a", 1), (1, "b", 1), (1, "c", 1)]
        (report,) = build(accounts, ["leaderboards"])
    noted = [block.note for block in report.blocks if not isinstance(block, Note) and "machines" in block.title]
    assert all("The first 3 of 5" in note for note in noted)
    assert all(note.endswith("1 of them has the rank of the last that is shown.") for note in noted)


def test_concentration(site):
    """Of 1, 1, 2 and 4 credits: Gini 2 (1 + 2 + 6 + 16) / (4 x 8) - 5/4 = 0.3125; the first half hold a quarter."""
    for number, credits in enumerate((1, 1, 2, 4)):
        site.alloc(f"s{number}", credits=credits)
        site.claim(f"s{number}", f"m{number}")
    with site.load() as accounts:
        found = table(accounts, "concentration", "Concentration")
        assert cells(found, "of", "holders", "gini", "top_50_percent", "top_1_percent") == [
            ("machines", 4, pytest.approx(0.3125), 75, 50)
        ]


def test_outcomes(week):
    with week.load(projects=["p"]) as accounts:
        assert cells(table(accounts, "outcomes", "Ends"), "claimed", "discarded", "expired", "claimed_percent") == [
            (5, 1, 1, pytest.approx(100 * 5 / 7))
        ]
        assert cells(table(accounts, "outcomes", "Discards by reason"), "reason", "slots") == [("lost", 1)]


def test_liability(week):
    with week.load() as accounts:
        found = table(accounts, "outstanding", "Liability")
        assert cells(found, "project", "slots", "least_credits", "most_credits", "slots_without_limit") == [
            ("p", 1, 3, 0, 1)
        ]


def test_expired(week):
    with week.load() as accounts:
        last = table(accounts, "expired", "The last to expire")
        assert cells(last, "slot", "allowed_s") == [("gone", 86_400)]


def test_anomalies(make_site):
    site = make_site("reclaim")
    for number in range(40):
        site.at(number).alloc(f"s{number}", min=1, max=5)
        site.at(number + 0.2).claim(f"s{number}", "steady", credits=3)
    for number in range(20):
        site.alloc(f"f{number}", min=1, max=5)
        site.claim(f"f{number}", "greedy", credits=9)
    site.alloc("again", credits=5)
    site.claim("again", "m")
    site.claim("again", "n")
    with site.load() as accounts:
        assert cells(table(accounts, "anomalies", "Machines that are too fast"), "machine", "claimed", "fast") == [
            ("greedy", 20, 20)
        ]
        bound = table(accounts, "anomalies", "Machines that claim at the bound")
        assert cells(bound, "machine", "claims_at_maximum", "at_max_percent") == [("greedy", 20, 100)]
        unexplained = table(accounts, "anomalies", "Credit that no slot accounts for")
        assert cells(unexplained, "machine", "unexplained_credits") == [("m", 5)]
        waiting = table(accounts, "anomalies", "Credit without owner")
        assert cells(waiting, "machine", "waiting_credits") == [("steady", 120), ("greedy", 100), ("n", 5)]
        assert notes(accounts, "anomalies") == ["Nothing was found of: grants against the terms."]


def test_comparison_of_two(week, tmp_path):
    from .conftest import Site

    other = Site(tmp_path / "other")
    other.alloc("a", credits=50)
    other.claim("a", "m1")
    with week.load(projects=["p"]) as accounts, other.load() as others:
        accounts.against = others
        counts = table(accounts, "comparison", "Counts")
        assert ("credits", 45, 50, -5) in cells(counts, "what", "here", "there", "difference")
        machines = table(accounts, "comparison", "Machines that differ most")
        assert cells(machines, "machine", "credits_here", "credits_there", "difference_credits") == [
            ("m1", 13, 50, -37),
            ("m2", 20, 0, 20),
            ("m3", 12, 0, 12),
        ]


def test_without_what_it_needs_a_report_says_so(week):
    with week.load() as accounts:
        assert "name them with --against" in notes(accounts, "comparison")[0]
        assert "no client's journal" in notes(accounts, "reconciliation")[0]


def test_ones_own_report(week, tmp_path):
    own = tmp_path / "sites.py"
    own.write_text(
        '"""Sites: by the first letter of a machine."""\n'
        "from cpsim.accounting import Table\n"
        "def build(frames):\n"
        "    machines = frames.machines\n"
        "    sites = machines.groupby(machines['machine'].str[:1])['credits'].sum()\n"
        "    return [Table('By site', sites.reset_index())]\n",
        encoding="utf-8",
    )
    with week.load() as accounts:
        assert cells(table(accounts, str(own), "By site"), "machine", "credits") == [("m", 95)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"it has no function build\(frames\)"),
        ("def build(frames:", "is not Python"),
        ("def build(frames):\n    return frames.macines", "line 2: AttributeError: .*macines"),
        ("def build(frames):\n    return ['text']", r"build\(\) returned a str, not a Table"),
        ("import no_such_module", "line 1: ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_with_ones_own_report_is_told(week, tmp_path, text, message):
    own = tmp_path / "own.py"
    own.write_text(text, encoding="utf-8")
    with week.load() as accounts, pytest.raises(CpsimError, match=message):
        build(accounts, [str(own)])


def test_an_unknown_name_gets_a_suggestion(week):
    with week.load() as accounts, pytest.raises(CpsimError, match='did you mean "leaderboards"'):
        build(accounts, ["leaderboard"])


def test_two_reports_of_one_name_do_not_meet(week, tmp_path):
    """Each is loaded under a name of its own."""
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "json.py"  # nor do they get in the way of a module of that name
        path.write_text(f"from cpsim.accounting import Note\ndef build(frames):\n    return [Note('{folder}')]\n")
        paths.append(str(path))
    with week.load() as accounts:
        assert [report.blocks[0].text for report in build(accounts, paths)] == ["a", "b"]


def test_accounts_can_be_loaded_again(week):
    for _ in range(2):
        with Accounts.load(week.export()) as accounts:
            assert build(accounts, ["summary"])


def test_a_list_of_the_leading_ones_says_what_the_others_have(week):
    with week.load(projects=["p"], top=1) as accounts:
        for report, title, said in (
            ("leaderboards", "Leading machines", "The first 1 of 3; the others have 25 credits."),
            ("leaderboards", "Leading users by recent average credit", "The first 1 of 2."),
            ("outcomes", "Claims by machine", "The first 1 of 3; the others have 2 claims and 32 credits."),
            ("counters", "Leading machines", "The first 1 of each counter."),
        ):
            (made,) = build(accounts, [report])
            assert next(block.note for block in made.blocks if getattr(block, "title", "") == title).endswith(said)
    with week.load(projects=["p"]) as accounts:
        assert not [block for report in build(accounts) for block in report.blocks if "The first" in str(block)]


def test_a_distribution_and_what_it_does_not_show_are_all_slots(site):
    for number in range(1, 201):
        site.alloc(f"s{number}")
    for number in range(1, 201):
        site.at(number / 100).claim(f"s{number}", "m")
    with site.load() as accounts:
        (report,) = build(accounts, ["turnaround"])
        (figure,) = [block for block in report.blocks if isinstance(block, Figure)]
        hidden = int(figure.note.split()[0])
        assert (figure.frame["slots"].sum() + hidden, hidden > 0) == (200, True)


def test_without_accounts_their_number_is_not_known(week):
    folder = week.export()
    (folder / "accounts.parquet").unlink()
    with Accounts.load(folder) as accounts, Accounts.load(folder) as others:
        accounts.against = others
        counts = table(accounts, "comparison", "Counts")
        assert ("machines", None, None) in cells(counts, "what", "here", "there")
        assert ("claimed", 6, 6) in cells(counts, "what", "here", "there")
        accounts.against = None
