"""Sources of anybody's accounts: all kinds show the same, what is wrong is named, and nothing secret is."""

import json
import os
import shlex
import socket
import sqlite3
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from claims_alone import claims_alone
from foreign import Accounts, ledger, serving, written

from cpsim import fake
from cpsim.accounts.observer import CannotObserve, NothingNew
from cpsim.accounts.sources import parse_source
from cpsim.accounts.view import ACCOUNTS, CONTRACTS
from cpsim.errors import CpsimError, UsageError
from cpsim.run.observing import LONGEST_WAIT, conclude
from cpsim.testing.clock import ManualClock

PAUSE_S = 60.0
CALLS = [
    *(("alloc", {"slot": f"s{n}", "min": 5, "max": 20}) for n in range(4)),
    ("counters", {"slot": "s0", "job/events": 2**40}),
    ("meta", {"slot": "s0", "site": "Zürich"}),
    ("claim", {"slot": "s0", "machine": "m1", "credits": 9}),
    ("claim", {"slot": "s1", "machine": "m2", "credits": 90}),
    ("discard", {"slot": "s2", "reason": "late"}),
]


@pytest.fixture
def accounts():
    made = Accounts()
    for kind, given in CALLS:
        made.apply(kind, dict(given))
    return made


def tables_of(accounts):
    """The tables with all columns of the contract that the accounts have, in its types."""
    found = {}
    for kind, rows in accounts.rows().items():
        fields = [field for field in CONTRACTS[f"{kind}s"].schema if any(field.name in row for row in rows)]
        columns = {
            field.name: [list(v.items()) if isinstance(v := row.get(field.name), dict) else v for row in rows]
            for field in fields
        }
        found[f"{kind}s"] = pa.table(columns, pa.schema(fields))
    return found


def a_folder_of_lines(accounts, here):
    return str(written(accounts, here / "folder"))


def a_folder_of_parquet(accounts, here):
    for name, table in tables_of(accounts).items():
        pq.write_table(table, here / f"{name}.parquet")
    return str(here)


def a_folder_as_the_control_api_has_it(accounts, here):
    tables = tables_of(accounts)
    pq.write_table(tables.pop("slots"), here / "slots.parquet")
    parts = [
        table.rename_columns({name[:-1]: "id"} | ({"project": "id"} if name == "projects" else {}))
        .append_column("kind", pa.array([name[:-1]] * len(table)))
        .append_column("project", pa.array(["p"] * len(table)))
        if name == "projects"
        else table.rename_columns({name[:-1]: "id"}).append_column("kind", pa.array([name[:-1]] * len(table)))
        for name, table in tables.items()
    ]
    pq.write_table(pa.concat_tables(parts, promote_options="default"), here / "accounts.parquet")
    return str(here)


def a_file_of_lines(accounts, here):
    (here / "all.jsonl").write_bytes(b"\n" + ledger(accounts))
    return str(here / "all.jsonl")


def a_program(accounts, here):
    (here / "all.jsonl").write_bytes(ledger(accounts).removesuffix(b"\n"))
    return f"program:cat {shlex.quote(str(here / 'all.jsonl'))}"


def a_database(accounts, here):
    database = sqlite3.connect(here / "it's 100%.db")
    queries = []
    for name, table in tables_of(accounts).items():
        columns = ", ".join(f'"{column}"' for column in table.column_names)
        database.execute(f"CREATE TABLE {name} ({columns})")
        marks = ", ".join("?" * table.num_columns)
        for row in table.to_pylist(maps_as_pydicts="strict"):
            values = [json.dumps(value) if isinstance(value, dict) else value for value in row.values()]
            database.execute(f"INSERT INTO {name} VALUES ({marks})", values)
        queries.append(f"{name} = 'SELECT {columns} FROM {name} WHERE project LIKE ''%''".replace("''", '"') + "'")
    database.commit()
    database.close()
    url = f'url = "sqlite:///{here / chr(105)}t\'s 100%.db"\n'
    (here / "map.toml").write_text(url + "[tables]\n" + "\n".join(queries), encoding="utf-8")
    return f"sql:{here / 'map.toml'}"


def same(view, accounts):
    """Whether a view shows all that the accounts have."""
    for name, table in tables_of(accounts).items():
        shown = getattr(view, name)
        for column in table.column_names:
            assert shown[column].to_pylist() == table[column].to_pylist(), (name, column)
    return True


@pytest.mark.parametrize(
    "kind",
    [
        a_folder_of_lines,
        a_folder_of_parquet,
        a_folder_as_the_control_api_has_it,
        a_file_of_lines,
        a_program,
        a_database,
    ],
)
def test_all_kinds_show_the_same(accounts, tmp_path, kind):
    assert same(parse_source(kind(accounts, tmp_path)).read(PAUSE_S), accounts)


@pytest.mark.parametrize("kind", [a_folder_of_lines, a_folder_of_parquet, a_folder_as_the_control_api_has_it])
def test_documents_over_http_show_the_same(accounts, tmp_path, kind):
    folder = Path(kind(accounts, tmp_path))
    documents = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serving(accounts, lambda _: documents) as url:
        assert same(parse_source(f"{url}/shown").read(PAUSE_S), accounts)


def test_one_document_over_http_is_one_file(accounts):
    with serving(accounts, lambda accounts: {"all.jsonl": ledger(accounts)}) as url:
        assert same(parse_source(f"{url}/shown/all.jsonl").read(PAUSE_S), accounts)
        with pytest.raises(CannotObserve, match=f"there are no accounts at {url}/shown/none.jsonl"):
            parse_source(f"{url}/shown/none.jsonl").read(PAUSE_S)
        with pytest.raises(CannotObserve, match=rf"^{url}/shown: none of slots\.parquet, slots\.jsonl, .* is there"):
            parse_source(f"{url}/shown").read(PAUSE_S)


def test_a_document_that_breaks_off_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/all.jsonl"
        with pytest.raises(CannotObserve, match=rf"^all\.jsonl at {url}: .*98 more expected"):
            parse_source(url).read(PAUSE_S)
        thread.join()


def test_many_rows_are_read_by_the_chunk(tmp_path):
    count = 70_000
    (tmp_path / "slots.jsonl").write_text(
        "".join(
            json.dumps({"project": "p", "slot": f"s{n}"} | ({} if n else {"machine": None})) + "\n"
            for n in range(count)
        )
    )
    slots = parse_source(str(tmp_path)).read(PAUSE_S).slots
    assert len(slots) == count
    assert slots["slot"].num_chunks > 1
    assert slots.column_names == ["project", "slot", "machine"]


def test_a_document_without_rows_is_shown_and_one_that_is_not_there_is_not(accounts, tmp_path):
    folder = written(accounts, tmp_path / "folder")
    (folder / "users.jsonl").write_bytes(b"")
    (folder / "machines.jsonl").unlink()
    view = parse_source(str(folder)).read(PAUSE_S)
    assert (len(view.users), view.machines) == (0, None)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        (
            "slots.jsonl",
            '{"project": "p", "slot": "s", "granted": 1.5}',
            r"slots\.jsonl: line 2: column `granted` of .* is 1\.5",
        ),
        ("slots.jsonl", "{", r"slots\.jsonl: line 2 is no object of JSON, but begins b'\{'"),
        ("users.jsonl", '{"user": "u"}', "users.* is null in 1 of 2 rows"),
    ],
)
def test_what_does_not_fit_in_a_file_is_named(tmp_path, name, line, message):
    (tmp_path / name).write_text('{"project": "p", "slot": "s", "user": "v"}\n' + line, encoding="utf-8")
    with pytest.raises(CannotObserve, match=message):
        parse_source(str(tmp_path)).read(PAUSE_S)


def test_what_is_there_twice_or_is_no_table_is_named(accounts, tmp_path):
    folder = written(accounts, tmp_path / "folder")
    (folder / "slots.parquet").write_bytes(b"PAR1")
    with pytest.raises(CannotObserve, match=r"there are both slots\.parquet and slots\.jsonl: remove one"):
        parse_source(str(folder)).read(PAUSE_S)
    (folder / "slots.jsonl").unlink()
    with pytest.raises(CannotObserve, match=r"slots\.parquet is damaged or cut short, not whole Parquet"):
        parse_source(str(folder)).read(PAUSE_S)
    pq.write_table(ACCOUNTS.empty_table(), folder / "accounts.parquet")
    (folder / "slots.parquet").unlink()
    with pytest.raises(CannotObserve, match=r"there are both accounts\.parquet and machines\.jsonl: remove one"):
        parse_source(str(folder)).read(PAUSE_S)
    with pytest.raises(CannotObserve, match=r"nothing says which table it is: name it slots\.parquet or"):
        parse_source(str(folder / "accounts.parquet")).read(PAUSE_S)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "there are no accounts at nowhere: expected a file or folder, http"),
        ("http://u:hush@h/accounts", "a URL must not hold credentials"),
        ("http://h/a?token=hush", "a base URL has no query"),
        ("program:", "program: names no program"),
        ("program:cat 'x", "cannot be split into words"),
        ("sql:", "sql: names no file: write sql:FILE"),
        ("sql:deploy", 'no mapping "deploy": .* did you mean "deployed"'),
    ],
)
def test_what_names_no_source_is_refused_at_once(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CpsimError, match=message) as refused:
        parse_source(text)
    assert "hush" not in str(refused.value)


# Programs

FAILING = {
    "its status": (
        "import sys; print('{}'); sys.exit('oh\\nno')",
        r"line 1 has no `type`, expected slot|ended with status 1; it says: no$",
    ),
    "its status alone": ("import sys; sys.exit(3)", "ended with status 3$"),
    "its complaint": ("import sys; sys.exit('oh\\nno')", "ended with status 1; it says: no$"),
    "a signal": ("import os; os.kill(os.getpid(), 9)", "was ended by signal 9$"),
    "no JSON": ("print('Hello')", "line 1 is no object of JSON, but begins b'Hello'"),
    "a wrong value": (
        'print(\'{"type": "slot", "project": 5}\')',
        "line 1: column `project` of the table of slots is 5",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_program_that_fails_is_named_with_what_it_says(case):
    code, message = FAILING[case]
    words = shlex.join([sys.executable, "-I", "-S", "-c", code])
    with pytest.raises(CannotObserve, match=message):
        parse_source(f"program:{words}").read(PAUSE_S)


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(CannotObserve, match=r"program:\./nothing cannot be run: \./nothing: No such file"):
        parse_source("program:./nothing").read(PAUSE_S)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo $$ > pid; exec tail -f /dev/null", "printed nothing for 0.05 s"),
        (
            "mkfifo pipe; echo $$ > pid; exec >&- 2>&-; read line < pipe",
            r"(closed its output, and did not end|printed nothing) for 0\.05 s",
        ),
    ],
)
def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(
    tmp_path, monkeypatch, wait_for, script, message
):
    monkeypatch.chdir(tmp_path)
    source_ = parse_source(f"program:sh -c {shlex.quote(script)}")
    with pytest.raises(CannotObserve, match=message):
        source_.read(0.05)
    if Path("pid").exists() and (pid := Path("pid").read_text().strip()):  # it may be ended before it has begun
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_program_may_print_much_on_both_streams():
    code = "import sys\nfor n in range(9000): print('{\"type\": \"link\"}'); print('x' * 40, file=sys.stderr)"
    words = shlex.join([sys.executable, "-I", "-S", "-c", code])
    assert parse_source(f"program:{words}").read(PAUSE_S).slots is not None


# Databases


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """mapped(text, **tables): the source of a mapping to a small database."""
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("small.db") as database:
        database.execute("CREATE TABLE jobs (id TEXT, credits)")
        database.executemany("INSERT INTO jobs VALUES (?, ?)", [("a", 5), ("b", 6)])
    database.close()

    def make(text='url = "sqlite:///small.db"', **tables):
        lines = [text, "[tables]", *(f"{name} = '''{query}'''" for name, query in tables.items())]
        Path("map.toml").write_text("\n".join(lines), encoding="utf-8")
        return parse_source("sql:map.toml")

    return make


RIGHT = {"slots": "SELECT 'p' AS project, id AS slot, credits AS granted FROM jobs"}


@pytest.mark.parametrize(
    ("text", "tables", "message"),
    [
        ('url = "x"\nsecret = "hush"', RIGHT, "'secret' is unknown: expected url or url_variable"),
        ("", RIGHT, "expected one of url and url_variable"),
        ('url = "x"\nurl_variable = "Y"', RIGHT, "expected one of url and url_variable"),
        ("url = 5", RIGHT, "url is not a text"),
        ('url = "x"', {}, r"expected \[tables\] with a query"),
        ('url = "x"', {"jobs": "SELECT 1"}, "there is no table 'jobs': expected slots, machines, users, projects"),
        ("url = ", RIGHT, "is not TOML"),
    ],
)
def test_a_mapping_that_is_wrong_is_refused_at_once(mapped, text, tables, message):
    with pytest.raises(UsageError, match=message) as refused:
        mapped(text, **tables)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "query", "message"),
    [
        ('url_variable = "NOT_SET"', RIGHT["slots"], "the environment variable NOT_SET is not set"),
        ('url = "hush"', RIGHT["slots"], "its `url` is no URL of a database"),
        ('url = "sqlite:///none.db"', RIGHT["slots"], "unable to open database file"),
        ('url = "nothing://u:hush@h/d"', RIGHT["slots"], "plugin"),
        (
            'url = "mysql+pymysql://u:hush@h/d"',
            RIGHT["slots"],
            "the driver pymysql is not installed: pip install pymysql",
        ),
        ('url = "postgresql+psycopg://u:hush@127.0.0.1:1/d"', RIGHT["slots"], "refused"),
        (
            None,
            "SELECT 'p' AS project, id FROM jobs",
            "slots has a column 'id': name each of its columns AS another of",
        ),
        (None, "SELECT 'p' AS project, 'q' AS project FROM jobs", "slots has a column 'project'"),
        (
            None,
            "SELECT 'p' AS project, slot FROM absent",
            "the query of the table of slots failed: no such table: absent",
        ),
        (None, "SELECT 'p' AS project, id AS slot, 1.5 AS granted FROM jobs", "row 1: column `granted` of .* is 1.5"),
        (
            None,
            "SELECT 'p' AS project, id AS slot, 'x' AS counters FROM jobs",
            "column `counters` .* is 'x', expected map",
        ),
        ('url = "sqlite:///small.db?timeout=soon"', RIGHT["slots"], "could not convert string to float"),
        (None, "DELETE FROM jobs", "the query of the table of slots failed: attempt to write a readonly database"),
    ],
)
def test_a_database_that_cannot_be_read_is_named_without_its_secret(mapped, text, query, message):
    made = mapped(**({} if text is None else {"text": text}), slots=query)
    with pytest.raises(CannotObserve, match=f"^sql:map.toml: .*{message}") as unseen:
        made.read(PAUSE_S)
    assert "hush" not in str(unseen.value)
    assert sorted(path.name for path in Path().iterdir()) == ["map.toml", "small.db"]


def test_a_query_without_rows_shows_its_columns(mapped, monkeypatch):
    monkeypatch.setenv("THE_URL", "sqlite:///small.db")
    view = mapped('url_variable = "THE_URL"', slots=f"{RIGHT['slots']} WHERE id = 'z'").read(PAUSE_S)
    assert (len(view.slots), view.slots.column_names) == (0, ["project", "slot", "granted"])


# When accounts are read


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """The evidence of a run behind a daemon, with all that the server showed, as if it had begun at time 0."""
    path = tmp_path_factory.mktemp("site") / "cp.sock"
    with fake.Fake({"p": "hush"}, unix=path, http=fake.ANY_PORT) as site:
        return replace(claims_alone(path, site.addresses["http"], ("p", "hush")), start_ns=0)


class Scripted:
    """A source that shows one thing after the other, the last one for ever, and counts how often it was read."""

    def __init__(self, *shown):
        self.shown = shown
        self.reads = 0

    def __str__(self):
        return "scripted"

    def read(self, pause_s):
        now = self.shown[min(self.reads, len(self.shown) - 1)]
        self.reads += 1
        if isinstance(now, BaseException):
            raise now
        return now


def concluded(evidence, source_, timeout_s=10.0):
    clock = ManualClock()
    clock.advance(evidence.elapsed_s + 1)
    seen, verdict = conclude(replace(evidence, seen=None), None, timeout_s, clock, [], source=source_)
    return seen, verdict, clock.monotonic() - evidence.elapsed_s - 1


def without(view, count):
    return replace(view, slots=view.slots.slice(count))


def test_accounts_that_lag_are_read_until_they_are_right(evidence):
    right = evidence.view
    lagging = Scripted(without(right, 8), without(right, 5), without(right, 5), without(right, 1), right)
    seen, verdict, _ = concluded(evidence, lagging)
    assert (verdict.ruling, lagging.reads) == ("valid", 5)
    assert seen.view is right


def test_what_stays_wrong_for_the_timeout_is_wrong(evidence):
    wrong = Scripted(without(evidence.view, 8), without(evidence.view, 3))
    _, verdict, waited_s = concluded(evidence, wrong)
    assert (verdict.ruling, verdict.counts["lost"]) == ("invalid", 3)
    assert 10.0 <= waited_s < 13.0


def test_what_is_never_the_same_is_not_waited_for_without_end(evidence):
    class Restless(Scripted):
        def read(self, pause_s):
            super().read(pause_s)
            return without(evidence.view, 1 + self.reads % 2)

    _, verdict, waited_s = concluded(evidence, Restless(evidence.view), timeout_s=2.0)
    assert verdict.ruling == "invalid"
    assert LONGEST_WAIT * 2.0 <= waited_s < LONGEST_WAIT * 2.0 + 3


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (CannotObserve("it is away"), "Whether commands were applied: it is away."),
        (KeyboardInterrupt(), "Whether commands were applied: the reading of scripted was interrupted."),
    ],
)
def test_accounts_that_cannot_be_read_leave_the_verdict_unknown(evidence, raised, said):
    for shown in ([raised], [without(evidence.view, 1), raised]):
        seen, verdict, waited_s = concluded(evidence, Scripted(*shown))
        assert (verdict.ruling, verdict.not_verified, verdict.counts) == ("unknown", [said], {})
        assert seen.seen is None
        assert waited_s < 13.0


def test_a_source_that_fails_for_a_while_is_read_again(evidence):
    away = CannotObserve("it is away")
    _, verdict, _ = concluded(evidence, Scripted(away, without(evidence.view, 1), away, away, evidence.view))
    assert verdict.ruling == "valid"


def test_what_a_file_showed_last_stands_where_nobody_writes_it_anew(evidence):
    stale = NothingNew("nothing new")
    wrong = Scripted(stale, without(evidence.view, 3), stale)
    _, verdict, waited_s = concluded(evidence, wrong)
    assert (verdict.ruling, verdict.counts["lost"]) == ("invalid", 3)
    assert 10.0 <= waited_s < 13.0


def test_a_file_that_is_not_written_after_the_run_is_no_evidence(accounts, tmp_path, evidence):
    path = Path(a_file_of_lines(accounts, tmp_path))
    file = parse_source(str(path))
    assert same(file.read(PAUSE_S), accounts)
    with pytest.raises(NothingNew, match=r"all\.jsonl has not been written since the run began"):
        file.read(PAUSE_S)
    _, verdict, waited_s = concluded(evidence, file)
    assert verdict.ruling == "unknown"
    assert waited_s >= 10.0
    other = path.with_suffix(".new")
    other.write_bytes(ledger(accounts))
    other.replace(path)
    assert same(file.read(PAUSE_S), accounts)
    with pytest.raises(NothingNew):
        file.read(PAUSE_S)
