"""The deployed daemon's INI file."""

import logging
from pathlib import Path

import pytest

from cpdaemon.endpoint import UnixEndpoint
from cpsim.daemon.config import Config, read_config
from cpsim.errors import CpsimError
from cpsim.net.listen import Listen

DEPLOYED = """
[api]
api_url = http://cp.example.org/api
api_key = key
api_secret = s%cret
flush_interval = 5

[server]
pidfile = /var/run/creditapi.pid
loglevel = WARN
logfile = /var/log/creditapi.log
socket = unix
bind = /var/run/creditapi.socket
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "creditapi.ini"
        path.write_text(text)
        return read_config(path)

    return read


def test_the_deployed_file(read):
    config = read(DEPLOYED)
    assert str(config.server) == "http://cp.example.org/api"
    assert (config.project, config.secret, config.flush_interval_s) == ("key", "s%cret", 5)
    assert config.listen == UnixEndpoint("/var/run/creditapi.socket")
    assert (config.pidfile, config.logfile) == (Path("/var/run/creditapi.pid"), Path("/var/log/creditapi.log"))
    assert config.loglevel == logging.WARNING
    assert "s%cret" not in repr(config)


def test_an_older_file(read):
    config = read("[api]\nproject_id=old\nproject_auth=word\n[server]\nsocket=tcp\nbind=127.0.0.1:5667\nspool=/s\n")
    assert (config.project, config.secret) == ("old", "word")
    assert config.listen == Listen("127.0.0.1:5667")
    assert config.spool == Path("/s")


def test_port_0_takes_a_free_one(read):
    assert read("[server]\nsocket=tcp\nbind=127.0.0.1:0").listen == Listen("127.0.0.1:0")


def test_quotes_are_part_of_a_value_and_told(read):
    config = read('[api]\napi_secret=\'hush\'\napi_key="\n[server]\nbind = "/var/run/x"\n')
    assert (config.secret, config.listen) == ("'hush'", UnixEndpoint('"/var/run/x"'))
    quoted = "the quotes are part of its value; remove them if you do not mean them"
    assert config.warnings == (f"[api] api_secret: {quoted}", f"[server] bind: {quoted}")


def test_a_comment_behind_a_value_and_a_byte_order_mark_are_none_of_it(read):
    config = read("\ufeff[api]\napi_key = key   ; the project\napi_secret = a;b\n[server]\nbind = d.sock ; here\n")
    assert (config.project, config.secret, config.listen) == ("key", "a;b", UnixEndpoint("d.sock"))


def test_a_section_in_capitals_is_told_with_its_name(read):
    assert read("[API]\nx=y\n").warnings == ("[API] is unknown and ignored; did you mean [api]?",)


def test_what_is_not_utf_8_is_told_with_its_place(tmp_path):
    (tmp_path / "creditapi.ini").write_bytes("[api]\napi_secret=é".encode("latin-1"))
    with pytest.raises(CpsimError, match="not UTF-8 from byte 17 on"):
        read_config(tmp_path / "creditapi.ini")


def test_an_empty_file_is_the_deployed_daemons_defaults(read):
    assert read("") == Config(listen=UnixEndpoint("/var/run/creditapi.socket"), flush_interval_s=5)


def test_what_is_no_unix_socket_has_no_default(read):
    assert read("[server]\nsocket=tcp\n").listen is None


def test_of_what_is_given_twice_the_last_counts(read):
    config = read("[api]\napi_key=a\napi_key=b\nflush_interval=9\n[server]\nbind=x\nbind=y\n[api]\nflush_interval = 2")
    assert (config.project, config.flush_interval_s, config.listen) == ("b", 2, UnixEndpoint("y"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[api]\nflush_interval=soon", "flush_interval=soon is not a number of seconds"),
        ("[api]\nflush_interval=-1", "flush_interval=-1"),
        ("[api]\nflush_interval=nan", "flush_interval=nan"),
        ("[api]\napi_url=cp.example.org", "cp.example.org"),
        ("[api]\napi_url=/var/run/x", "not a URL"),
        ("[server]\nsocket=tcp\nbind=/var/run/x", "HOST:PORT"),
        ("[server]\nsocket=tcp\nbind=127.0.0.1:65536", "socket=tcp with bind=127.0.0.1:65536: use unix with a PATH"),
        ("[server]\nsocket=udp\nbind=/var/run/x", "socket=udp"),
        ("[server]\nloglevel=loud", "loud"),
        ("no section", r"not an INI file: line 1: there is no \[section\] before it"),
        ("[api\napi_secret=hush", "not an INI file: line 1"),
        ("[api]\napi_secret=hush\nnothing", "a line is not KEY = VALUE"),
    ],
)
def test_what_cannot_be_used_is_told_with_the_file(read, text, said):
    with pytest.raises(CpsimError, match=said) as told:
        read(text)
    assert "creditapi.ini" in str(told.value)
    assert "hush" not in str(told.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CpsimError, match="No such file"):
        read_config(tmp_path / "none")


def test_a_key_that_is_not_known_is_told_with_the_nearest(read):
    found = read("[api]\nflush_intervl=5\napi_secret=hush\n[server]\ncolour=red\n[other]\nx=y\n")
    assert found.flush_interval_s == 5
    section, misspelt, foreign = found.warnings
    assert section == "[other] is unknown and ignored; there are [api] and [server]"
    assert misspelt == "[api] flush_intervl is unknown and ignored; did you mean flush_interval?"
    assert foreign.startswith("[server] colour is unknown and ignored; there are socket, bind,")
