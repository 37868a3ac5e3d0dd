"""Texts of reports: a command as its frame, a slot's history, and differences field by field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cpsim.faults.plan import Firing
    from cpsim.faults.spec import Fault
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


def received_lines(commands: Sequence[CommandView], malformed: Sequence[FrameView], start_us: int) -> list[str]:
    """The last commands, those that were refused, and the malformed ones."""
    lines = [command_line(each, start_us) for each in commands]
    refused = [line for line, each in zip(lines, commands, strict=True) if each.refusal is not None]
    return [
        *block(f"last commands of {len(lines):,} received", lines),
        *block(f"refused: {len(refused):,}", refused),
        *block("malformed", [malformed_line(each, start_us) for each in malformed]),
    ]


def refused_lines(refusals: Sequence[CommandView], malformed: Sequence[FrameView], start_us: int) -> list[str]:
    """The refused and malformed commands; nothing if there are none."""
    refused = block(f"{len(refusals)} refused by the accounts", [command_line(each, start_us) for each in refusals])
    heading = f"{len(malformed)} malformed, answered ER by the daemon"
    return refused + block(heading, [malformed_line(each, start_us) for each in malformed])


def complaint(refused: Sequence[str], unfired: Sequence[tuple[Fault, int]]) -> str | None:
    """What fails a test at its end, and how to allow it; None if there is nothing."""
    never = block(
        f"faults that never fired: {len(unfired)}", [f"{fault}: {_why(fault, count)}" for fault, count in unfired]
    )
    lines = [*refused, "(allow_refusals=True lets such a test pass)"] if refused else []
    lines += [*never, "(allow_unfired=True lets such a test pass)"] if never else []
    return "\n".join(lines) or None


def _why(fault: Fault, selected: int) -> str:
    if not fault.hooks:
        return "its time has not come"
    if not selected:
        return "no command has met it"
    return f"{selected} commands have met it, and it fires from number {fault.nth} on"


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
