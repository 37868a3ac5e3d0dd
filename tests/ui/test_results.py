"""What a command found, as files for continuous integration and as GitHub's workflows show it."""

from contextlib import suppress
from xml.etree import ElementTree as ET

import pytest

from cpsim.errors import CpsimError
from cpsim.ui.results import Case, CaseOutcome, ResultFiles, Results, junit, markdown, workflow_commands

HOSTILE = "a|b `c` <d> & \x1b[31m::error::x\u202e,%\r\n# e \ud800"
CASES = [
    Case("it works", CaseOutcome.PASSED, elapsed_s=1.5),
    Case(HOSTILE, CaseOutcome.FAILED, HOSTILE, f"```\n{HOSTILE}", (("what", HOSTILE),)),
    Case("cannot be seen", CaseOutcome.SKIPPED, "needs eyes"),
]
FOUND = Results("invalid", CASES, "```\noutput\n", {"left": "two\nlines"})


@pytest.fixture
def files(here):
    """files(environment) -> a context that writes out.xml and out.md."""
    return lambda **environment: ResultFiles("cpsim x", here / "out.xml", here / "out.md", str, environment)


def test_junit_counts_its_cases_and_keeps_their_text():
    suite = ET.fromstring(junit("cpsim x", FOUND)).find("testsuite")
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
        "time": "1.500",
    }
    assert [case.get("classname") for case in suite.iter("testcase")] == ["cpsim x"] * 3
    assert suite.find("properties/property[@name='left']").get("value") == "two\nlines"
    failure = suite.find("testcase/failure")
    assert failure.text.startswith("```\na|b `c` <d> & \\x1b[31m::error::x\\u202e,%\\r\n# e \\ud800")
    assert failure.get("message") == suite.find("testcase/properties/property").get("value")


def test_markdown_shows_foreign_text_as_it_is_in_a_row_and_a_block():
    text = markdown("cpsim x", FOUND)
    (row,) = (line for line in text.splitlines() if line.startswith("| failed"))
    assert row.count(" | ") == 2
    assert r"a\|b \`c\` \<d\> \& \\x1b\[31m" in row
    assert "1 failed, 1 skipped, 1 passed" in text
    assert "\n````text\n```\noutput\n````\n" in text
    assert "\x1b" not in text


def test_a_workflow_command_is_one_line_whatever_it_says():
    (line,) = workflow_commands("cpsim x", FOUND)
    head, message = line.removeprefix("::error title=").split("::", 1)
    assert head.isprintable()
    assert message.isprintable()
    assert head.startswith("cpsim x%3A a|b")
    assert "%2C%25\\r%0A# e" in head
    assert message.startswith("a|b `c` <d> & \\x1b[31m::error::x")
    many = Results("invalid", [Case(str(number), CaseOutcome.ERROR) for number in range(30)])
    assert len(workflow_commands("cpsim x", many)) == 10
    assert workflow_commands("cpsim x", many)[-1] == "::error title=cpsim x::21 more did not pass"


def test_an_exception_is_a_case_beside_what_was_found(files, here):
    with suppress(ValueError), files() as written:
        written.add(lambda: FOUND)
        raise ValueError("it broke")
    suite = ET.parse(here / "out.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.find("testcase/error").get("message")) == ("4", "it broke")
    assert "it broke" in (here / "out.md").read_text()


def test_a_file_of_an_earlier_run_does_not_stay_and_nothing_lies_beside_it(files, here):
    for name in ("out.xml", "out.md"):
        (here / name).write_text("earlier")
    with files() as written:
        assert list(here.iterdir()) == []
        written.add(lambda: FOUND)
    assert sorted(path.name for path in here.iterdir()) == ["out.md", "out.xml"]


def test_a_file_that_cannot_be_written_keeps_no_other_from_being_written(files, here):
    (here / "out.xml").mkdir()
    (here / "out.xml" / "full").touch()
    with pytest.raises(CpsimError, match=r"--junit .*out.xml cannot be written: Is a directory"), files() as written:
        written.add(lambda: FOUND)
    assert "### cpsim x: invalid" in (here / "out.md").read_text()


def test_github_gets_a_summary_appended_and_annotations(here, capsys):
    (here / "step").write_text("before\n")
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "step"}
    with ResultFiles("cpsim x", None, None, str, environment) as written:
        written.add(lambda: FOUND)
    assert (here / "step").read_text().startswith("before\n### cpsim x: invalid\n")
    assert capsys.readouterr().err.startswith("::error title=cpsim x%3A ")
    with ResultFiles("cpsim x", None, None, str, environment | {"GITHUB_STEP_SUMMARY": "no/where"}) as written:
        written.add(lambda: Results("valid"))
    assert capsys.readouterr().err.splitlines()[0] == "cpsim: GITHUB_STEP_SUMMARY: No such file or directory"


def test_nothing_is_made_that_nobody_wants(here):
    with ResultFiles("cpsim x", None, None, str, {}) as written:
        written.add(lambda: pytest.fail("made"))
    assert list(here.iterdir()) == []
