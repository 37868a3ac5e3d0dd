"""`cpsim verify --random`: sequences that Hypothesis thinks up, and what is left of one that deviates."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpdaemon.commands import Alloc, Claim, Meta
from cpdaemon.endpoint import parse_endpoint
from cpsim.conformance.target import Target, reach
from cpsim.conformance.walk import walk
from cpsim.fake import ANY_PORT, Fake
from cpsim.judge.quirks import BREAKING
from cpsim.quirks import PROFILES
from cpsim.server.ledger import Ledger

CREDENTIALS = ("p", "hush")
BREAKING = sorted(BREAKING)


@pytest.fixture
def walks(tmp_path, monkeypatch):
    """walks(quirks, known=..., tier=...) -> what random sequences show of a fake with these quirks."""
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text(CREDENTIALS[1], encoding="utf-8")

    def run(*quirks, known=(), tier="server", count=25, then=lambda found: None, first=lambda fake: None):
        with Fake(dict([CREDENTIALS]), unix=Path("cp.sock"), http=ANY_PORT, quirks=frozenset(quirks)) as fake:
            first(fake)
            server = parse_endpoint(fake.addresses["http"])
            daemon = parse_endpoint("./cp.sock")
            target = {
                "server": Target(server=server, credentials=CREDENTIALS, quirks=frozenset(known)),
                "pair": Target(daemon=daemon, server=server, credentials=CREDENTIALS, quirks=frozenset(known)),
                "daemon": Target(daemon=daemon),
            }[tier]
            target_view = reach(target, most=100_000)
            found = walk(target_view, count, seed=7)
            then(found)
        return found

    return run


@pytest.mark.parametrize("tier", ["server", "pair"])
def test_nothing_deviates_from_what_is_documented(walks, tier):
    found = walks(tier=tier)
    assert (found.ruling, found.deviation, found.not_verified) == ("valid", None, "")
    assert found.sequences >= 25
    assert found.commands > found.sequences
    assert found.python() == found.shell() == []


@pytest.mark.parametrize("tier", ["server", "pair"])
def test_nothing_can_be_left_out_of_what_is_shown(walks, tier):
    found = walks("reclaim", tier=tier, count=60)
    assert found.ruling == "invalid"
    kinds = [command.kind for command in found.sequence]
    assert kinds == ["alloc", "claim", "claim"]
    assert len({command.slot for command in found.sequence}) == 1


@pytest.mark.parametrize("tier", ["server", "pair"])
@pytest.mark.parametrize(
    ("has", "known"),
    [
        *(([name], [name]) for name in BREAKING),
        (["meta-dropped"], ["meta-dropped"]),
        (PROFILES["deployed"], PROFILES["deployed"]),
        ([], PROFILES["deployed"]),
    ],
)
def test_quirks_that_are_known_do_not_count(walks, has, known, tier):
    found = walks(*has, known=known, tier=tier, count=12 if len(known) == 1 else 8)
    assert (found.ruling, found.deviation, found.not_verified) == ("valid", None, "")
    assert {name for names in found.known_quirks for name in names.split(" + ")} <= set(known) & set(has)


@pytest.mark.parametrize("tier", ["server", "pair"])
@pytest.mark.parametrize("quirk", BREAKING)
def test_a_loss_beside_a_known_quirk_is_found(walks, quirk, tier):
    def lose(fake):
        with fake.accounts.reading() as ledger:
            apply_all = ledger.apply_all

            def apply(project, calls, now_us, **options):
                calls = list(calls)
                refusals = apply_all(project, calls, now_us, **options)
                for machine in (arguments["machine"] for kind, arguments in calls if kind == "claim"):
                    if machine in ledger.projects[project].machines:
                        ledger.projects[project].machines[machine].earned.credits -= 1
                return refusals

            ledger.apply_all = apply

    found = walks(quirk, known=[quirk], tier=tier, count=60, first=lose)
    assert found.ruling == "invalid"
    assert "credits" in str(found.deviation)


def test_a_quirk_that_is_not_known_is_found_beside_one_that_is(walks):
    found = walks("meta-dropped", "reclaim", known=["meta-dropped"], count=60)
    assert [command.kind for command in found.sequence] == ["alloc", "claim", "claim"]


@pytest.mark.thorough
def test_the_user_names_quirks(walks, cpsim):
    def verify(*options):
        def verified(fake):
            where = [fake.addresses["http"], "--project", CREDENTIALS[0], "--secret-file", "secret"]
            given = ["--random", "25", "--seed", "7", "--max-rate", "100000"]
            results.append(cpsim("verify", *where, *given, *options))

        walks("meta-dropped", count=1, first=verified)
        return results.pop()

    results = []
    status, out, _ = verify("--quirk", "meta-dropped")
    assert (status, "verdict valid but for known quirks" in out) == (0, True)
    assert "the known quirk meta-dropped shows" in out
    assert verify("--quirk", "reclaim")[0] == 1
    status, out, _ = verify("--profile", "deployed", "--json")
    assert (status, json.loads(out)["known_quirks"].keys()) == (0, {"meta-dropped"})


def test_metadata_that_is_dropped_unread_shows_in_replies(walks):
    found = walks("meta-dropped")
    assert [type(command) for command in found.sequence] == [Meta]
    assert found.deviation.got == "accepted"


def test_metadata_that_is_lost_shows_in_the_accounts(walks, monkeypatch):
    monkeypatch.setattr(Ledger, "_meta", lambda *_: None)
    found = walks()
    assert [type(command) for command in found.sequence] == [Alloc, Meta]
    assert '"meta": {}' in found.deviation.got


def test_a_daemon_alone_proves_nothing(walks):
    found = walks(tier="daemon", count=5)
    assert found.ruling == "unknown"
    assert "--server URL" in found.not_verified


def test_one_seed_sends_the_same_commands(walks):
    counts = {walks(count=10).commands for _ in range(2)}
    assert len(counts) == 1


@pytest.mark.thorough
def test_the_script_of_client_calls_repeats_it(walks):
    def repeat(found):
        lines = "\n".join(found.python())
        done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True, timeout=280)
        assert [line.rpartition(" ")[2] for line in done.stdout.splitlines()] == ["accepted"] * 3, done.stdout

    found = walks("reclaim", count=60, then=repeat)
    assert isinstance(found.sequence[-1], Claim)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--random", "0"), "0 is not in the range"),
        (("--random", "5", "-k", "CLAIM-1"), "replaces the clauses"),
        (("--random", "5", "--dry-run"), "replaces the clauses"),
    ],
)
def test_wrong_usage(tmp_path, options, said):
    command = [sys.executable, "-P", "-m", "cpsim", "verify", *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=280)
    assert run.returncode == 64
    assert said in run.stderr


@pytest.mark.thorough
def test_the_command_line(tmp_path):
    command = [sys.executable, "-P", "-m", "cpsim", "verify", "--random", "5", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=280)
    assert (run.returncode, run.stderr) == (0, "")
    assert '"verdict": "valid"' in run.stdout
    assert list(tmp_path.iterdir()) == []
