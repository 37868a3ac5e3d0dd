"""The random mode: Hypothesis thinks up commands, and the model says what has to come of each.

Where something else comes, the sequence of commands is shrunk until nothing can be left out of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import hypothesis
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from cpdaemon.commands import COMMANDS, NAMED, REQUIRED, Command, Description, Field, command_of
from cpdaemon.errors import InvalidCommand
from cpsim.clock import SYSTEM_CLOCK
from cpsim.conformance.clause import Clause, Level, Need
from cpsim.conformance.examiner import Examiner
from cpsim.conformance.findings import CannotRun, Deviation, NotVerifiable
from cpsim.judge.model import NOTHING, START, Branch, SlotState, Span, Step, branches_after
from cpsim.judge.repeat import shell_lines
from cpsim.judge.verdict import Ruling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cpsim.conformance.target import Target, TargetView

STEPS: Final = 15
COMMANDS_A_SEQUENCE: Final = 4 * STEPS
"""Commands and requests of one sequence, at most, with those that read the states."""
CLAUSE: Final = Clause(
    "RANDOM", "Whatever commands are sent, each does what the protocol says.", "2", (), (), Level.MUST
)

NEVER: Final = 1_000
"""A multiple of the least value: in minutes, longer than a sequence takes."""
NUMBERS: Final = 20


def _values(field: Field) -> st.SearchStrategy[str | int | None]:
    """What an argument may be; ids and numbers are few, so that commands meet."""
    if field.value is int:
        least = field.least * NEVER
        values: st.SearchStrategy[str | int] = st.integers(least, least + NUMBERS)
    else:
        values = st.sampled_from([f"{field.name}-1", f"{field.name}-2"] if field.required else ["lost", "expired"])
    return values if field.required else st.none() | values


def _commands(description: Description) -> st.SearchStrategy[Command]:
    """Commands of a kind."""
    free: st.SearchStrategy[dict[str, Any]] = st.just({})
    if description.free is not None:
        values = st.integers(-NUMBERS, NUMBERS) if description.free is int else st.sampled_from(["a", "ä b"])
        free = st.dictionaries(st.sampled_from(["job/events", "n"]), values, min_size=1)
    slots = st.sampled_from(["slot-1", "slot-2", "slot-3"])
    fixed = st.fixed_dictionaries({"slot": slots, **{field.name: _values(field) for field in description.fields}})
    made = st.tuples(fixed, free).map(lambda each: _command(description.kind, each[0] | each[1]))
    return cast("st.SearchStrategy[Command]", made.filter(lambda command: command is not None))


def _command(kind: str, arguments: dict[str, str | int | None]) -> Command | None:
    """A command of these arguments, without those that are None; None if there is no such command."""
    try:
        return command_of(kind, {name: value for name, value in arguments.items() if value is not None})
    except InvalidCommand:
        return None


@dataclass
class Walks:
    """The result of the random sequences.

    Attributes:
        target: the target.
        run: the prefix of this run's ids.
        seed: of the random choices.
        sequences: the number of sequences, with those of shrinking.
        commands: the number of commands sent.
        deviation: the deviation at the end of the shortest sequence.
        sequence: the shortest sequence; its slots and machines are numbered.
        not_verified: what could not be verified, and what would show it.
    """

    target: Target
    run: str
    seed: int
    sequences: int = 0
    commands: int = 0
    deviation: Deviation | None = None
    sequence: list[Command] = field(default_factory=list)
    not_verified: str = ""

    @property
    def ruling(self) -> Ruling:
        """Invalid if there is a deviation; unknown where only acknowledgements can be seen; else valid."""
        if self.deviation is not None:
            return Ruling.INVALID
        return Ruling.UNKNOWN if self.not_verified else Ruling.VALID

    def document(self) -> dict[str, Any]:
        """It as JSON has it."""
        deviation = self.deviation
        return {
            "endpoint": str(self.target),
            "verdict": self.ruling.value,
            "seed": self.seed,
            "sequences": self.sequences,
            "commands": self.commands,
            "deviation": None if deviation is None else str(deviation),
            "python": self.python(),
            "shell": self.shell(),
            "not_verified": self.not_verified or None,
        }

    def python(self) -> list[str]:
        """The sequence as a script of client calls; nothing if nothing deviates."""
        if self.deviation is None:
            return []
        endpoint = self.target.daemon or self.target.server
        secret = ""
        if self.target.daemon is None and self.target.credentials is not None:
            secret = f', ({self.target.credentials[0]!r}, Path("secret").read_text().strip())'
        return [
            *(["from pathlib import Path", ""] if secret else []),
            "from cpdaemon import Client, CreditPiggyError",
            "",
            "",
            "def send(call, *arguments, **named):",
            "    try:",
            "        print(call.__name__, arguments, call(*arguments, **named) or 'accepted')",
            "    except CreditPiggyError as error:",
            "        print(call.__name__, arguments, error)",
            "",
            "",
            f"with Client({str(endpoint)!r}{secret}) as client:",
            *(f"    send(client.{_call(command)})" for command in self._repeated()),
        ]

    def _repeated(self) -> list[Command]:
        """The sequence with ids that nobody has used."""
        return [_renamed(command, lambda name: f"{self.run}-{name}") for command in self.sequence]

    def shell(self) -> list[str]:
        """The sequence as lines for a shell; nothing if nothing deviates."""
        endpoint = self.target.daemon or self.target.server
        if self.deviation is None or endpoint is None:
            return []
        steps = [_step(command, 0) for command in self._repeated()]
        return shell_lines(steps, endpoint, self.target.credentials and self.target.credentials[0])


def walk(
    target_view: TargetView, count: int, seed: int, on_sequence: Callable[[int], object] = lambda _: None
) -> Walks:
    """Drive a target with random sequences of commands.

    Args:
        target_view: the target.
        count: how many sequences.
        seed: of the random choices.
        on_sequence: called with the number of sequences so far.

    Raises:
        CannotRun: the target does not answer any more, or not in the same way twice.
    """
    walks = Walks(target_view.target, f"{target_view.target.slot_prefix}-{target_view.run}", seed)
    if target_view.target.server is None:
        walks.not_verified = f"What commands do: a daemon shows only that it acknowledges. It needs {Need.SERVER}"

    examiner = Examiner(target_view, CLAUSE)

    def begin() -> _SequenceRun:
        walks.sequences += 1
        on_sequence(walks.sequences)
        return _SequenceRun(examiner, walks, sees_accounts=Need.ACCOUNTS in target_view.needs)

    class Walk(_Walk):
        def __init__(self) -> None:
            super().__init__(begin())

    settings = hypothesis.settings(
        max_examples=count,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=[hypothesis.Phase.generate],  # its shrinking would send thousands of commands
        verbosity=hypothesis.Verbosity.quiet,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    try:
        run_state_machine_as_test(hypothesis.seed(seed)(Walk), settings=settings)
    except (Deviation, Flaky):
        _shorten(walks, begin)
    except NotVerifiable as error:
        walks.not_verified = str(error)
    return walks


def _shorten(walks: Walks, begin: Callable[[], _SequenceRun]) -> None:
    """Leave out of a sequence that deviates whatever it deviates without: commands first, then what they say."""
    walks.deviation = _deviation(begin(), walks.sequence)
    if walks.deviation is None:
        raise CannotRun("the same commands had different results: something else uses the target too")
    while True:
        for shorter in _shorter(walks.sequence):
            deviation = _deviation(begin(), shorter)
            if deviation is not None:
                walks.sequence, walks.deviation = shorter, deviation
                break
        else:
            return


def _shorter(sequence: list[Command]) -> Iterator[list[Command]]:
    """The sequence without one of its commands, the last first, or without a part of one that can do without."""
    for place in reversed(range(len(sequence))):
        yield sequence[:place] + sequence[place + 1 :]
    for place, command in enumerate(sequence):
        for simpler in _simpler(command):
            yield [*sequence[:place], simpler, *sequence[place + 1 :]]


def _simpler(command: Command) -> Iterator[Command]:
    """The command without one of the things that it says."""
    arguments = command.arguments()
    for name in arguments:
        simpler = _command(command.kind, {**arguments, name: None})
        if simpler is not None:
            yield simpler


def _deviation(run: _SequenceRun, commands: Iterable[Command]) -> Deviation | None:
    """The deviation of commands that are sent for new slots and machines, or None."""
    try:
        for command in commands:
            run.send(command)
        run.look_back()
    except Deviation as deviation:
        return deviation
    return None


class _SequenceRun:
    """One sequence of commands, sent to the target and to the model.

    Commands name slots and machines by numbers, which are replaced by new ids.
    """

    def __init__(self, examiner: Examiner, walks: Walks, *, sees_accounts: bool) -> None:
        self._examiner = examiner
        self._walks = walks
        self._sees_accounts = sees_accounts
        self._ids: dict[str, str] = {}
        self._branches: dict[str, Branch] = {}
        self.sent: list[Command] = []

    def send(self, command: Command) -> None:
        """Send a command, and compare the answer with the model's.

        Raises:
            Deviation: the answers differ.
        """
        self.sent.append(command)
        self._walks.commands += 1
        command = self._named(command)
        after = branches_after(
            self._branches.get(command.slot, START), _step(command, SYSTEM_CLOCK.monotonic_ns(), accepted=True)
        )
        if self._walks.target.daemon is not None:
            self._examiner.send(_frame(command))
        else:
            arguments = {name: value for name, value in command.arguments().items() if name != "slot"}
            reply = self._examiner.command(command.kind, command.slot, arguments)
            self._examiner.check(f"answer to {_frame(command)}", "accepted" if after else "refused", reply.outcome)
        if after:
            (self._branches[command.slot],) = after

    def look_back(self) -> None:
        """Compare the state of every slot with the model's.

        Raises:
            Deviation: the states differ.
        """
        if self._walks.target.server is None or not self.sent:
            return
        if self._walks.target.daemon is not None:
            self._examiner.wait_until_applied()
        for name in dict.fromkeys(command.slot for command in self.sent):
            slot = self._ids[name]
            state = self._branches.get(slot, START).state
            if self._sees_accounts:
                self._examiner.check(f"slot {slot}", _seen(state), self._look(slot))
            elif state.phase == "allocated":
                self._examiner.see_listed(slot)
            else:
                self._examiner.see_unlisted(slot)

    def keep(self) -> None:
        """Keep this sequence: it deviates."""
        self._walks.sequence = self.sent

    def _named(self, command: Command) -> Command:
        """The command with ids in the place of numbers."""

        def named(name: str) -> str:
            if name not in self._ids:
                self._ids[name] = self._examiner.new(name.partition("-")[0])
            return self._ids[name]

        return _renamed(command, named)

    def _look(self, slot: str) -> dict[str, object]:
        view = self._examiner.accounts.slot(self._examiner.project[0], slot)
        if view is None:
            return _seen(NOTHING)
        names = ("machine", "granted", "reason", "counters", "meta")
        return {"state": view.get("state"), **{name: view.get(name) for name in names}}


class _Walk(RuleBasedStateMachine):
    """The commands that may be sent, for Hypothesis to choose from."""

    def __init__(self, run: _SequenceRun) -> None:
        super().__init__()
        self._sequence = run
        self._has_deviated = False

    @rule(command=st.one_of(*map(_commands, COMMANDS.values())))
    def send(self, command: Command) -> None:
        """Send a command."""
        self._watch(lambda: self._sequence.send(command))

    def teardown(self) -> None:
        """Compare the state of every slot."""
        if not self._has_deviated:
            self._watch(self._sequence.look_back)

    def _watch(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Deviation:
            self._has_deviated = True
            self._sequence.keep()
            raise


def _renamed(command: Command, rename: Callable[[str], str]) -> Command:
    """A command with other ids of its slot and of whatever else it names."""
    arguments = command.arguments()
    ids = {name: rename(str(arguments[name])) for name in NAMED[command.kind]}
    return command_of(command.kind, {**arguments, **ids})


def _seen(state: SlotState) -> dict[str, object]:
    """A state as the accounts show it."""
    return {
        "state": state.phase,
        "machine": state.machine,
        "granted": state.granted,
        "reason": state.reason,
        "counters": dict(state.counters),
        "meta": dict(state.meta),
    }


def _step(command: Command, now_ns: int, *, accepted: bool | None = None) -> Step:
    return Step(command.kind, command.arguments(), Span(now_ns, now_ns), applied=True, accepted=accepted)


def _frame(command: Command) -> str:
    return ",".join([command.kind, *(f"{name}={value}" for name, value in command.arguments().items())])


def _call(command: Command) -> str:
    """A command as the arguments of the script's `send`."""
    arguments = command.arguments()
    words = [repr(arguments.pop(name)) for name in REQUIRED[command.kind]]
    if COMMANDS[command.kind].free is None:
        named = [f"{name}={value!r}" for name, value in arguments.items()]
    else:
        named = [f"**{arguments!r}"]
    return ", ".join([command.kind, *words, *named])
