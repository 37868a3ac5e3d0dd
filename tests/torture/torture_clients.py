"""The clients of a simulated site, and what they have been promised."""

from __future__ import annotations

from dataclasses import dataclass, field

from torture_network import Connection

from cpdaemon.wire import MalformedFrame, parse

KINDS_OF_END = ("", "\n", "\r\n")
MOST_COUNTERS = 3
NEVER = {"ER", "not sent"}
"""What a client sees of a command that is certainly not applied."""


@dataclass
class Command:
    """One command and its client's view of it.

    Attributes:
        segments: what remains to be sent.
        status: OK or ER as answered; "unknown" without an answer; "not sent" if no byte was sent; "" before.
        sent: the beginnings of the frame that may have arrived alone, as the daemon may read them.
        answered: bytes that had arrived when it was answered OK, which the answer covers.
        covered: bytes that are certain to be applied: all that the daemon has read, but for what its end may lose.
    """

    kind: str
    slot: str
    tag: str
    segments: list[bytes]
    status: str = ""
    sent: list[bytes] = field(default_factory=list)
    answered: int = 0
    covered: int = 0
    _found: tuple[object, dict[str, dict[str, str]]] = (None, {})

    def on_close(self, read):
        """The daemon has closed in order, and has read so many bytes."""
        if self.status == "OK":
            self.covered = read

    def versions(self):
        """The well-formed frames that may be kept for it now, by text."""
        state = len(self.sent), self.answered
        if state != self._found[0]:
            self._found = state, self._versions()
        return self._found[1]

    def is_whole(self, text):
        """Whether a version has all that is certain to be applied."""
        return len(text) >= len(self.sent[-1][: self.covered].strip())

    def arguments(self):
        """Its arguments, once it was sent."""
        return parse(self.sent[-1])[1]

    def _versions(self):
        found = {}
        for frame in self.sent:
            if len(frame) >= self.answered:
                try:
                    _, arguments = parse(frame)
                except MalformedFrame:
                    continue
                found[frame.decode().strip()] = arguments
        return found


class Life:
    """One slot and the client that sends its commands, one after the other."""

    def __init__(self, world, number):
        self.world = world
        self.slot = f"s{number:04}"
        self.commands = []
        self.connection = None
        self.left = world.chance.randint(0, MOST_COUNTERS)
        self.is_over = False
        """Whether nothing more is sent."""

    @property
    def is_writing(self):
        """Whether a command is sent in part and not answered."""
        return self.connection is not None and bool(self.commands[-1].segments and not self.commands[-1].status)

    def step(self):
        """Do the next thing: connect, send a segment, read the answer, or leave."""
        chance = self.world.chance
        if self.connection is None:
            self._begin()
            return
        command = self.commands[-1]
        if command.segments and self.connection.answer != "ER" and not self.connection.is_over:
            if chance.random() < 0.1 * self.world.impatience:
                self._end(reset=chance.random() < 0.5)
            else:
                self._send(command)
        elif command.status or self.connection.is_over:
            self._end()
        elif chance.random() < 0.05 * self.world.impatience:
            self._end(reset=chance.random() < 0.5)

    def _begin(self):
        kind = "alloc" if not self.commands else "counters" if self.left else "claim"
        command = self._command(kind)
        listening = self.world.daemon.listening
        if listening is None or not listening.is_open:
            return  # nothing was sent: the next one is another
        self.commands.append(command)
        self.connection = Connection(self._answered, command.on_close)
        listening.backlog.append(self.connection.far)
        if kind == "counters":
            self.left -= 1
        if self.world.chance.random() < 0.7:
            self._send(command)

    def _command(self, kind):
        world, chance = self.world, self.world.chance
        tag = f"k{world.next_number():04}"
        rest = {"alloc": ",credits=70", "counters": f",{tag}=100", "claim": f",machine={tag}0"}[kind]
        head = f"{kind},slot={self.slot}"
        frame = head + rest + chance.choice(KINDS_OF_END)
        cut = len(frame)
        if chance.random() < world.slowness:
            # no beginning of it may be a command of another slot, or of none of its own
            before_slot, behind_slot = range(1, len(kind) + 7), range(len(head) + (kind != "alloc"), len(head + rest))
            cut = chance.choice(chance.choice([before_slot, behind_slot, behind_slot[-2:]]))
        pieces = [piece for piece in (frame[:cut], frame[cut:]) if piece]
        return Command(kind, self.slot, tag, [piece.encode() for piece in pieces])

    def send_directly(self):
        """An alloc that is sent without a connection to the daemon."""
        command = self._command("alloc")
        command.sent.append(b"".join(command.segments))
        command.segments = []
        self.commands.append(command)
        return command

    def _send(self, command):
        piece = command.segments.pop(0)
        self.connection.send(piece)
        command.sent.append((command.sent[-1] if command.sent else b"") + piece)
        self.world.note("sent", piece)

    def _answered(self, answer):
        command = self.commands[-1]
        command.status = answer
        command.answered = command.covered = self.connection.sent if answer == "OK" else 0
        self.world.note("answer", command.tag, answer)

    def _end(self, *, reset=False):
        command = self.commands[-1]
        self.connection.close(reset=reset)
        self.connection = None
        if not command.status:
            command.status = "unknown" if command.sent else "not sent"
        self.world.note("end", command.tag, command.status)
        stays = command.status == "OK" or (command.status == "unknown" and self.world.chance.random() < 0.5)
        self.is_over = (
            self.world.is_mended
            or command.kind == "claim"
            or not (stays or (command.kind == "counters" and command.status != "OK"))
        )


class Books:
    """Whether the accounts and the spool agree with what clients were answered."""

    def __init__(self, lives):
        self.lives = lives

    def on_end(self):
        """The daemon has ended: what it had read and not written yet need not be applied."""
        for life in self.lives:
            for command in life.commands:
                command.covered = command.answered

    def of_slot(self, name):
        """The life of a slot."""
        return self.lives[int(name[1:])]

    def commands(self):
        return [command for life in self.lives for command in life.commands]

    def applied(self, command, slots):
        """The text of the version that the accounts have; None if none.

        Raises:
            AssertionError: they have it twice, or something else.
        """
        slot = slots.get(command.slot)
        if slot is None:
            return None
        if command.kind == "alloc":
            found = {"slot": command.slot} | ({} if slot.credits is None else {"credits": str(slot.credits)})
        elif command.kind == "claim":
            found = None if slot.machine is None else {"slot": command.slot, "machine": slot.machine}
        else:
            value = (slot.counters or {}).get(command.tag)
            found = None if value is None else {"slot": command.slot, command.tag: str(value)}
        if found is None:
            return None
        for text, arguments in command.versions().items():
            if arguments == found:
                return text
        raise AssertionError(f"{command.tag}: the accounts have {found}, which is applied twice or was never sent")

    def check(self, slots, kept):
        """Nothing is applied that was refused, twice or never sent, and nothing that was answered OK is lost.

        Args:
            slots: those of the accounts.
            kept: returns the commands in the spool and those listed as failed; None where that is not known now.
        """
        missing = []
        for life in self.lives:
            for command in life.commands:
                text = self.applied(command, slots)
                if text is None:
                    if command.status == "OK":
                        missing.append(command)
                else:
                    assert command.status not in NEVER, f"{text!r} was answered {command.status} and is applied"
        for name, slot in slots.items():
            tags = {command.tag for command in self.of_slot(name).commands}
            assert tags.issuperset(slot.counters or ()), f"slot {name!r} has a counter that nobody has sent"
        if missing and kept is not None:
            texts = kept()
            for command in missing:
                lost = command.versions().keys().isdisjoint(texts)
                assert not lost, f"{command.tag} ({command.kind} of {command.slot}) was answered OK, and is lost"

    def check_end(self, slots, failed):
        """Whatever was answered OK is applied once, or listed; nothing else is both; and refusals have their reason."""
        listed = {}
        for row in failed:
            assert row.command not in listed, f"{row.command!r} is listed twice"
            assert row.why == "refused", f"{row.command!r} is a dead letter: {row.error}"
            listed[row.command] = row.error
        unknown = set(listed)
        for life in self.lives:
            made = None
            for command in life.commands:
                texts = command.versions().keys() & listed.keys()
                unknown -= texts
                applied = self.applied(command, slots)
                count = (applied is not None) + len(texts)
                for text in (*texts, *([applied] if applied is not None else [])):
                    assert command.is_whole(text), f"{text!r} was cut: {command.sent[-1]!r} had been read"
                is_ok = command.status == "OK"
                allowed = {"OK": {1}, "ER": {0}, "not sent": {0}}.get(command.status, {0, 1})
                assert count in allowed, f"{command.tag} was answered {command.status!r} and is there {count} times"
                if command.kind == "alloc":
                    made = command if applied is not None else None
                    sure = is_ok
                for text in texts:
                    self._check_reason(command, listed[text], never_made=made is None or not sure, sure=is_ok)
        assert not unknown, f"nobody has sent what is listed: {sorted(unknown)}"

    def _check_reason(self, command, error, *, never_made, sure):
        assert "already allocated" not in error, f"{command.tag} was applied before: {error}"
        if sure and "never allocated" in error:
            assert never_made, f"{command.tag} overtook the alloc of {command.slot}: {error}"
        if sure and "is settled" in error:
            raise AssertionError(f"{command.tag} was overtaken by the claim of {command.slot}: {error}")
