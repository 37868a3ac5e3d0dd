"""Parsing of daemon frames; pure.

A frame is `COMMAND,name=value,name=value...` in UTF-8, one per connection, without terminator or escaping.
"""

from cpdaemon.commands import KINDS, MAX_FRAME_BYTES, REQUIRED

__all__ = ["MAX_FRAME_BYTES", "MalformedFrame", "parse"]

_BESIDE_SLOT = {kind: required[1:] for kind, required in REQUIRED.items()}


class MalformedFrame(ValueError):
    """A frame that a daemon answers with ER."""


def parse(frame: bytes) -> tuple[str, dict[str, str]]:
    """Parse one frame as a daemon does.

    Args:
        frame: the received bytes; white space around them is ignored.

    Returns:
        The command's kind, in lower case, and its arguments as text, slot included.

    Raises:
        MalformedFrame: the frame is malformed; the message says why.
    """
    frame = frame.strip()
    arguments: dict[str, str] = {}
    try:
        text = frame.decode()
        kind, *pairs = text.split(",")
        for pair in pairs:
            name, value = pair.split("=")
            arguments[name] = value
    except ValueError:
        raise MalformedFrame(_explain(frame)) from None
    kind = kind.lower()
    if (
        kind in _BESIDE_SLOT
        and arguments.get("slot")
        and (not (required := _BESIDE_SLOT[kind]) or all(map(arguments.get, required)))
        and len(arguments) == len(pairs)
        and "" not in arguments
        and len(frame) <= MAX_FRAME_BYTES
        and (text.isprintable() or not _control(text))
    ):
        return kind, arguments
    raise MalformedFrame(_explain(frame))


def _control(text: str) -> str:
    """Return the first control character, or nothing."""
    return next((c for c in text if c < " " or "\x7f" <= c <= "\x9f"), "")


def _explain(frame: bytes) -> str:
    """Return what makes a malformed frame malformed; the frame is stripped."""
    if not frame:
        return "the frame is empty: write COMMAND,slot=ID"
    if len(frame) > MAX_FRAME_BYTES:
        return f"the frame has {len(frame):,} bytes: at most {MAX_FRAME_BYTES:,} are read"
    try:
        text = frame.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} of the frame is not UTF-8"
    if found := _control(text):
        return f"the frame contains the control character {found!r}"
    kind, *pairs = text.split(",")
    if kind.lower() not in KINDS:
        return f"unknown command {kind[:80]!r}: there are {', '.join(KINDS)}"
    return f"{kind}: {_explain_arguments(kind, pairs)}"


def _explain_arguments(kind: str, pairs: list[str]) -> str:
    arguments: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            return f"argument {pair[:80]!r} has no '='"
        if "=" in value:
            return f"argument {pair[:80]!r} has more than one '='"
        if not name:
            return f"argument {pair[:80]!r} has no name"
        if name in arguments:
            return f"argument {name[:80]!r} is given twice"
        arguments[name] = value
    missing = next(name for name in REQUIRED[kind.lower()] if not arguments.get(name))
    return f"there is no {missing}: add {missing}=... to the {kind}"
