"""Payloads: a workload's columns rendered as frames or requests, thousands at a time.

The bytes equal those that `cpdaemon` sends for the same command, at a tenth of the cost: the strings of a workload are
checked once, when it is made, not once per operation.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from cpsim.replay.in_order import in_order
from cpsim.scenario.models.misbehaviour import UNSIGNED, frame_bytes
from cpsim.scenario.workload import ABSENT, FRAME, KIND_NAMES
from cpsim.system.mapped import let_go

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from cpdaemon.endpoint import UrlEndpoint
    from cpsim.scenario.workload import Workload

CHUNK: Final = 16_384
LET_GO: Final = 1 << 17
"""Operations after which what was read of the workload's files is let go."""
UNSIGNED_BYTES: Final = UNSIGNED.encode()


class Syntax(Protocol):
    """The syntax of a command: a daemon's frame, or JSON."""

    def template(self, kind: str, prefix: str | None, arguments: Iterable[tuple[str, bool]]) -> bytes:
        """A bytes template for the slot's number, then the arguments, each (name, is text).

        Without a prefix, the template is for the slot's id, a text.
        """

    def text(self, value: str) -> bytes:
        """A text value, encoded for the template."""

    def slot(self, slot_id: str) -> bytes:
        """A slot id, encoded for a malformed frame."""


class Frames:
    """A daemon's frames: `claim,slot=run-1,machine=m-7`."""

    def template(self, kind: str, prefix: str | None, arguments: Iterable[tuple[str, bool]]) -> bytes:
        """See `Syntax`."""
        slot = "%b" if prefix is None else f"{_literal(prefix)}-%d"
        fields = [f",{_literal(name)}=%{'b' if is_text else 'd'}" for name, is_text in arguments]
        return f"{kind},slot={slot}{''.join(fields)}".encode()

    def text(self, value: str) -> bytes:
        """See `Syntax`."""
        return value.encode()

    def slot(self, slot_id: str) -> bytes:
        """See `Syntax`."""
        return slot_id.encode()


class Bodies:
    """The server's JSON bodies, in ASCII: `{"slot":"run-1","machine":"m-7"}`."""

    def template(self, kind: str, prefix: str | None, arguments: Iterable[tuple[str, bool]]) -> bytes:
        """See `Syntax`."""
        del kind
        slot = "%b" if prefix is None else f'{_literal(json.dumps(prefix)[:-1])}-%d"'
        fields = [f",{_literal(json.dumps(name))}:%{'b' if is_text else 'd'}" for name, is_text in arguments]
        return f'{{"slot":{slot}{"".join(fields)}}}'.encode()

    def text(self, value: str) -> bytes:
        """See `Syntax`."""
        return json.dumps(value).encode()

    def slot(self, slot_id: str) -> bytes:
        """See `Syntax`."""
        return self.text(slot_id)[1:-1]


def _literal(text: str) -> str:
    return text.replace("%", "%%")


def frames(workload: Workload, prefix: str, at_once: int = CHUNK) -> Iterator[list[bytes]]:
    """The daemon frames of a workload's operations, in order, `at_once` in a list."""
    yield from _rendered(workload, prefix, Frames(), at_once)


def requests(
    workload: Workload, prefix: str, endpoint: UrlEndpoint, credentials: tuple[str, str], at_once: int = CHUNK
) -> Iterator[list[bytes]]:
    """The signed HTTP requests of a workload's operations, in order, `at_once` in a list."""
    project_id, secret = credentials
    heads = [
        f"POST {endpoint.path}/batch/{kind} HTTP/1.1\r\nHost: {endpoint.authority}\r\n"
        f"Content-Type: application/json\r\nAuthorization: sha-256,{project_id},".encode()
        for kind in (*KIND_NAMES[:FRAME], KIND_NAMES[0])  # a malformed frame has no path of its own
    ]
    secret_bytes = secret.encode()
    sha256 = hashlib.sha256
    start = 0
    for bodies in _rendered(workload, prefix, Bodies(), at_once):
        kinds = workload.kind[start : start + len(bodies)].tolist()
        start += len(bodies)
        made = [
            b"%b%b\r\nContent-Length: %d\r\n\r\n%b"
            % (heads[kind], sha256(body + secret_bytes).hexdigest().encode(), len(body), body)
            for kind, body in zip(kinds, bodies, strict=True)
        ]
        for place in [place for place, kind in enumerate(kinds) if kind == FRAME]:
            if bodies[place].startswith(UNSIGNED_BYTES):
                own = bodies[place].removeprefix(UNSIGNED_BYTES)
                digest = sha256(own + b"not " + secret_bytes).hexdigest().encode()
                made[place] = b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (heads[FRAME], digest, len(own), own)
        yield made


def _rendered(workload: Workload, prefix: str, syntax: Syntax, at_once: int) -> Iterator[list[bytes]]:
    workload, slot_numbers = in_order(workload)
    pools = _Pools(workload, syntax)
    kept = [syntax.text(slot_id) for slot_id in workload.slot_ids]
    for start in range(0, len(workload), at_once):
        stop = min(start + at_once, len(workload))
        kinds = workload.kind[start:stop]
        rows = workload.row[start:stop]
        slots = workload.slot[start:stop]
        numbers = slot_numbers[start:stop]
        rendered: list[bytes] = [b""] * (stop - start)
        for code in np.unique(kinds).tolist():
            places = np.flatnonzero(kinds == code)
            if code == FRAME:
                forms = workload.arguments["frame"]["frame"]
                assert forms.texts is not None
                for place, form in zip(places.tolist(), forms.values[rows[places]].tolist(), strict=True):
                    rendered[place] = frame_bytes(
                        forms.texts[form], syntax.slot(workload.slot_id(slots[place], prefix))
                    )
                continue
            columns = pools.columns(code, rows[places])
            for given, selected in _patterns(columns, len(places)):
                chosen = [columns[c] for c in given]
                template = syntax.template(
                    KIND_NAMES[code], None if kept else prefix, [(name, texts is not None) for name, texts, _ in chosen]
                )
                values = [
                    column[selected].tolist() if texts is None else [texts[i] for i in column[selected].tolist()]
                    for _, texts, column in chosen
                ]
                where = places[selected]
                named: list[Any] = [kept[slot] for slot in slots[where].tolist()] if kept else numbers[where].tolist()
                for place, arguments in zip(where.tolist(), zip(named, *values, strict=True), strict=True):
                    rendered[place] = template % arguments
        if start // LET_GO > (start - at_once) // LET_GO:
            let_go()
        yield rendered


class _Pools:
    """A workload's arguments, with texts encoded in a syntax."""

    def __init__(self, workload: Workload, syntax: Syntax) -> None:
        self._arguments = [workload.arguments[kind] for kind in KIND_NAMES[:FRAME]]
        pools = {id(texts): texts for table in self._arguments for _, texts in table.columns.values()}
        self._encoded = {
            key: None if texts is None else [syntax.text(text) for text in texts] for key, texts in pools.items()
        }

    def columns(
        self, code: int, rows: npt.NDArray[np.int32]
    ) -> list[tuple[str, Sequence[bytes] | None, npt.NDArray[np.integer]]]:
        """The arguments of rows of a kind: name, texts that the values index (None if values are numbers), values."""
        columns = self._arguments[code].columns.items()
        return [(name, self._encoded[id(texts)], values[rows]) for name, (values, texts) in columns]


def _patterns(
    columns: Sequence[tuple[str, Sequence[bytes] | None, npt.NDArray[np.integer]]], count: int
) -> Iterator[tuple[list[int], npt.NDArray[np.intp]]]:
    """Groups of rows with the same arguments: the indices of their columns, and the rows."""
    given = np.zeros(count, dtype=np.int64)
    for bit, (_, _, column) in enumerate(columns):
        given |= (column != ABSENT).astype(np.int64) << bit
    for pattern in np.unique(given).tolist():
        yield (
            [bit for bit in range(len(columns)) if pattern >> bit & 1],
            np.flatnonzero(given == pattern),
        )
