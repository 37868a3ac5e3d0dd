"""What is typed again and again: variables, cpsim.toml, which of them counts, and that its origin is said."""

import json
import os
import re
from pathlib import Path

import pytest

from cpsim.config.settings import NAMES, chosen, find
from cpsim.errors import UsageError
from cpsim.fake import ANY_PORT, Fake

SMALL = """
description = "small"
duration = "1d"
population = { machines = 4, users = 2 }
arrivals = { model = "constant", jobs = 10 }
run_time = { model = "constant", value = "10min" }
"""
NOBODY = "127.0.0.1:1"


@pytest.fixture
def repository(here, monkeypatch):
    """A folder below the root of a repository, which is the current one."""
    Path(".git").mkdir()
    Path("below/here").mkdir(parents=True)
    monkeypatch.chdir("below/here")
    return Path("../..").absolute().resolve()


def counting(variables, text, name, typed_target=None):
    """The value of a setting that counts, and where it comes from."""
    Path("cpsim.toml").write_text(text, encoding="utf-8")
    setting = chosen(find({"HOME": "/", **variables}, Path()), name, typed_target)
    return setting if setting is None else (setting.value, setting.origin)


@pytest.mark.parametrize(
    ("variables", "text", "name", "typed", "expected"),
    [
        ({}, 'target = "a:1"', "target", None, ("a:1", "cpsim.toml")),
        ({"CPSIM_TARGET": "b:1"}, 'target = "a:1"', "target", None, ("b:1", "CPSIM_TARGET")),
        ({"CPSIM_TARGET": ""}, 'target = "a:1"', "target", None, ("a:1", "cpsim.toml")),
        ({}, 'target = "a:1"\nproject = "p"', "project", None, ("p", "cpsim.toml")),
        ({"CPSIM_PROJECT": "q"}, 'target = "a:1"\nproject = "p"', "project", None, ("q", "CPSIM_PROJECT")),
        # what is of a target is of no other
        ({}, 'target = "a:1"\nproject = "p"', "project", "c:1", None),
        ({"CPSIM_TARGET": "b:1"}, 'target = "a:1"\nproject = "p"', "project", None, None),
        ({}, 'project = "p"', "project", "c:1", ("p", "cpsim.toml")),
        ({"CPSIM_TARGET": "b:1"}, 'project = "p"', "project", None, ("p", "cpsim.toml")),
        ({"CPSIM_PROJECT": "q"}, 'target = "a:1"', "project", None, ("q", "CPSIM_PROJECT")),
        ({}, 'target = "a:1"\nproject = "p"', "project", "a:1", ("p", "cpsim.toml")),
        # nor of none
        ({}, 'project = "p"', "project", None, None),
        ({}, 'target = "a:1"\nproject = "p"', "project", "embedded", None),
        ({"CPSIM_TARGET": "embedded"}, 'project = "p"', "project", None, None),
        # whatever the target
        ({}, "timeout = 3", "timeout", None, ("3", "cpsim.toml")),
        ({"CPSIM_TIMEOUT": "5"}, 'target = "a:1"\ntimeout = 3', "timeout", "c:1", ("5", "CPSIM_TIMEOUT")),
        ({"CPSIM_QUIRKS": "one two"}, "", "quirks", "c:1", (("one", "two"), "CPSIM_QUIRKS")),
        ({}, 'quirks = ["one"]', "quirks", "c:1", (("one",), "cpsim.toml")),
        ({"CPSIM_TEST_X": "y", "CPSIM_LOAD": "{}", "CPSIMX": "z"}, "", "target", None, None),
    ],
)
def test_the_nearest_place_counts_and_what_is_of_a_target_only_with_it(here, variables, text, name, typed, expected):
    assert counting(variables, text, name, typed) == expected


@pytest.mark.parametrize(
    ("variables", "text", "says"),
    [
        (
            {},
            'secret = "hush"',
            'cpsim.toml: secret: unknown key: expected one of target, .*did you mean "secret_file"?',
        ),
        ({}, 'taget = "hush"', 'did you mean "target"?'),
        ({}, "target = 5667", "cpsim.toml: target = 5667: expected text"),
        ({}, 'profile = "deploid"', 'cpsim.toml: profile = "deploid": expected "documented" or "deployed"'),
        ({}, 'quirks = "one"', 'cpsim.toml: quirks = "one": expected a list'),
        ({}, "timeout = 0", "cpsim.toml: timeout = 0: expected seconds, above 0"),
        ({}, "target = hush", "cpsim.toml: not TOML: Invalid value"),
        ({}, '[run]\nrate = "5"', "cpsim.toml: run: unknown key"),
        ({"CPSIM_TAGET": "hush"}, "", "CPSIM_TAGET is no variable of cpsim: .*did you mean CPSIM_TARGET?"),
        ({"CPSIM_SECRET": "hush"}, "", "CPSIM_SECRET is no variable of cpsim: .*did you mean CPSIM_SECRET_FILE?"),
    ],
)
def test_a_mistake_names_its_place_and_the_nearest_name_and_no_secret(here, variables, text, says):
    with pytest.raises(UsageError, match=re.escape(says).replace(r"\.\*", ".*")) as caught:
        counting(variables, text, "target")
    assert "hush" not in str(caught.value)


def test_the_file_is_looked_for_up_to_the_root_of_the_repository(repository):
    (repository.parent / "cpsim.toml").write_text('target = "beyond:1"')
    assert find({}, Path()) == [{}]
    (repository / "cpsim.toml").write_text('target = "root:1"')
    (repository / "below" / "cpsim.toml").write_text('target = "below:1"')
    assert counting({}, "", "target") is None  # the one here counts, which says nothing
    Path("cpsim.toml").unlink()
    assert chosen(find({}, Path()), "target", None).value == "below:1"
    (repository / ".git").rmdir()
    assert find({}, Path()) == [{}]


def test_paths_in_the_file_are_relative_to_it(repository):
    lines = {
        "target": ("./run/cp.sock", "run/cp.sock"),
        "secret_file": ("secret", "secret"),
        "runs": ("results", "results"),
        "accounts": ("sql:accounts.toml", "sql:{}/accounts.toml"),
        "server": ("http://127.0.0.1:8080/api", "http://127.0.0.1:8080/api"),
    }
    (repository / "cpsim.toml").write_text("\n".join(f'{name} = "{text}"' for name, (text, _) in lines.items()))
    places = find({}, Path())
    found = {name: chosen(places, name, None).value for name in lines}
    assert found == {
        name: text.format(repository) if "{}" in text or "://" in text else str(repository / text)
        for name, (_, text) in lines.items()
    }
    for address, is_path in ((NOBODY, False), ("/run/cp.sock", False), ("http://a/b", False), ("unix:cp.sock", False)):
        (repository / "cpsim.toml").write_text(f'target = "{address}"')
        assert (chosen(find({}, Path()), "target", None).value == address) is not is_path


# On the command line


@pytest.fixture
def small(here):
    Path("small.toml").write_text(SMALL, encoding="utf-8")
    Path("secret").write_text("hush", encoding="utf-8")


def test_what_was_not_typed_is_printed_with_its_origin_before_anything_is_sent(cpsim, small, monkeypatch):
    Path("cpsim.toml").write_text('target = "127.0.0.1:2"\nserver = "http://127.0.0.1:1/api"\nsecret_file = "secret"\n')
    monkeypatch.setenv("CPSIM_PROJECT", "demo")
    for command in (["run", "small.toml"], ["load", "small.toml", "--find-capacity"], ["verify"]):
        status, _, err = cpsim(*command)
        assert status == 2, err
        lines = err.splitlines()
        name = "ENDPOINT" if command == ["verify"] else "--target"
        assert set(lines[:-1]) == {
            f"cpsim: {name} 127.0.0.1:2, from cpsim.toml",
            "cpsim: --server http://127.0.0.1:1/api, from cpsim.toml",
            "cpsim: --secret-file secret, from cpsim.toml",
            "cpsim: --project demo, from CPSIM_PROJECT",
        }
        assert "127.0.0.1:" in lines[-1]
        assert "hush" not in err
    assert f"--target {NOBODY}" not in cpsim("run", "small.toml", "--target", NOBODY)[2]


def test_credentials_in_an_address_are_not_printed(cpsim, small, monkeypatch):
    monkeypatch.setenv("CPSIM_TARGET", "http://me:hush@127.0.0.1:1/api")
    for command in (["run", "small.toml"], ["verify"]):
        status, _, err = cpsim(*command)
        assert status == 64
        assert "hush" not in err
    assert "cpsim: ENDPOINT http://...@127.0.0.1:1/api, from CPSIM_TARGET" in err
    monkeypatch.setenv("CPSIM_TARGET", "me:hush@127.0.0.1:1")
    for command in (["run", "small.toml"], ["verify"]):
        status, _, err = cpsim(*command)
        assert (status, "hush" in err, "must not hold credentials" in err) == (64, False, True)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path), os.mkfifo])
def test_what_has_the_files_name_and_cannot_be_read_is_not_passed_over(here, make):
    make(Path("cpsim.toml"))
    with pytest.raises(UsageError, match=r"cpsim\.toml is no file"):
        find({}, Path())


def test_a_run_takes_all_from_the_file_and_can_be_repeated_without_it(cpsim, small):
    with Fake({"p": "hush"}, http=ANY_PORT) as site:
        url = site.addresses["http"]
        lines = [
            f'target = "{url}"',
            'project = "p"',
            'secret_file = "secret"',
            'profile = "deployed"',
            'runs = "kept"',
        ]
        Path("cpsim.toml").write_text("\n".join(lines))
        status, out, err = cpsim("run", "small.toml", "--json")
        assert status == 0
        assert len(err.splitlines()) == 4
        assert json.loads(out)["endpoint"] == url
        assert f"--target {url}" in json.loads(out)["repeat"]
        assert "--project p --secret-file secret --profile deployed" in json.loads(out)["repeat"]
    [run] = Path("kept").iterdir()
    assert cpsim("runs")[1].splitlines()[1].endswith(run.name)
    assert cpsim("runs", "show", run.name)[0] == 0


def test_embedded_is_no_target_whatever_is_set(cpsim, small):
    Path("cpsim.toml").write_text(f'target = "{NOBODY}"\nproject = "p"\nsecret_file = "secret"\ntimeout = 7')
    status, out, err = cpsim("run", "small.toml", "--target", "embedded", "--json")
    assert (status, err) == (0, "cpsim: --timeout 7, from cpsim.toml\n")
    assert json.loads(out)["endpoint"] == "embedded"
    assert "go with an ENDPOINT" in cpsim("verify", "embedded", "--other-project", "q")[2]


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ('target = "nowhere"', ["run", "small.toml"], "; it comes from cpsim.toml"),
        (
            f'target = "{NOBODY}"\nquirks = ["nope"]',
            ["run", "small.toml"],
            "no quirk 'nope'; `cpsim quirks` lists them",
        ),
        (f'target = "{NOBODY}"\nsecret_file = "none"', ["verify"], "'none' does not exist; it comes from cpsim.toml"),
        ('tagret = "a:1"', ["run", "small.toml"], "cpsim.toml: tagret: unknown key"),
        ('tagret = "a:1"', ["runs"], "cpsim.toml: tagret: unknown key"),
        ("", ["load", "small.toml"], "Missing option '--target'"),
    ],
)
def test_a_setting_that_cannot_be_is_wrong_usage_and_says_where_it_is(cpsim, small, text, arguments, says):
    Path("cpsim.toml").write_text(text)
    status, _, err = cpsim(*arguments)
    assert status == 64
    assert says in " ".join(err.split())
    assert not Path("runs").exists()


@pytest.mark.parametrize("arguments", [["run", "--help"], ["quirks"], ["reports"], ["scenarios"]])
def test_what_sends_nothing_reads_no_settings(cpsim, small, arguments):
    Path("cpsim.toml").write_text("tagret")
    assert cpsim(*arguments)[0] == 0


def test_a_command_that_names_no_target_takes_nothing_of_one(cpsim, small):
    Path("cpsim.toml").write_text(f'target = "{NOBODY}"\naccounts = "accounts"\nprofile = "deployed"')
    status, _, err = cpsim("judge", "nowhere")
    assert (status, "cpsim.toml" in err) == (2, False)
    assert "nowhere" in err


def test_all_settings_are_in_the_documentation():
    page = (Path(__file__).parent.parent.parent / "docs/how-to/settings.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| `CPSIM_\w+` \|", page, re.MULTILINE)) == set(NAMES)
