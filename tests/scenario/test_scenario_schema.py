import re
from pathlib import Path

import pytest

from cpsim.config import catalog
from cpsim.scenario import ScenarioError, load_workload, schema, source, values
from cpsim.scenario.models import arrivals, numbers, run_times, volunteers

VALID = """
description = "test"
duration = "1h"
[population]
machines = 3
users = 2
[arrivals]
model = "constant"
jobs = 10
[run_time]
model = "constant"
value = "1min"
"""


def with_line(section, line):
    """VALID with a line put into, or instead of the same key in, a section ("" is the top level)."""
    key = line.partition("=")[0].strip()
    parts = re.split(r"(?m)^(?=\[)", VALID)
    wanted = [part for part in parts if part.startswith(f"[{section}]" if section else "\n")]
    if not wanted:
        return f"{VALID}[{section}]\n{line}\n"
    kept = re.sub(rf"(?m)^{re.escape(key)} =.*\n", "", wanted[0])
    parts[parts.index(wanted[0])] = f"{kept}{line}\n"
    return "".join(parts)


def test_a_small_scenario_needs_little():
    scenario = source.parse(VALID, "folder/my site.toml")
    assert scenario.name == "my-site"
    assert scenario.duration == 3_600_000_000
    assert scenario.seed == 1
    assert scenario.outcome.claim == 1


TIME = "a time with its unit, up to 3650d, such as 500ms, 90s, 5min, 8h or 1d"
MISTAKES = [
    ("", "durration = 1", 'durration: unknown key: expected one of name, .*; did you mean "duration"?'),
    ("", "duration = 5", f"duration = 5: expected {TIME}"),
    ("", 'duration = "5 parsecs"', f'duration = "5 parsecs": expected {TIME}'),
    ("", 'duration = "0s"', f'duration = "0s": expected {TIME}'),
    ("", 'duration = "4000d"', f'duration = "4000d": expected {TIME}'),
    ("", "description = 1979-05-27", "description = 1979-05-27: expected text"),
    ("", "seed = -1", "seed = -1: expected a whole number from 0 up"),
    ("", 'name = "a,b"', 'name = "a,b": expected text without , = or control characters'),
    ("", 'expire = "90s"', "expire = 90s: expected whole minutes"),
    ("", "credits = 3", "credits = 3: expected a table with its policy"),
    ("population", "machines = 0", "population.machines = 0: expected a whole number from 1 to 10,000,000"),
    ("population", "machines = true", "population.machines = true: expected a whole number"),
    ("population", "machines = 2.5", "population.machines = 2.5: expected a whole number"),
    ("population", f"machines = {'9' * 200}", "population.machines = 9+…: expected a whole number"),
    ("population", "linked = 1.5", "population.linked = 1.5: expected a number from 0 to 1"),
    ("population", "linked = nan", "population.linked = nan: expected a number from 0 to 1"),
    ("population", "users = 0", "population: linked = 1 needs at least one user: raise users, or set linked = 0"),
    ("population", "host = 1", "population.host: unknown key: expected one of machines, users, linked"),
    ("arrivals", 'model = "poison"', 'arrivals.model = "poison": .*; did you mean "poisson"?'),
    ("arrivals", "model = [1]", r'arrivals.model = \[1\]: expected one of "constant", "poisson", "diurnal"'),
    ("arrivals", "rate = 1", "arrivals.rate: unknown key: expected one of model, jobs"),
    ("arrivals", 'jobs = "ten"', 'arrivals.jobs = "ten": expected a whole number from 1 to 100,000,000'),
    ("arrivals", 'model = "diurnal"', "arrivals.peak_hour is missing: expected an hour of the day"),
    ("run_time", 'model = "lognormal"\nmedian = "1h"', "run_time.value: unknown key"),
    ("run_time", 'value = "1"', f'run_time.value = "1": expected {TIME}'),
    ("outcome", "claim = 0.5\nnever = 0.2", r"outcome: the shares \(claim, never, discard\) sum to 0.7, and must"),
    ("outcome", "claim = 0.9\ndiscard = { late = 2 }", "outcome.discard.late = 2: expected a number from 0 to 1"),
    ("outcome", 'claim = 0.9\ndiscard = { "a=b" = 0.1 }', 'outcome.discard."a=b": unusable key: expected text without'),
    ("credits", 'policy = "fix"\ncredits = 3', 'credits.policy = "fix": .*; did you mean "fixed"?'),
    ("credits", "credits = 3", 'credits.policy is missing: expected one of "fixed", "range", "none"'),
    ("credits", 'policy = "range"', "credits: a range needs min or max, or both"),
    ("credits", 'policy = "range"\nmin = 3\nmax = 2', "credits: min = 3 is above max = 2: swap them"),
    ("credits", 'policy = "none"\nclaim = -1', "credits: claim = -1: a claim cannot ask for less than 0"),
    ("credits", 'policy = "range"\nmin = 0\nclaim = { model = "uniform", low = -5, high = 2 }', "credits: claim = -5"),
    ("counters.claim", '"a,b" = 1', 'counters.claim."a,b": unusable key: expected a name without'),
    ("counters.claim", '"a\\n" = 1', "unusable key"),
    ("counters.claim", "Slot = 1", "counters.claim.Slot: unusable key: .* other than slot"),
    ("counters.claim", "a = 1.5", "counters.claim.a = 1.5: expected a whole number .* or a table with its model"),
    ("counters.claim", 'a = { model = "uniform", low = 3, high = 2 }', "counters.claim.a: low = 3 is above high = 2"),
    ("counters.claim", "a = {}", 'counters.claim.a.model is missing: expected one of "uniform", "poisson", "run_time"'),
    ("counters.claims", "a = 1", 'counters.claims: unknown key: expected one of claim, discard; did you mean "claim"?'),
    ("counters.claim", f"{'a' * 1400} = 1", r"counters.claim: makes a frame of up to 1,5.. bytes"),
    ("metadata", "a = []", r"metadata.a = \[\]: expected a list of at least one text or a table"),
    ("metadata", 'a = ["x", " y"]', r'metadata.a\[1\] = " y": expected text without'),
    ("metadata", f'a = ["{"x" * 1500}"]', r"metadata: makes a frame of up to 1,6.. bytes"),
    ("metadata", 'a = { faker = "contry_code" }', 'metadata.a: faker = "contry_code" .*; did you mean "country_code"?'),
    ("metadata", 'a = { faker = "seed" }', 'metadata.a: faker = "seed" is no provider of Faker'),
]  # fmt: skip


@pytest.mark.parametrize(("section", "line", "message"), MISTAKES)
def test_a_mistake_is_located(section, line, message):
    with pytest.raises(ScenarioError, match=f"^site.toml: .*{message}".replace("?", r"\?")):
        source.parse(with_line(section, line), "site.toml")


@pytest.mark.parametrize("key", ["description", "duration", "population", "arrivals", "run_time"])
def test_what_is_required_is_missed(key):
    text = re.sub(rf"(?ms)^({key} =.*?\n|\[{key}\].*?(?=^\[|\Z))", "", VALID)
    with pytest.raises(ScenarioError, match=f"{key} is missing: expected"):
        source.parse(text, "site.toml")


def test_broken_toml_names_file_and_line():
    with pytest.raises(ScenarioError, match=r"site.toml: not TOML: .*line 2"):
        source.parse("a = 1\nb = \n", "site.toml")


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "site.toml"
    path.write_bytes(b"description = '\xff'")
    with pytest.raises(ScenarioError, match=r"site.toml: not UTF-8"):
        source.load(path)


def test_other_suffixes_are_refused(tmp_path):
    (tmp_path / "x.txt").write_text("something else\n")
    with pytest.raises(ScenarioError, match=r"x.txt: expected a scenario \(.toml\), .*, or a job log: "):
        load_workload(tmp_path / "x.txt")


def test_a_table_whose_first_line_has_no_end_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("x" * 300_000)
    with pytest.raises(ScenarioError, match=r"x\.csv"):
        load_workload(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("text", "time_us"),
    [("500ms", 500_000), ("90s", 90_000_000), ("1.5h", 5_400_000_000), ("2 d", 172_800_000_000)],
)
def test_durations(text, time_us):
    assert values.Duration(text) == time_us


@pytest.mark.parametrize("text", ["0s", "0.0005ms", "11000d", f"{'9' * 400}s", "90", ""])
def test_no_durations(text):
    with pytest.raises(ValueError, match="expected "):
        values.Duration(text)


DOCUMENT = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text(encoding="utf-8")


def test_every_key_is_documented():
    modules = (schema, arrivals, numbers, run_times, volunteers)
    for kind in [kind for module in modules for kind in vars(module).values()]:
        for key in getattr(kind, "__struct_fields__", ()):
            assert re.search(rf"[`\[ ]{key}[`\]. ]", DOCUMENT), key


def test_paths_are_found(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(VALID)
    assert load_workload(catalog.find_scenario(str(path))).name == "mine"


def test_faults_are_checked_where_they_are_written():
    assert source.parse('faults = ["late=1:kind=claim"]' + VALID, "x.toml").faults == ["late=1:kind=claim"]
    with pytest.raises(ScenarioError, match=r"x.toml: faults\[1\]: .*did you mean 'hang'"):
        source.parse('faults = ["late=1", "hangs"]' + VALID, "x.toml")
