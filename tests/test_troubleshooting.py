"""What the page on troubles quotes is what is printed."""

import re
import socket
from itertools import pairwise
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"`([^`]+)`", "\n".join(re.findall(r"^###? (.*)", PAGE, re.MULTILINE)))
SOURCES = [
    path.read_text(encoding="utf-8")
    for folder in ("cpsim", "cpdaemon")
    for path in (Path(__file__).parent.parent / folder).rglob("*.py")
]
OF_OTHERS = {"Unknown config option: timeout", "fixture 'creditpiggy' not found"}
"""What pytest says."""
OF_THE_SYSTEM = {"Address already in use", "AF_UNIX path too long"}


@pytest.mark.parametrize("message", sorted(set(QUOTED) - OF_OTHERS - OF_THE_SYSTEM))
def test_a_message_is_one_of_ours(message):
    parts = [part.strip() for part in message.split("\N{HORIZONTAL ELLIPSIS}") if part.strip()]
    assert any(all(part in source for part in parts) for source in SOURCES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--unix", "x" * 120], "AF_UNIX path too long"),
        (["serve", "--http", "127.0.0.1:{taken}"], "Address already in use"),
        (["run", "smoke", "--target", "./nobody.socket"], "is it running there?"),
        (["serve", "--http", "0.0.0.0:0", "--control-token-file", "nowhere"], "nowhere"),
    ],
)
def test_a_message_is_printed(arguments, said, cpsim, here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, error = cpsim(*(each.format(taken=port) for each in arguments))
    assert status != 0
    assert said in error


def test_headings_are_in_levels():
    levels = [len(marks) for marks in re.findall(r"^(#+) ", PAGE, re.MULTILINE)]
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
