"""`cpsim serve`: several projects and daemons, from a file and from options."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from cpdaemon import Client, TcpEndpoint
from cpsim.cli import cli
from cpsim.errors import CpsimError
from cpsim.fake import Site
from cpsim.fake.settings import Configuration, load

WHOLE = """
http = "127.0.0.1:0"
control_token_file = "token"
journal_limit = 10
quirks = ["reclaim"]

[[project]]
id = "physics"
secret_file = "sub/physics.secret"

[[project]]
id = "biology"
secret = "b10"

[[daemon]]
project = "physics"
unix = "p.sock"
tcp = "127.0.0.1:0"
flush_interval = 0.01

[[daemon]]
project = "biology"
unix = "b.sock"

[clock]
start = 2015-03-01T01:00:00+01:00
rate = 0

[links]
"worker 7" = "alice"
"""
START_US = 1_425_168_000_000_000


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory of the test's own, which is the current one: socket paths stay short."""
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("sub/physics.secret").write_text(" s3cret\n", encoding="utf-8")
    Path("token").write_text("t0ken\n", encoding="utf-8")
    Path("empty").touch()
    return tmp_path


@pytest.fixture
def write(here):
    """Writes the configuration file."""

    def write(text):
        Path("serve.toml").write_text(text, encoding="utf-8")
        return Path("serve.toml")

    return write


@pytest.fixture
def started(here):
    """Starts `cpsim serve`; returns its process and the lines that say where it listens."""
    processes = []

    def start(*arguments, lines):
        environment = os.environ | {"PYTHONWARNINGS": "error"}
        command = [sys.executable, "-m", "cpsim", "serve", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        return process, [process.stdout.readline().split() for _ in range(lines)]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ask(server, name, method="GET"):
    url = f"{server.removesuffix('/api')}/__cpsim/{name}"
    request = urllib.request.Request(url, method=method, headers={"Authorization": "Bearer t0ken"})
    with urllib.request.urlopen(request, timeout=280) as answer:
        return json.load(answer)


def end(process):
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=15)
    assert (process.returncode, out) == (0, "")
    return err


def test_a_whole_file(write, started):
    write(WHOLE)
    process, lines = started("--config", "serve.toml", "--ready-file", "ready", lines=4)
    assert [kind for kind, _ in lines] == ["unix", "tcp", "unix", "http"]
    (_, physics), (_, tcp), (_, biology), (_, server) = lines
    assert [Path(physics).name, Path(biology).name] == ["p.sock", "b.sock"]
    for address, slot in ((physics, "a"), (tcp, "b"), (biology, "a")):
        with Client(address) as client:
            client.alloc(slot)
    with Client(server, ("physics", "s3cret")) as client:
        client.alloc("c")
    with Client(server, ("biology", "b10")) as client:
        client.alloc("c")
    assert ask(server, "links")["items"] == [{"type": "link", "machine": "worker 7", "user": "alice"}]
    assert ask(server, "clock") == {"now_us": START_US, "rate": 0}
    assert Path("ready").read_text(encoding="utf-8") == "".join(f"{kind} {address}\n" for kind, address in lines)
    assert end(process) == ""
    assert not Path("ready").exists()
    assert sorted(path.suffix for path in Path().iterdir()) == ["", "", "", ".toml"]


def test_what_is_acknowledged_reaches_the_accounts_of_its_project(write):
    file = write(WHOLE.replace('control_token_file = "token"', ""))
    with load(file).fake() as fake:
        for daemon, slot in zip(fake.daemons, "ab", strict=True):
            with Client(f"./{Path(daemon.addresses['unix']).name}") as client:
                client.alloc(slot)
        fake.wait_until_idle()
        found = {name: [view.slot for view in fake.inspector.slots(name).items] for name in ("physics", "biology")}
    assert found == {"physics": ["a"], "biology": ["b"]}
    assert fake.accounts.quirks == {"reclaim"}


def test_an_empty_file_is_served_like_no_file(write):
    assert load(write("")) == Configuration()


def test_daemons_may_share_what_is_no_address_of_one_alone(write):
    daemons = [
        DAEMON.format(f'tcp = "{address}"') for address in ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:1", "[::1]:1")
    ]
    assert len(load(write('http = "127.0.0.1:0"\n' + PROJECT + "".join(daemons))).sites) == 4


def test_paths_are_relative_to_the_file(here, monkeypatch):
    Path("sub/serve.toml").write_text(
        'store = "x.store"\n[[project]]\nid = "p"\nsecret_file = "physics.secret"\n'
        '[[daemon]]\nproject = "p"\nunix = "d"\n',
        encoding="utf-8",
    )
    configuration = load(Path("sub/serve.toml"))
    assert configuration.projects == {"p": "s3cret"}
    assert configuration.sites == (Site(project_id="p", unix=Path("sub/d")),)
    assert configuration.store == Path("sub/x.store")


DAEMON = '[[daemon]]\nproject = "p"\n{}\n'
PROJECT = '[[project]]\nid = "p"\nsecret = "s"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http = ", "not TOML: "),
        (f"http = {'[' * 5_000}", "nested too deeply: 32 levels of tables and lists are read"),
        (f"http = {'[' * 32}{']' * 32}", "nested too deeply"),
        (f"http = {'[' * 31}{']' * 31}", "expected HOST:PORT"),
        (f"seed = {'9' * 10_000}", "not TOML: "),
        ('htp = "127.0.0.1:80"', 'htp: unknown key: expected one of project, daemon, http, .*; did you mean "http"'),
        ('http = "127.0.0.1"', 'http = "127.0.0.1": expected HOST:PORT, with a port from 0'),
        ("http = 80", "http = 80: expected HOST:PORT"),
        ("journal_limit = -1", "journal_limit = -1: expected a whole number from 0 up"),
        ('profile = "real"', 'profile = "real": expected "documented" or "deployed"'),
        ('quirks = ["reclame"]', r'quirks\[0\] = "reclame": expected ascii-only, .*; did you mean "reclaim"'),
        ('seed = "x"', 'seed = "x": expected a whole number from 0 up'),
        ("seed = -1", "seed = -1: expected a whole number from 0 up"),
        ("[clock]\nstart = 2026-03-01T00:00:00", "clock.start = 2026-03-01T00:00:00: expected a time with its offset"),
        ("[clock]\nstart = 2026-03-01", "clock.start = 2026-03-01: expected a time with its offset"),
        ('[clock]\nstart = "2026-03-01T00:00:00Z"', '"2026-03-01T00:00:00Z": expected a time .*, without quotes'),
        ("[clock]\nrate = 07:32:00", "clock.rate = 07:32:00: expected a multiple of real time"),
        ("[clock]\nstart = 1960-01-01T00:00:00Z", r"clock.start = 1960-01-01T00:00:00\+00:00: expected a time from"),
        ("[clock]\nstart = 9999-01-01T00:00:00Z", r"clock.start = 9999-01-01T00:00:00\+00:00: expected a time from"),
        ("journal_limit = true", "journal_limit = true: expected a whole number"),
        ('[project]\nid = "p"', r"project = a table: expected \[\[project\]\] tables"),
        ("[clock]\nrate = -1", "clock.rate = -1: expected a multiple of real time, from 0"),
        ("[clock]\nrate = nan", "clock.rate = nan: expected a multiple"),
        ("[links]\nm = 5", "links.m = 5: expected text"),
        ("project = 5", r"project = 5: expected \[\[project\]\] tables"),
        ('[[project]]\nid = "p"', r"project\[0\]: expected secret or secret_file, and not both"),
        (PROJECT + 'secret_file = "token"', r"project\[0\]: expected secret or secret_file, and not both"),
        (
            '[[project]]\nid = "a,b"\nsecret = "s"',
            r'project\[0\].id = "a,b": expected a project id: text without commas',
        ),
        ('[[project]]\nsecret = "s"', r"project\[0\].id is missing: expected a project id"),
        (PROJECT + PROJECT.replace('"p"', '"P"'), r'project\[1\].id = "P": expected an id of its own; case does not'),
        ('[[project]]\nid = "p"\nsecret_file = "no"', r'project\[0\].secret_file = "no": cannot be read: '),
        ('[[project]]\nid = "p"\nsecret_file = "empty"', r'project\[0\].secret_file = "empty": is empty'),
        ('control_token_file = "empty"', 'control_token_file = "empty": is empty'),
        (PROJECT + '[[daemon]]\nproject = "q"\nunix = "x"', r'daemon\[0\].project = "q": expected "p"'),
        (
            PROJECT + DAEMON.format('unix = "d"') + DAEMON.format('unix = "sub/../d"'),
            r'daemon\[1\].unix = "sub/../d": expected an address of its own; daemon\[0\].unix has the same',
        ),
        (
            PROJECT + DAEMON.format('tcp = "127.0.0.1:1"') + DAEMON.format('unix = "d"\ntcp = "127.0.0.1:1"'),
            r'daemon\[1\].tcp = "127.0.0.1:1": expected an address of its own; daemon\[0\].tcp has the same',
        ),
        (
            'http = "127.0.0.1:1"\n' + PROJECT + DAEMON.format('tcp = "127.0.0.1:1"'),
            r'daemon\[0\].tcp = "127.0.0.1:1": expected an address of its own; http has the same',
        ),
        (PROJECT + '[[daemon]]\nproject = "p"', r"daemon\[0\]: expected unix, tcp, or both"),
        (PROJECT + '[[daemon]]\nproject = "p"\ntcp = "x:70000"', r'daemon\[0\].tcp = "x:70000": expected HOST:PORT'),
        (PROJECT + '[[daemon]]\nproject = "p"\nflush_interval = "5s"', r'flush_interval = "5s": expected seconds'),
    ],
)
def test_mistakes_are_told_precisely(write, text, said):
    with pytest.raises(CpsimError, match=rf"^serve\.toml: .*{said}"):
        load(write(text))


@pytest.fixture
def asked(monkeypatch, with_pandas):
    """What the options ask for, without serving it."""

    def asked(*arguments):
        seen = []
        monkeypatch.setattr("cpsim.fake.settings.serve", lambda configuration, *_: seen.append(configuration))
        result = CliRunner().invoke(cli, ["serve", *arguments])
        return seen[0] if seen else result.output

    return asked


def test_options_take_the_place_of_what_the_file_says(write, asked):
    write(WHOLE)
    said = load(Path("serve.toml"))
    assert asked("--config", "serve.toml") == said
    changed = asked("--config", "serve.toml", "--http", "[::1]:80", "--flush-interval", "3", "--profile", "deployed")
    assert (changed.http.host, changed.http.port) == ("::1", 80)
    assert (changed.flush_interval_s, changed.profile) == (3, "deployed")
    assert (changed.sites, changed.quirks, changed.projects) == (said.sites, said.quirks, said.projects)
    changed = asked("--config", "serve.toml", "--unix", "x.sock", "--quirk", "meta-dropped")
    assert changed.sites == [Site(project_id="physics", unix=Path("x.sock"))]
    assert list(changed.quirks) == ["meta-dropped"]


def test_several_projects_by_options(here, asked):
    Path("other").write_text("0ther", encoding="utf-8")
    pairs = ("--project", "a", "--project", "b", "--secret-file", "token", "--secret-file", "other")
    changed = asked(*pairs, "--tcp", "127.0.0.1:5", "--control-token-file", "token")
    assert changed.projects == {"a": "t0ken", "b": "0ther"}
    assert changed.control_token == "t0ken"
    assert changed.sites[0].project_id == "a"
    assert isinstance(changed.sites[0].tcp, TcpEndpoint)
    assert asked("--project", "a", "--project", "b").projects == {"a": "demo", "b": "demo"}
    assert asked("--secret-file", "token").projects == {"demo": "t0ken"}
    assert asked().projects == {"demo": "demo"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--project", "a", "--project", "b", "--secret-file", "token"], "2 --project and 1 --secret-file"),
        (["--project", "a", "--project", "a"], "a is given twice"),
        (["--control-token-file", "empty"], "--control-token-file empty is empty"),
        (["--config", "missing"], "'missing' does not exist"),
        (["--seed", "-1"], "-1 is not in the range x>=0"),
    ],
)
def test_options_that_do_not_go_together(asked, here, arguments, said):
    assert said in asked(*arguments)


def test_a_daemon_needs_its_project():
    sites = [Site(project_id="p", unix=Path("x"))]
    with pytest.raises(CpsimError, match="a daemon for project 'p', and the projects are 'q'"):
        Configuration(projects={"q": "s"}, sites=sites).fake()


def test_beyond_loopback_it_warns_and_control_needs_the_token(started):
    process, ((_, server),) = started("--http", "0.0.0.0:0", lines=1)
    server = server.replace("0.0.0.0", "127.0.0.1")
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        ask(server, "projects")
    refused.value.close()
    warning, control = end(process).split("; ")
    assert warning == "cpsim: warning: other machines can reach 0.0.0.0:0"
    assert control == "the control API is off: --control-token-file turns it on\n"
    process, ((_, server),) = started("--http", "0.0.0.0:0", "--control-token-file", "token", lines=1)
    assert ask(server.replace("0.0.0.0", "127.0.0.1"), "projects") == ["demo"]
    end(process)


def test_what_is_acknowledged_before_the_end_is_not_lost(started, here):
    """The flush interval had not passed: it is in the store, or delivered when the daemon is back."""
    arguments = ("--unix", "d.sock", "--flush-interval", "3600", "--store", "accounts")
    process, _ = started(*arguments, lines=1)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("d.sock")
        sock.sendall(b"alloc,slot=a\n")
        assert sock.recv(2) == b"OK"
    end(process)
    site = Site(project_id="demo", unix=Path("d.sock"))
    with Configuration(store=Path("accounts"), sites=[site]).fake() as fake:
        fake.wait_until_idle()
        assert [slot.slot for slot in fake.inspector.slots("demo").items] == ["a"]


def test_a_clock_that_starts_in_the_past_goes_on_where_its_store_ends(write, here):
    configuration = load(write('store = "ledger.db"\n[clock]\nstart = 2015-03-01T00:00:00+00:00\nrate = 0\n'))
    start_us = configuration.start_us
    for hours in (1, 2, 3):
        with configuration.fake() as fake:
            fake.accounts.clock.advance(hours=1)
            assert fake.accounts.clock.now_us() == start_us + hours * 3_600_000_000


def test_a_link_that_was_changed_stays_as_the_store_has_it(write, here, caplog):
    configuration = load(write('store = "ledger.db"\n[links]\nm = "alice"\n'))
    with configuration.fake() as fake:
        fake.accounts.release(["m"])
        fake.accounts.link([("m", "bob")])
    with configuration.fake() as fake, fake.accounts.reading() as ledger:
        assert ledger.owners == {"m": "bob"}
    assert "links: 'm' stays with user 'bob', as the store has it, and does not go to 'alice'" in caplog.text


def test_a_link_that_was_released_stays_so(write, here, caplog):
    configuration = load(write('store = "ledger.db"\n[links]\nm = "alice"\n'))
    with configuration.fake() as fake:
        fake.accounts.release(["m"])
        fake.accounts.apply("demo", [("alloc", {"slot": "a"}), ("claim", {"slot": "a", "machine": "m"})])
    with configuration.fake() as fake, fake.accounts.reading() as ledger:
        assert ledger.owners == {}
        assert ledger.project("demo").machines["m"].waiting.credits == 1
    assert "links: 'm' stays with no user" in caplog.text


def test_help_shows_a_file_that_can_be_served(write, here):
    text = CliRunner().invoke(cli, ["serve", "--help"], prog_name="cpsim").output
    example = text[text.index("  http =") : text.index("  Further keys")]
    Path("physics.secret").write_text("s", encoding="utf-8")
    configuration = load(write(example))
    assert configuration.links == {"worker-7": "alice"}
    assert configuration.rate == 60
