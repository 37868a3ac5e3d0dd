"""The random mode: Hypothesis thinks up commands, and the model says what has to come of each.

Where something else comes, the sequence of commands is shrunk until nothing can be left out of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import hypothesis
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from cpdaemon.commands import COMMANDS, REQUIRED, Command, Description, Field, command_of
from cpdaemon.errors import InvalidCommand
from cpsim.conformance.actions import Action, Bulk, Linking, Releasing, renamed, said
from cpsim.conformance.clause import Clause, Level, Need
from cpsim.conformance.examiner import Examiner
from cpsim.conformance.expected import step_of
from cpsim.conformance.findings import CannotRun, Deviation, NotVerifiable
from cpsim.conformance.sequence_run import SequenceRun
from cpsim.conformance.tidying import tidy
from cpsim.judge.repeat import shell_lines
from cpsim.judge.verdict import Ruling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cpsim.conformance.leavings import Left
    from cpsim.conformance.target import Target, TargetView

STEPS: Final = 15
COMMANDS_A_SEQUENCE: Final = 8 * STEPS
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
        known_quirks: by the names of quirks that the target is known to have, how often they show in slots or sums.
        not_verified: what could not be verified, and what would show it.
        left: what is left at the target; None before the end.
        interrupted: whether the run ended before its end.
    """

    target: Target
    run: str
    seed: int
    sequences: int = 0
    commands: int = 0
    deviation: Deviation | None = None
    sequence: list[Action] = field(default_factory=list)
    known_quirks: Counter[str] = field(default_factory=Counter)
    not_verified: str = ""
    left: Left | None = None
    interrupted: bool = False

    @property
    def ruling(self) -> Ruling:
        """Invalid if there is a deviation; unknown if interrupted, or where only answers can be seen; else valid."""
        if self.deviation is not None:
            return Ruling.INVALID
        return Ruling.UNKNOWN if self.not_verified or self.interrupted else Ruling.VALID

    def document(self) -> dict[str, Any]:
        """It as JSON has it."""
        deviation = self.deviation
        return {
            "endpoint": str(self.target),
            "verdict": self.ruling.value,
            "interrupted": self.interrupted,
            "seed": self.seed,
            "sequences": self.sequences,
            "commands": self.commands,
            "deviation": None if deviation is None else str(deviation),
            "python": self.python(),
            "shell": self.shell(),
            "known_quirks": dict(self.known_quirks),
            "not_verified": self.not_verified or None,
            "left": None if self.left is None else self.left.document(),
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
            *(["from cpdaemon.commands import command_of"] if self._has_bulks else []),
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
            *(f"    {_line(action)}" for action in self._repeated()),
        ]

    @property
    def _has_bulks(self) -> bool:
        return any(isinstance(action, Bulk) for action in self.sequence)

    def _repeated(self) -> list[Action]:
        """The sequence with ids that nobody has used."""
        return [renamed(action, lambda name: f"{self.run}-{name}") for action in self.sequence]

    def shell(self) -> list[str]:
        """The sequence as lines for a shell; nothing if nothing deviates."""
        endpoint = self.target.daemon or self.target.server
        if self.deviation is None or endpoint is None:
            return []
        lines: list[str] = []
        project = self.target.credentials and self.target.credentials[0]
        for action in self._repeated():
            commands: list[Command] = action.in_order() if isinstance(action, Bulk) else []
            if isinstance(action, Command):
                commands = [action]
            elif isinstance(action, Bulk):
                lines.append(f"# the next {len(commands)} were sent in one bulk")
            else:
                lines.append(f"# {said(action)}, through the control API")
            lines += shell_lines([step_of(command, 0) for command in commands], endpoint, project)
        return lines


def walk(
    target_view: TargetView, count: int, seed: int, on_sequence: Callable[[int], object] = lambda _: None
) -> Walks:
    """Drive a target with random sequences of commands; a KeyboardInterrupt ends it early, and what was found is kept.

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

    def begin() -> SequenceRun:
        walks.sequences += 1
        on_sequence(walks.sequences)
        return SequenceRun(examiner, walks, sees_accounts=Need.ACCOUNTS in target_view.needs)

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
        try:
            run_state_machine_as_test(hypothesis.seed(seed)(Walk), settings=settings)
        except (Deviation, Flaky) as error:
            walks.deviation = error if isinstance(error, Deviation) else None
            _shorten(walks, begin)
        except NotVerifiable as error:
            walks.not_verified = str(error)
    except KeyboardInterrupt:
        walks.interrupted = True
    finally:
        tidy(target_view)
    walks.left = target_view.left
    return walks


def _shorten(walks: Walks, begin: Callable[[], SequenceRun]) -> None:
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


def _shorter(sequence: list[Action]) -> Iterator[list[Action]]:
    """The sequence without one of its commands, the last first, or without a part of one that can do without."""
    for place in reversed(range(len(sequence))):
        yield sequence[:place] + sequence[place + 1 :]
    for place, action in enumerate(sequence):
        for simpler in _simpler(action):
            yield [*sequence[:place], *simpler, *sequence[place + 1 :]]


def _simpler(action: Action) -> Iterator[list[Action]]:
    """A command without one of the things that it says; a bulk as commands one by one, or without one of them."""
    if isinstance(action, Bulk):
        yield [*action.in_order()]
        for place in range(len(action.commands)):
            yield [Bulk(action.commands[:place] + action.commands[place + 1 :])]
    elif isinstance(action, Command):
        arguments = action.arguments()
        for name in arguments:
            simpler = _command(action.kind, {**arguments, name: None})
            if simpler is not None:
                yield [simpler]


def _deviation(run: SequenceRun, actions: Iterable[Action]) -> Deviation | None:
    """The deviation of what is done with new slots and machines, or None."""
    try:
        for action in actions:
            run.do(action)
        run.look_back()
    except Deviation as deviation:
        return deviation
    return None


MACHINES: Final = st.sampled_from(["machine-1", "machine-2"])
USERS: Final = st.sampled_from(["user-1", "user-2"])
ANY_COMMAND: Final = st.one_of(*map(_commands, COMMANDS.values()))


class _Walk(RuleBasedStateMachine):
    """The commands that may be sent, for Hypothesis to choose from."""

    def __init__(self, run: SequenceRun) -> None:
        super().__init__()
        self._sequence = run
        self._has_deviated = False

    @rule(command=ANY_COMMAND)
    def send(self, command: Command) -> None:
        """Send a command."""
        self._watch(lambda: self._sequence.do(command))

    @rule(commands=st.lists(ANY_COMMAND, min_size=2, max_size=6))
    def send_bulk(self, commands: list[Command]) -> None:
        """Send commands in one request."""
        self._watch(lambda: self._sequence.do(Bulk(tuple(commands))))

    @rule(machine=MACHINES, user=USERS)
    def link(self, machine: str, user: str) -> None:
        """Linking a machine to a user."""
        self._watch(lambda: self._sequence.do(Linking(machine, user)))

    @rule(machine=MACHINES)
    def release(self, machine: str) -> None:
        """Releasing a machine."""
        self._watch(lambda: self._sequence.do(Releasing(machine)))

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


def _line(action: Action) -> str:
    """An action as a line of the script."""
    if isinstance(action, Bulk):
        commands = ", ".join(f"command_of({each.kind!r}, {each.arguments()!r})" for each in action.in_order())
        return f"send(client.send_many, [{commands}])"
    return f"send(client.{_call(action)})" if isinstance(action, Command) else f"# {said(action)}"


def _call(command: Command) -> str:
    """A command as the arguments of the script's `send`."""
    arguments = command.arguments()
    words = [repr(arguments.pop(name)) for name in REQUIRED[command.kind]]
    if COMMANDS[command.kind].free is None:
        named = [f"{name}={value!r}" for name, value in arguments.items()]
    else:
        named = [f"**{arguments!r}"]
    return ", ".join([command.kind, *words, *named])
