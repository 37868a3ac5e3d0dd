"""A client of the control API, by which a fake shows its accounts, and its clock and faults are set."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CONTROL_PATH: Final = "/__cpsim/"
PAGE: Final = 10_000
OK: Final = 200
ABSENT: Final = 404
NO_QUERY: Final = 400
Rule = Literal[
    "faults-fired", "no-claim-before-alloc", "no-refusals", "no-slot-leaked", "nothing-sent-twice", "settled-once"
]
"""A rule on all commands of a project."""
NO_PARQUET: Final = 501
"""The status of a table from a server that is installed without the extra that writes Parquet."""


class Ask(Protocol):
    """Sends a request."""

    def __call__(self, method: str, path: str, body: bytes, *, slowly: bool) -> tuple[int, bytes]:
        """Return the status and the body of the response; `slowly`: the server may take its time."""


class ControlClient:
    """Reads and sets a fake.

    Args:
        ask: sends a request.
        error: makes the exception that a method raises if the server does not answer as it should.
        where: of the server, for messages.
    """

    def __init__(self, ask: Ask, error: Callable[[str], Exception], where: str) -> None:
        self._ask = ask
        self._error = error
        self._where = where

    def exists(self) -> bool:
        """Whether the server has a control API that can be used without a token."""
        status, body = self._ask("GET", f"{CONTROL_PATH}totals", b"", slowly=False)
        try:
            totals = json.loads(body)
        except (ValueError, RecursionError):  # a server that answers everything
            return False
        return status == OK and isinstance(totals, dict) and "pending" in totals

    def totals(self) -> dict[str, Any]:
        """How many acknowledged commands are `pending`, and the totals of each of the `projects`."""
        return self._object("totals", {"pending": int, "projects": dict})

    def projects(self) -> list[str]:
        """The ids of the projects."""
        return self._list("projects")

    def page(self, listing: str, project: str, cursor: int) -> dict[str, Any]:
        """A page of a project's `slots`, `machines` or `users`: its `items`, and the `next` cursor, None at the end."""
        return self._page(listing, project=project, cursor=cursor)

    def follows(self, project: str) -> bool:
        """Whether the server tells which commands of a project it took, as `applied` reads them."""
        status, _ = self._ask("GET", f"{CONTROL_PATH}applied?{urlencode({'project': project})}", b"", slowly=False)
        return status == OK

    def applied(self, project: str, cursor: int | None = None) -> dict[str, Any]:
        """A page of the `slots` of the commands since a cursor, the cursor of the `next`, and if some are `missed`.

        Without a cursor, commands are followed from now on.
        """
        query = {"project": project, "limit": PAGE} | ({} if cursor is None else {"cursor": cursor})
        return self._object(f"applied?{urlencode(query)}", {"slots": list, "next": int, "missed": bool})

    def named_slots(self, project: str, slots: Sequence[str]) -> list[dict[str, Any]]:
        """Slots of a project by their ids, without those that there are not."""
        return self._list(f"slots?{urlencode({'project': project})}", "POST", slots)

    def journal(self, project: str) -> Iterator[list[dict[str, Any]]]:
        """The commands that were received for a project, a page at a time."""
        return self._pages("journal", project=project)

    def firings(self) -> list[dict[str, Any]]:
        """The faults that fired, in order."""
        return [firing for page in self._pages("firings") for firing in page]

    def table(self, name: str, query: Mapping[str, object] | None = None) -> bytes | None:
        """`slots.parquet`, `accounts.parquet` or `ledger.jsonl`; None if the server has none, or writes no Parquet.

        The query asks for a page of it; None also if the server takes no such query.
        """
        path = f"{CONTROL_PATH}{name}?{urlencode(query)}" if query else f"{CONTROL_PATH}{name}"
        status, body = self._ask("GET", path, b"", slowly=True)
        missing = {ABSENT, NO_PARQUET, NO_QUERY} if query else {ABSENT, NO_PARQUET}
        return None if status in missing else self._checked("GET", name, status, body)

    def ledger(self) -> bytes:
        """All accounts as of one moment, as JSON lines."""
        return self._read("GET", "ledger.jsonl", slowly=True)

    def expect(self, what: str, **query: object) -> dict[str, Any]:
        """Whether an expectation of the control API `holds`, what differs, as `message`, and if that is `final`.

        Args:
            what: `slot`, `rule` or `idle`.
            query: of the request; what is None is left out.
        """
        given = urlencode({name: value for name, value in query.items() if value is not None})
        return self._object(f"expect/{what}?{given}", {"holds": bool, "message": str, "final": bool}, slowly=True)

    def clock(self) -> tuple[int, float]:
        """The server's time, in microseconds since 1970, and its rate, as a multiple of real time."""
        clock = self._object("clock", {"now_us": int, "rate": int | float})
        return clock["now_us"], float(clock["rate"])

    def freeze_clock(self) -> int:
        """Freeze the clock; returns its time, in microseconds since 1970."""
        now_us: int = self._object("clock/freeze", {"now_us": int}, "POST")["now_us"]
        return now_us

    def set_clock(self, now_us: int) -> None:
        """Set the clock to a time that is not before its own."""
        self._read("POST", f"clock/set?now_us={now_us}")

    def advance_clock(self, seconds: int) -> None:
        """Let the clock jump ahead."""
        self._read("POST", f"clock/advance?seconds={seconds}")

    def faults(self) -> list[dict[str, Any]]:
        """The faults that are set, how many commands each has selected, and how often it fired."""
        return self._list("faults")

    def set_faults(self, faults: Sequence[str]) -> None:
        """Replace the faults."""
        self._read("POST", "faults", faults)

    def add_faults(self, faults: Sequence[str]) -> list[dict[str, Any]]:
        """Add faults; returns all, as `faults` does."""
        return self._list("faults/add", "POST", faults)

    def remove_faults(self, faults: Sequence[str]) -> list[dict[str, Any]]:
        """Remove faults; returns the others, as `faults` does."""
        return self._list("faults/remove", "POST", faults)

    def link(self, links: Sequence[tuple[str, str]]) -> list[Any]:
        """Link machines to users; returns the links that were refused."""
        return self._list("links", "POST", links)

    def release(self, machines: Sequence[str]) -> list[Any]:
        """Take machines from their users; returns those that were refused."""
        return self._list("releases", "POST", machines)

    def _pages(self, name: str, **query: object) -> Iterator[list[dict[str, Any]]]:
        cursor = 0
        while cursor is not None:
            page = self._page(name, cursor=cursor, **query)
            yield page["items"]
            cursor = page["next"]

    def _page(self, name: str, **query: object) -> dict[str, Any]:
        return self._object(f"{name}?{urlencode({**query, 'limit': PAGE})}", {"items": list, "next": int | None})

    def _object(
        self, name: str, types: Mapping[str, Any], method: str = "GET", *, slowly: bool = False
    ) -> dict[str, Any]:
        found = self._parsed(method, name, slowly=slowly)
        if not (isinstance(found, dict) and all(isinstance(found.get(key), type_) for key, type_ in types.items())):
            raise self._wrong(method, name, f"no {' and '.join(types)}")
        return found

    def _list(self, name: str, method: str = "GET", document: object = None) -> list[Any]:
        found = self._parsed(method, name, document)
        if not isinstance(found, list):
            raise self._wrong(method, name, "no list")
        return found

    def _parsed(self, method: str, name: str, document: object = None, *, slowly: bool = False) -> object:
        body = self._read(method, name, document, slowly=slowly)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise self._wrong(method, name, "no JSON") from None

    def _read(self, method: str, name: str, document: object = None, *, slowly: bool = False) -> bytes:
        sent = b"" if document is None else json.dumps(document).encode()
        return self._checked(method, name, *self._ask(method, f"{CONTROL_PATH}{name}", sent, slowly=slowly))

    def _checked(self, method: str, name: str, status: int, body: bytes) -> bytes:
        if status != OK:
            text = " ".join(body[:200].decode("utf-8", "replace").split())
            hint = "; only cpsim serve has it" if status == ABSENT else ""
            raise self._wrong(method, name, f"{status}: {text}{hint}")
        return body

    def _wrong(self, method: str, name: str, answer: str) -> Exception:
        return self._error(f"{method} {CONTROL_PATH}{name.partition('?')[0]}{self._where} answered {answer}")
