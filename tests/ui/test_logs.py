"""Lines of a log and of the command line, in each format and place."""

import json
import logging
import os
import sys

import pytest

from cpsim.ui.logs import Lines


@pytest.fixture
def record():
    try:
        int("\x1bbad")
    except ValueError:
        return logging.LogRecord("cpsim.x", logging.ERROR, "", 0, "a %s\x07\nb", ("ü",), sys.exc_info())


@pytest.fixture
def connect(capfd, monkeypatch):
    """A function that has standard error be connected to a journal; it is another file in each phase of a test."""

    def connect():
        found = os.fstat(sys.stderr.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")

    return connect


def test_text_has_time_and_level_and_moves_nothing_about(record):
    lines = Lines().formatter().format(record).split("\n")
    assert lines[0].endswith(r" ERROR cpsim.x: a ü\x07")
    assert (lines[1], lines[-1]) == ("b", r"ValueError: invalid literal for int() with base 10: '\x1bbad'")


def test_in_the_journal_each_line_has_its_priority(record, connect, capfd):
    connect()
    lines = Lines()
    assert lines.formatter().format(record).split("\n")[:2] == [r"<3>cpsim.x: a ü\x07", "<3>b"]
    assert lines.formatter().format(record).split("\n")[-1].startswith("<3>ValueError")
    assert " ERROR cpsim.x" in lines.formatter(in_file=True).format(record)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL):
        lines.report(level, "x")
    assert capfd.readouterr().err == "<7>cpsim: x\n<6>cpsim: x\n<4>cpsim: x\n<2>cpsim: x\n"


@pytest.mark.parametrize("stream", ["1:2", "", "rubbish"])
def test_another_journal_is_none(capfd, monkeypatch, stream):
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    Lines().error("no such file")
    Lines().warning("odd")
    assert capfd.readouterr().err == "cpsim: no such file\ncpsim: warning: odd\n"


def test_json_is_a_document_a_line(record, connect, capfd):
    connect()
    lines = Lines()
    lines.format = "json"
    text = lines.formatter(in_file=True).format(record)
    assert text.isascii()
    assert "\n" not in text
    found = json.loads(text)
    assert found.pop("time").endswith("+00:00")
    assert "ValueError: invalid literal" in found.pop("exception")
    assert found == {"level": "error", "logger": "cpsim.x", "message": "a ü\x07\nb"}
    lines.warning("odd")
    found = json.loads(capfd.readouterr().err)
    assert (found["level"], found["logger"], found["message"]) == ("warning", "cpsim", "odd")
    assert "exception" not in found


def test_an_error_of_a_command_has_the_format_of_its_log_and_the_next_one_its_own(cpsim, here):
    found = json.loads(cpsim("daemon", "--log-format", "json", "--spool", "none", "--status")[2])
    assert (found["level"], found["message"]) == ("error", "there is no spool none")
    assert cpsim("daemon", "--spool", "none", "--status")[2] == "cpsim: there is no spool none\n"
