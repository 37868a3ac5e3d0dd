"""Texts of reports: a command as its frame, a slot's history, and differences field by field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cpsim.faults.plan import Firing
    from cpsim.metrics.waits import Wait
    from cpsim.server.control.views import CommandView, FiringView, FrameView

MISSING: Final = "missing"
MOST_LINES: Final = 20
"""Lines of a list that a failure shows, with the number of the others."""


def frame(command: CommandView) -> str:
    """A command as a daemon reads it: `claim,slot=job-1,machine=worker-7`."""
    return ",".join([command.kind, *(f"{name}={value}" for name, value in command.arguments.items())])


def command_line(command: CommandView, start_us: int) -> str:
    """A command with the seconds since a start time, and the reason if it was refused."""
    refused = "" if command.refusal is None else f"   refused: {command.refusal}"
    return f"{_since(command.at_us, start_us)}  {frame(command)}{refused}"


def malformed_line(malformed: FrameView, start_us: int) -> str:
    """A malformed frame with the seconds since a start time."""
    return f"{_since(malformed.at_us, start_us)}  {malformed.frame.strip()!r}   malformed"


def firing_line(firing: Firing | FiringView) -> str:
    """A fault that fired, and for which command."""
    subject = f" {firing.kind}" if firing.kind else ""
    slot = f" of slot {firing.slot!r}" if firing.slot else ""
    return f"+{firing.time_s:.3f} s  {firing.stage}.{firing.action}{subject}{slot}"


def listed(lines: Sequence[str]) -> list[str]:
    """The last `MOST_LINES` lines, indented."""
    left_out = len(lines) - MOST_LINES
    head = [f"  ... {left_out:,} before these ..."] if left_out > 0 else []
    return head + [f"  {line}" for line in lines[-MOST_LINES:]]


def differences(expected: Mapping[str, object], found: Mapping[str, object], *, whole: bool = False) -> Iterator[str]:
    """Fields that differ; in mappings, unexpected keys count only if `whole`."""
    for name, wanted in expected.items():
        value = found[name]
        if isinstance(wanted, dict) and isinstance(value, dict):
            for key in dict.fromkeys((*wanted, *(value if whole else ()))):
                if key not in wanted:
                    yield f"{name}[{key!r}]: expected none, is {value[key]!r}"
                elif key not in value:
                    yield f"{name}[{key!r}]: expected {wanted[key]!r}, is {MISSING}"
                elif wanted[key] != value[key]:
                    yield f"{name}[{key!r}]: expected {wanted[key]!r}, is {value[key]!r}"
        elif wanted != value:
            yield f"{name}: expected {_plain(wanted)}, is {_plain(value)}"


def block(heading: str, lines: Iterable[str]) -> list[str]:
    """A heading with lines under it; nothing without lines."""
    lines = list(lines)
    return [f"{heading}:", *listed(lines)] if lines else []


def blocked(waits: Iterable[Wait], longer_than_s: float) -> str:
    """The callers that waited longer than a time, a line each; "" if none did."""
    lines = [
        f"{wait.wait_s:.3f} s{'' if wait.is_over else ' and still waiting'}: {wait.what}"
        for wait in waits
        if wait.wait_s > longer_than_s
    ]
    return "\n".join(block(f"callers that waited longer than {longer_than_s:g} s", lines))


def _plain(value: object) -> str:
    return repr(str(value)) if isinstance(value, str) else MISSING if value is None else repr(value)


def _since(at_us: int, start_us: int) -> str:
    return f"+{(at_us - start_us) / 1e6:,.3f} s"
