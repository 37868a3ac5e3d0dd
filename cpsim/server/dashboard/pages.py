"""The dashboard: pages under `/`, and forms that call the control API.

The dashboard is served with the control API, to the same clients. Where the control API needs a token, the browser asks
for it as a password, with any name. Only forms change anything; a token in each shows that it came from a page of this
server.
"""

from __future__ import annotations

import hmac
import secrets
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlencode

import msgspec

from cpsim.errors import CpsimError
from cpsim.faults.spec import KEYS
from cpsim.net.http.messages import Failure, Request, Response
from cpsim.protocol.slots import State
from cpsim.server.control.actions import ACTIONS
from cpsim.server.control.inspection import Unknown
from cpsim.server.dashboard.finding import RANKED, ROWS, Finder, Hits
from cpsim.server.dashboard.watch import STEP_S
from cpsim.server.journal import JournalFull

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cpsim.faults.plan import FaultPlan
    from cpsim.net.http.messages import Headers
    from cpsim.server.control.access import Access
    from cpsim.server.control.inspection import Inspector
    from cpsim.server.dashboard.watch import Watch
    from cpsim.server.service import AccountServer

HTML: Final = b"text/html; charset=utf-8"
FILES: Final = {"/dashboard.css": b"text/css; charset=utf-8", "/dashboard.js": b"text/javascript; charset=utf-8"}
ACTION_PATH: Final = "/do/"
DONE: Final = {
    "reset": "The reset is done.",
    "clock/freeze": "The clock is frozen.",
    "clock/run": "The clock runs.",
    "clock/advance": "The clock has jumped ahead.",
    "faults/add": "The faults are set.",
    "faults/remove": "The fault is removed.",
    "faults": "The faults are replaced.",
}
"""The requests of the control API that a form may make, and the message when it is done."""
TITLES: Final = {401: "Unauthorized", 403: "Forbidden", 404: "Not found", 405: "Method not allowed"}
MOST_FORM_BYTES: Final = 65_536
HISTORY: Final = 200
"""The last commands of a slot that a page shows."""
CREDITS: Final = "credits"
ORDERS: Final = (CREDITS, "newest")
"""The orders of a list of accounts."""
LATEST: Final = 10
"""Refusals and firings that a page shows."""
DAEMONS: Final = 50
"""Daemons that a page shows."""
POLICY: Final = (
    b"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SAFE: Final[Headers] = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Dashboard:
    """Answers requests for pages.

    Args:
        inspector: reads and changes the accounts.
        accounts: the account server.
        faults: the plan of faults.
        watch: what happened in the last fifteen minutes.
        access: checks requests.
    """

    def __init__(
        self, inspector: Inspector, accounts: AccountServer, faults: FaultPlan, watch: Watch, access: Access
    ) -> None:
        self._inspector = inspector
        self._accounts = accounts
        self._finder = Finder(accounts)
        self._faults = faults
        self._watch = watch
        self._access = access
        self._form_token = secrets.token_urlsafe(24)
        self._pages: dict[str, Callable[[Mapping[str, str]], Response]] = {
            "/": self._overview,
            "/slots": self._slots,
            "/slot": self._slot,
            "/machines": self._machines,
            "/machine": self._machine,
            "/users": self._users,
            "/user": self._user,
            "/search": self._search,
        }

    def covers(self, path: str) -> bool:
        """Whether a request path belongs to the dashboard."""
        return path in self._pages or path in FILES or path.startswith(ACTION_PATH)

    def respond(self, request: Request) -> Response:
        """Answer a request for a page."""
        try:
            self._access.check_page(request)
            if request.path in FILES:
                return self._file(request)
            if request.path.startswith(ACTION_PATH):
                return self._act(request)
            _check_method(request, "GET")
            return self._pages[request.path](_fields(request.query))
        except Failure as failure:
            return self._failed(failure.status, str(failure), failure.headers)
        except Unknown as error:
            return self._failed(404, str(error))

    def _overview(self, query: Mapping[str, str], error: str | None = None, status: int = 200) -> Response:
        totals = self._inspector.totals()
        projects = {name: totals.projects.get(name) for name in self._finder.projects()}
        with_totals = {name: found for name, found in projects.items() if found is not None}
        fired = self._faults.latest(LATEST)
        return self._page(
            "overview",
            status,
            totals=totals,
            projects=projects,
            credits=sum(found.credits for found in totals.projects.values()),
            outstanding=sum(found.outstanding for found in totals.projects.values()),
            claimed=sum(found.claimed for found in totals.projects.values()),
            others=len(totals.projects) - len(with_totals),
            rates=self._watch.rates,
            intervals=self._watch.intervals(),
            step_s=STEP_S,
            deliveries=self._watch.deliveries(DAEMONS),
            refusals=self._accounts.journal.latest_refusals(LATEST),
            faults=self._inspector.faults(),
            fired=fired,
            clock=self._inspector.clock(),
            quirks=sorted(self._accounts.quirks),
            done=DONE.get(query.get("done", "")),
            error=error,
        )

    def _slots(self, query: Mapping[str, str]) -> Response:
        project = self._project(query)
        state = query.get("state") or None
        if state is not None and state not in set(State):
            raise Failure(400, f"there is no state {state!r}; there are {', '.join(State)}")
        machine = query.get("machine") or None
        chosen = None if state is None else State(state)
        part = self._finder.slots(project, _before(query), chosen, machine)
        return self._list("slots", query, project, part=part, state=state, machine=machine, states=list(State))

    def _machines(self, query: Mapping[str, str]) -> Response:
        project, order = self._project(query), _order(query)
        part = self._finder.machines(project, _before(query), ranked=order == CREDITS)
        return self._list("machines", query, project, part=part, order=order, orders=ORDERS, ranked=RANKED)

    def _users(self, query: Mapping[str, str]) -> Response:
        project, order = self._project(query), _order(query)
        part = self._finder.users(project, _before(query), ranked=order == CREDITS)
        return self._list("users", query, project, part=part, order=order, orders=ORDERS, ranked=RANKED)

    def _slot(self, query: Mapping[str, str]) -> Response:
        project, slot_id = self._project(query), _id(query)
        full = None
        try:
            found = self._inspector.slot(project, slot_id)
            view, history = found.slot, found.history
        except (JournalFull, CpsimError) as error:
            full = str(error)
            view, history = self._finder.slot(project, slot_id), []
        return self._page(
            "slot",
            project=project,
            id=slot_id,
            slot=view,
            history=history[-HISTORY:],
            left_out=max(0, len(history) - HISTORY),
            full=full,
            firings=[firing for firing in self._faults.latest() if (firing.project, firing.slot) == (project, slot_id)][
                -LATEST:
            ],
        )

    def _machine(self, query: Mapping[str, str]) -> Response:
        project, machine_id = self._project(query), _id(query)
        machine = self._finder.machine(project, machine_id)
        part = self._finder.slots(project, _before(query), machine=machine_id)
        return self._page("machine", project=project, id=machine_id, machine=machine, part=part)

    def _user(self, query: Mapping[str, str]) -> Response:
        project, user_id = self._project(query), _id(query)
        user = self._finder.user(project, user_id)
        part = self._finder.machines_of(user_id, _before(query))
        return self._page("user", project=project, id=user_id, user=user, part=part)

    def _search(self, query: Mapping[str, str]) -> Response:
        text = query.get("q", "").strip()
        hits = self._finder.search(text) if text else Hits([], [], [], 0, 0)
        exact = [hit for hit in hits.all if hit[2] == text]
        if len(exact) == 1 and len(hits.all) == 1:
            page, project, found = exact[0]
            return _redirect(f"/{page}?{urlencode({'project': project, 'id': found})}")
        return self._page("search", q=text, hits=hits, rows=ROWS)

    def _act(self, request: Request) -> Response:
        """Perform the request of a form, and show the overview."""
        name = request.path.removeprefix(ACTION_PATH)
        if name not in DONE:
            raise Failure(404, f"there is no {request.path!r}")
        _check_method(request, "POST")
        if len(request.body) > MOST_FORM_BYTES:
            raise Failure(413, f"the form is over {MOST_FORM_BYTES} bytes")
        form = _fields(request.body)
        if not hmac.compare_digest(form.pop("token", "").encode(), self._form_token.encode()):
            raise Failure(403, "this form is not of a page that this server has shown: go back, reload it, try again")
        if name == "faults/add" and "action" in form:
            form = {"faults": _fault(form)}
        action = ACTIONS["POST", name]
        arguments: dict[str, Any] = {}
        try:
            if action.body is not None:
                lines = [line.strip() for line in form.pop(action.body, "").splitlines() if line.strip()]
                arguments[action.body] = msgspec.convert(lines, action.hints[action.body])
            query = msgspec.convert(form, action.query, strict=False)
            given = ((each, getattr(query, each)) for each in query.__struct_fields__)
            arguments |= {each: value for each, value in given if value is not msgspec.UNSET}
            action.perform(self._inspector, **arguments)
        except msgspec.ValidationError as error:
            return self._overview({}, f"That does not fit: {error}", 400)
        except Unknown as error:
            return self._overview({}, str(error), 404)
        except ValueError as error:
            return self._overview({}, str(error), 409)
        return _redirect(f"/?{urlencode({'done': name})}")

    def _project(self, query: Mapping[str, str]) -> str:
        """The project of a query, or the first project."""
        return query.get("project") or next(iter(self._finder.projects()))

    def _list(self, name: str, query: Mapping[str, str], project: str, **values: Any) -> Response:  # noqa: ANN401 - what a template shows
        return self._page(name, project=project, projects=self._finder.projects(), before=_before(query), **values)

    def _page(self, name: str, status: int = 200, **values: object) -> Response:
        from cpsim.server.dashboard import rendering  # noqa: PLC0415 - slow to import, and few look

        text = rendering.page(name, form_token=self._form_token, **values)
        return Response(status, text.encode("utf-8", "replace"), HTML, SAFE)

    def _failed(self, status: int, message: str, headers: Headers = ()) -> Response:
        page = self._page("failed", status, title=TITLES.get(status, "Error"), message=message)
        return Response(status, page.body, HTML, (*SAFE, *headers))

    def _file(self, request: Request) -> Response:
        from cpsim.server.dashboard import rendering  # noqa: PLC0415 - slow to import, and few look

        return Response(200, rendering.file(request.path[1:]).encode(), FILES[request.path], SAFE)


def _redirect(where: str) -> Response:
    return Response(303, b"", HTML, (*SAFE, (b"location", where.encode("ascii"))))


def _check_method(request: Request, method: str) -> None:
    if request.method != method:
        raise Failure(405, f"{request.path} supports {method}", ((b"allow", method.encode()),))


def _fields(text: bytes) -> dict[str, str]:
    """The fields of a query or a form; those that are empty are left out."""
    try:
        return dict(parse_qsl(text.decode("utf-8", "replace"), max_num_fields=50))
    except ValueError as error:
        raise Failure(400, str(error)) from error


def _id(query: Mapping[str, str]) -> str:
    if "id" not in query:
        raise Failure(400, "the page needs an id; search for it, or choose it from a list")
    return query["id"]


def _order(query: Mapping[str, str]) -> str:
    """The order of a list of accounts."""
    order = query.get("order", CREDITS)
    if order not in ORDERS:
        raise Failure(400, f"there is no order {order!r}; there are {', '.join(ORDERS)}")
    return order


def _fault(form: Mapping[str, str]) -> str:
    """The fault of a form that has a field for each of its parts."""
    value = f"={form['value']}" if "value" in form else ""
    chosen = ",".join(f"{key}={form[key]}" for key in KEYS if key in form)
    return f"{form['action']}{value}{chosen and f':{chosen}'}"


def _before(query: Mapping[str, str]) -> int | None:
    text = query.get("before")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Failure(400, "before is not a whole number")
    return int(text)
