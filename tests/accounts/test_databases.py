"""Accounts in PostgreSQL and Redis, processes of their own: nothing is changed there, and what is shown is judged."""

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa
from deployed_accounts import DeployedAccounts
from foreign import serving

from cpsim.accounts.observer import CannotObserve
from cpsim.accounts.sources import parse_source

CHALLENGE = ["challenge", "--set", "arrivals.jobs=40", "--set", "population.machines=8"]
MISSING = "is not installed: apt-get install postgresql redis-server, or brew install postgresql redis"
SECRET = "hush%hush"


def program(name):
    places = [os.environ["PATH"], *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))]
    found = shutil.which(name, path=os.pathsep.join(places))
    assert found is not None, f"{name} {MISSING}"
    return found


@contextmanager
def started(command, **options):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        yield
    finally:
        process.terminate()
        process.wait(100)


@pytest.fixture(scope="module")
def folder():
    """A folder for the databases, which the user can enter as whom PostgreSQL runs: it refuses to run as root."""
    with tempfile.TemporaryDirectory(prefix="cpsim-db-") as name:
        if os.getuid() == 0:
            os.chown(name, pwd.getpwnam("postgres").pw_uid, pwd.getpwnam("postgres").pw_gid)
        yield Path(name)


@pytest.fixture(scope="module")
def databases(folder, wait_for):
    """PostgreSQL and Redis at UNIX sockets of their own: URLs, and clients of both."""
    data, socket, password = folder / "data", folder / "redis.sock", folder / "password"
    is_root = os.getuid() == 0
    postgres_as = {"user": "postgres", "group": "postgres", "extra_groups": []} if is_root else {}
    password.write_text(f"{SECRET}\n", encoding="utf-8")
    make = [program("initdb"), "-D", data, "-U", "owner", "--pwfile", password, "-A", "scram-sha-256", "--no-sync"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd=folder, **postgres_as)
    serve = [program("postgres"), "-D", data, "-k", folder, "-c", "listen_addresses=", "-F"]
    store = [program("redis-server"), "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
    url = sa.URL.create("postgresql+psycopg", "owner", SECRET, database="postgres", query={"host": str(folder)})
    with started(serve, cwd=folder, **postgres_as), started(store, cwd=folder):
        engine = sa.create_engine(url)
        wait_for(lambda: answers(lambda: engine.connect().close(), sa.exc.OperationalError))
        client = redis.Redis(unix_socket_path=str(socket), decode_responses=True)
        wait_for(lambda: answers(client.ping, redis.ConnectionError))
        yield url, f"unix://{socket}", engine, client
        client.close()
        engine.dispose()


def answers(ask, error):
    try:
        ask()
    except error:
        return False
    return True


@pytest.fixture
def accounts(databases, monkeypatch, tmp_path):
    """Accounts in both, empty before the run but for what a user was paid for a slot that is gone."""
    url, store_url, engine, store = databases
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text("hush", encoding="utf-8")
    monkeypatch.setenv("CREDITPIGGY_DATABASE", url.render_as_string(hide_password=False))
    monkeypatch.setenv("CREDITPIGGY_REDIS", store_url)
    monkeypatch.setenv("CREDITPIGGY_REDIS_PREFIX", "cp:")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    store.flushall()
    made = DeployedAccounts(engine, store)
    made.apply("alloc", {"slot": "before", "min": 2, "max": 4})
    made.apply("counters", {"slot": "before", "job/events": 30})
    made.apply("claim", {"slot": "before", "machine": "of-ann", "credits": 3})
    return made


@pytest.fixture
def cpsim(cpsim):
    def call(*arguments):
        status, out, err = cpsim(*arguments)
        return status, json.loads(out) if out else None, err

    return call


def test_the_program_shows_counters_too_and_what_is_wrong_in_either_store_is_found(accounts, cpsim):
    with serving(accounts) as url:
        target = ["--target", f"{url}/api", "--project", "p", "--secret-file", "secret", "--output", "out"]
        status, document, err = cpsim("run", *CHALLENGE, *target, "--accounts", "program:deployed", "--json")
    assert (status, err, document["verdict"], document["anomalies"]) == (2, "", "unknown", [])
    assert document["checked"] == {"slots": 40, "replies": document["operations"]}
    assert [sentence.partition(":")[0] for sentence in document["not_verified"]] == [
        "The metadata of slots",
        "Whether machines have what their slots granted",
    ]
    view = parse_source("program:deployed").read(60.0)
    assert view.users.to_pylist() == [{"project": "p", "user": "ann", "credits": 3, "counters": [("job/events", 30)]}]
    claimed, other, *_ = accounts.run("SELECT id FROM core_creditslot WHERE machine_id IS NOT NULL AND status = 0")
    accounts.store.hincrby(f"cp:metrics/creditpiggy.core.models.CreditSlot/{claimed['id']}/counters", "job/events", 1)
    accounts.run(f"UPDATE core_creditslot SET credits = credits + 1 WHERE id = {other['id']}")
    status, document, err = cpsim("judge", "out", "--accounts", "program:deployed", "--json")
    assert (status, err, document["anomalies_by_name"]) == (1, "", {"altered": 1, "over-credited": 1})
    status, document, err = cpsim("judge", "out", "--accounts", "sql:deployed", "--json")
    assert (status, err, document["anomalies_by_name"]) == (1, "", {"over-credited": 1})


def test_a_database_is_only_read_and_its_secret_is_not_shown(accounts, databases, monkeypatch):
    url = databases[0]
    accounts.run("CREATE SEQUENCE numbers")
    accounts.apply("alloc", {"slot": "kept"})
    for query, said in (
        ("DELETE FROM core_creditslot RETURNING 'p' AS project, uuid AS slot", "failed: syntax error at or near"),
        ("SELECT 'p' AS project, nextval('numbers')::text AS slot", r"cannot execute nextval\(\) in a read-only"),
    ):
        tables = f'url_variable = "CREDITPIGGY_DATABASE"\n[tables]\nslots = "{query}"\n'
        Path("map.toml").write_text(tables, encoding="utf-8")
        with pytest.raises(CannotObserve, match=said):
            parse_source("sql:map.toml").read(60.0)
    assert list(accounts.slots) == ["kept"]
    slow = "[tables]\nslots = \"SELECT 'p' AS project, pg_sleep(1000)::text AS slot\"\n"
    Path("map.toml").write_text(f'url_variable = "CREDITPIGGY_DATABASE"\n{slow}', encoding="utf-8")
    with pytest.raises(CannotObserve, match="canceling statement due to statement timeout"):
        parse_source("sql:map.toml").read(0.1)
    wrong = url.set(password="wrong%hush").render_as_string(hide_password=False)
    monkeypatch.setenv("CREDITPIGGY_DATABASE", wrong)
    for source in ("sql:deployed", "program:deployed"):
        with pytest.raises(CannotObserve, match="password authentication failed") as refused:
            parse_source(source).read(60.0)
        assert "hush" not in str(refused.value)


def test_whole_sums_of_postgresql_and_its_json_are_numbers_and_maps(accounts):
    for number in range(3):
        accounts.apply("alloc", {"slot": f"s{number}", "credits": 2**30})
    query = (
        "SELECT 'p' AS project, 'u' AS \"user\", SUM(credits::bigint) AS credits, "
        "json_object_agg(uuid, credits) AS counters FROM core_creditslot WHERE uuid LIKE 's%'"
    )
    Path("map.toml").write_text(f"url_variable = 'CREDITPIGGY_DATABASE'\n[tables]\nusers = '''{query}'''\n")
    (user,) = parse_source("sql:map.toml").read(60.0).users.to_pylist()
    assert user["credits"] == 3 * 2**30
    assert dict(user["counters"]) == {f"s{number}": 2**30 for number in range(3)}


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CREDITPIGGY_REDIS", "unix:///nowhere/hush.sock", "Redis: Error 2 connecting to"),
        ("CREDITPIGGY_REDIS", "", "the environment variable CREDITPIGGY_REDIS is not set"),
        ("CREDITPIGGY_DATABASE", "", "the environment variable CREDITPIGGY_DATABASE is not set"),
    ],
)
def test_the_program_says_what_it_lacks(accounts, monkeypatch, variable, value, said):
    monkeypatch.setenv(variable, value)
    with pytest.raises(CannotObserve, match=f"program:deployed ended with status 1; it says: {said}"):
        parse_source("program:deployed").read(60.0)
