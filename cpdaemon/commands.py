"""The commands of the protocol: a table that describes each once, and values that are always valid.

The wire format has no escaping: a `,` or `=` in a slot id would start another argument. So the constructors check every
name and value.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType

from cpdaemon.errors import InvalidCommand
from cpdaemon.value import Value

TYPE_CHECKING = False  # typing takes longer to import than this package
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "COMMANDS",
    "KINDS",
    "MAX_FRAME_BYTES",
    "NAMED",
    "REQUIRED",
    "Alloc",
    "Claim",
    "Command",
    "Counters",
    "Description",
    "Discard",
    "Field",
    "Meta",
    "command_of",
]


class Field(Value):
    """One argument of a command, beside its slot.

    Attributes:
        name: its name on the wire.
        value: type of its value: `int`, a whole number, or `str`.
        required: whether a command without it is malformed.
        least: smallest accepted number.
        default: text that the accounts use where it is not given; None without one.
    """

    __match_args__ = ("name", "value", "required", "least", "default")
    name: str
    value: type[int] | type[str]
    required: bool
    least: int
    default: str | None

    def __init__(
        self,
        name: str,
        value: type[int] | type[str],
        required: bool = False,  # noqa: FBT001, FBT002 - copied by position
        least: int = 0,
        default: str | None = None,
    ) -> None:
        self._freeze(name=name, value=value, required=required, least=least, default=default)


class Description(Value):
    """A kind of command. Each has a `slot`, a text, first among its arguments.

    Attributes:
        kind: its word on the wire.
        does: its effect, in a line.
        rank: position in which a server applies it, among one slot's commands in a bulk request; commands of equal rank
            are independent.
        fields: its arguments under fixed names, in wire order.
        free: type of its values under free names, at least one of which is required; None without such values.
        state: state of a slot after it; None if unchanged.
    """

    __match_args__ = ("kind", "does", "rank", "fields", "free", "state")
    kind: str
    does: str
    rank: int
    fields: tuple[Field, ...]
    free: type[int] | type[str] | None
    state: str | None

    def __init__(  # noqa: PLR0917 - copied by position
        self,
        kind: str,
        does: str,
        rank: int,
        fields: tuple[Field, ...] = (),
        free: type[int] | type[str] | None = None,
        state: str | None = None,
    ) -> None:
        self._freeze(kind=kind, does=does, rank=rank, fields=fields, free=free, state=state)

    def type_of(self, name: str) -> type[int] | type[str] | None:
        """Return the type of an argument's value; None if there is no such argument."""
        if name == "slot":
            return str
        return next((field.value for field in self.fields if field.name == name), self.free)


COMMANDS: Mapping[str, Description] = MappingProxyType(
    {
        command.kind: command
        for command in (
            Description(
                "alloc",
                "allocates a slot: with exact credits, or a range, or neither",
                0,
                (Field("credits", int), Field("min", int), Field("max", int), Field("expire", int, least=1)),
                state="allocated",
            ),
            Description("counters", "adds to counters of a slot, which its claim grants", 1, free=int),
            Description("meta", "sets metadata of a slot", 1, free=str),
            Description(
                "discard",
                "discards a slot: nothing is granted",
                2,
                (Field("reason", str, default="unspecified"),),
                state="discarded",
            ),
            Description(
                "claim",
                "grants a slot's credits and counters to a machine",
                3,
                (Field("machine", str, required=True), Field("credits", int)),
                state="claimed",
            ),
        )
    }
)
"""Every command of the protocol, by kind, in the order in which a server applies the classes of a bulk request."""

KINDS = tuple(COMMANDS)
"""Every kind of command, in the same order."""

REQUIRED = {
    kind: ("slot", *(field.name for field in command.fields if field.required)) for kind, command in COMMANDS.items()
}
"""The required arguments of each kind, slot first."""

NAMED = {
    kind: tuple(name for name in REQUIRED[kind] if command.type_of(name) is str) for kind, command in COMMANDS.items()
}
"""The arguments by which each kind names something, slot first: its required texts."""

MAX_FRAME_BYTES = 1_500
"""The deployed daemon reads no further."""

_MAX_NUMBER = 2**63 - 1

_WANTED = {
    kind: {
        "slot": Field("slot", str, required=True),
        **{field.name: field for field in command.fields},
        **({"values": Field("values", command.free, required=True, least=-_MAX_NUMBER)} if command.free else {}),
    }
    for kind, command in COMMANDS.items()
}
"""What each field of a kind's class must be; `values` are those under free names."""


class Command(Value, ABC):
    """Base class of commands: immutable, compared by value, checked against the table on construction.

    Attributes:
        kind: the command's word on the wire, such as "alloc".
        slot: id of its slot.
        frame: what carries it to a daemon: at most `MAX_FRAME_BYTES`, without a newline.
    """

    __match_args__ = ("slot",)
    kind: str
    slot: str
    frame: bytes

    @abstractmethod
    def __init__(self, slot: str) -> None: ...

    def arguments(self) -> dict[str, str | int]:
        """Return the arguments given, under their wire names and in wire order."""
        arguments: dict[str, str | int] = {}
        names: tuple[str, ...] = self.__match_args__
        for name in names:
            value = getattr(self, name)
            if name == "values":
                arguments.update(value)
            elif value is not None:
                arguments[name] = value
        return arguments

    def _freeze(self, **fields: object) -> None:
        if "values" in fields:
            fields["values"] = MappingProxyType(_named(self.kind, fields["values"]))
        fields["frame"] = frame = ",".join(_words(self.kind, fields)).encode()
        vars(self).update(fields)
        if len(frame) > MAX_FRAME_BYTES:
            raise InvalidCommand(
                f"{self.kind}: slot {_shown(self.slot)} has a frame of {len(frame):,} bytes, and a daemon reads "
                f"{MAX_FRAME_BYTES:,}: shorten its values, or send counters and metadata in several commands"
            )

    def __hash__(self) -> int:
        return hash((self.kind, self.slot))


class Alloc(Command):
    """Allocate a slot, with exact credits, or a range, or neither.

    Attributes:
        slot: id never used before in this project.
        credits: credits that any claim grants; at least 0.
        min: least credits that a claim grants; at least 0.
        max: most credits that a claim grants; at least min.
        expire: minutes until the slot expires; at least 1.

    Raises:
        InvalidCommand: a value cannot be represented, or min > max.
    """

    __match_args__ = ("slot", "credits", "min", "max", "expire")
    kind = "alloc"
    credits: int | None
    min: int | None
    max: int | None
    expire: int | None

    def __init__(
        self,
        slot: str,
        credits: int | None = None,
        min: int | None = None,
        max: int | None = None,
        expire: int | None = None,
    ) -> None:
        self._freeze(slot=slot, credits=credits, min=min, max=max, expire=expire)
        if min is not None and max is not None and min > max:
            raise InvalidCommand(f"alloc: min {min} is over max {max}: swap them, or leave one out")


class Claim(Command):
    """Claim a slot for the machine that did its work.

    Attributes:
        slot: id of an allocated slot.
        machine: id of the machine that earns the credits.
        credits: credits to grant if alloc gave none; at least 0.

    Raises:
        InvalidCommand: a value cannot be represented.
    """

    __match_args__ = ("slot", "machine", "credits")
    kind = "claim"
    machine: str
    credits: int | None

    def __init__(self, slot: str, machine: str, credits: int | None = None) -> None:
        self._freeze(slot=slot, machine=machine, credits=credits)


class Discard(Command):
    """Discard a slot: it grants nothing.

    Attributes:
        slot: id of an allocated slot.
        reason: a word such as "expired", "invalid" or "lost".

    Raises:
        InvalidCommand: a value cannot be represented.
    """

    __match_args__ = ("slot", "reason")
    kind = "discard"
    reason: str | None

    def __init__(self, slot: str, reason: str | None = None) -> None:
        self._freeze(slot=slot, reason=reason)


class Counters(Command):
    """Add to counters of a slot, which a claim adds to the machine's and the user's.

    Attributes:
        slot: id of an allocated slot.
        values: number to add, by counter; may be negative; at least one. A read-only copy.

    Raises:
        InvalidCommand: a name or value cannot be represented.
    """

    __match_args__ = ("slot", "values")
    kind = "counters"
    values: Mapping[str, int]

    def __init__(self, slot: str, values: Mapping[str, int]) -> None:
        self._freeze(slot=slot, values=values)


class Meta(Command):
    """Set metadata of a slot.

    Attributes:
        slot: id of an allocated slot.
        values: text by name; at least one. A read-only copy.

    Raises:
        InvalidCommand: a name or value cannot be represented.
    """

    __match_args__ = ("slot", "values")
    kind = "meta"
    values: Mapping[str, str]

    def __init__(self, slot: str, values: Mapping[str, str]) -> None:
        self._freeze(slot=slot, values=values)


def command_of(kind: str, arguments: Mapping[str, str | int]) -> Command:
    """Return the command of a kind with these arguments, by their wire names, slot included.

    Raises:
        InvalidCommand: the protocol has no such command, or a value cannot be represented.
    """
    if kind not in COMMANDS:
        raise InvalidCommand(f"unknown command {kind!r}: there are {', '.join(KINDS)}")
    names = ["slot", *(field.name for field in COMMANDS[kind].fields)]
    given: dict[str, object] = {name: arguments[name] for name in names if name in arguments}
    rest = {name: value for name, value in arguments.items() if name not in given}
    if COMMANDS[kind].free is not None:
        given["values"] = rest
    elif rest:
        raise InvalidCommand(f"{kind}: there is no argument {min(rest)!r}: there are {', '.join(names)}")
    missing = [name for name in REQUIRED[kind] if name not in given]
    if missing:
        raise InvalidCommand(f"{kind}: there is no {missing[0]}: give one")
    (of_kind,) = (made for made in Command.__subclasses__() if made.kind == kind)
    return of_kind(**given)  # type: ignore[arg-type]  # each is checked there


def _words(kind: str, fields: "Mapping[str, Any]") -> list[str]:
    """Return what the commas of a frame separate, or raise InvalidCommand if a field does not fit the table."""
    wanted, words = _WANTED[kind], [kind]
    for name, value in fields.items():
        if name == "values":
            for free_name, free_value in value.items():
                _check_value(kind, free_name, free_value, wanted[name])
                words.append(f"{free_name}={free_value}")
        elif value is not None or wanted[name].required:
            _check_value(kind, name, value, wanted[name])
            words.append(f"{name}={value}")
    return words


def _check_value(kind: str, name: str, value: object, wanted: Field) -> None:
    if wanted.value is int:
        _check_number(kind, name, value, wanted.least)
    else:
        _check_text(kind, name, value)


def _named(kind: str, values: object) -> dict[str, object]:
    """Return a copy of the values under free names, after a check of the names."""
    if not isinstance(values, Mapping):
        raise InvalidCommand(f"{kind}: values {_shown(values)} must be a mapping of names to values")
    if not values:
        raise InvalidCommand(f"{kind}: there is nothing to send: give at least one name=value")
    named = dict(values)
    for name in named:
        _check_text(kind, "the name", name)
        if name.lower() == "slot":
            raise InvalidCommand(f"{kind}: the name {name!r} is taken by the slot id: choose another")
    return named


def _check_text(kind: str, name: str, value: object) -> None:
    # Exactly str: str() of a subclass may differ from the checked text.
    if type(value) is not str:
        problem = f"is of type {type(value).__name__}: write str(...)"
    elif not value:
        problem = "is empty: give it at least one character"
    elif (not value.isprintable() or "," in value or "=" in value) and (found := _unwritable(value)):
        problem = f"contains {found!r}, which no frame can carry: replace it"
    elif value != value.strip():
        problem = "starts or ends with white space, which a daemon may strip: remove it"
    else:
        return
    raise InvalidCommand(f"{kind}: {name} {_shown(value)} {problem}", f"{kind}: {name} {problem}")


def _unwritable(text: str) -> str:
    """Return the first character that no frame can carry, or nothing."""
    unwritable = (c for c in text if c in ",=" or c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff")
    return next(unwritable, "")


def _check_number(kind: str, name: str, value: object, least: int) -> None:
    # Exactly int: True is not a number of credits.
    if type(value) is not int:
        problem = f"is of type {type(value).__name__}: give a whole number, as int"
    elif not least <= value <= _MAX_NUMBER:
        problem = f"is out of bounds: give a whole number from {least} to {_MAX_NUMBER}"
    else:
        return
    raise InvalidCommand(f"{kind}: {name} {_shown(value)} {problem}", f"{kind}: {name} {problem}")


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        return "(beyond 64 bits)"  # Python does not format the longest ones
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
