"""The requests of the control API, each a method of the inspector or a function of one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Final, Union, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cpsim.server.control.expectations import expect_idle, expect_rule, expect_slot, rules_of
from cpsim.server.control.fault_inspection import FaultInspector
from cpsim.server.control.inspection import Inspector

if TYPE_CHECKING:
    from collections.abc import Callable

JSON: Final = "application/json"
PARQUET: Final = "application/vnd.apache.parquet"
JSON_LINES: Final = "application/jsonl"
WITHIN: Final = "within_s"
LONGEST_WAIT_S: Final = 60
Within = Annotated[
    float,
    Meta(ge=0, le=LONGEST_WAIT_S, description="Seconds that the answer may wait until what is expected holds."),
]


@dataclass(frozen=True)
class ControlAction:
    """A request of the control API.

    Attributes:
        perform: the inspector's method, or a function whose first argument is the inspector.
        body: the name of the argument in the body; the others are in the query.
        content_type: of the answer.
        errors: the statuses of its refusals.
        waits: whether it answers with an expectation, and may wait for it.
    """

    perform: Callable[..., Any]
    body: str | None = None
    content_type: str = JSON
    errors: tuple[int, ...] = ()
    waits: bool = False

    @cached_property
    def hints(self) -> dict[str, Any]:
        """The types of the arguments by name, and that of the answer, as `return`."""
        return get_type_hints(self.perform, include_extras=True)

    @cached_property
    def query(self) -> type[msgspec.Struct]:
        """The type of the query; an optional argument is UNSET if a request leaves it out."""
        fields: list[Any] = [(WITHIN, Within, 0.0)] if self.waits else []
        _, *parameters = inspect.signature(self.perform).parameters.items()
        for name, parameter in parameters:
            if name == self.body:
                continue
            hint = self.hints[name]
            if parameter.default is inspect.Parameter.empty:
                fields.append((name, hint))
            elif parameter.default is None:
                given = [option for option in get_args(hint) if option is not NoneType]
                fields.append((name, Union[(*given, UnsetType)], UNSET))
            else:
                fields.append((name, hint, parameter.default))
        return msgspec.defstruct("Query", fields, kw_only=True, forbid_unknown_fields=True)


FAULT_ACTIONS: Final = {
    ("GET", "faults"): ControlAction(FaultInspector.faults),
    ("POST", "faults"): ControlAction(FaultInspector.set_faults, body="faults", errors=(409,)),
    ("POST", "faults/add"): ControlAction(FaultInspector.add_faults, body="faults", errors=(409,)),
    ("POST", "faults/remove"): ControlAction(FaultInspector.remove_faults, body="faults", errors=(409,)),
    ("GET", "firings"): ControlAction(FaultInspector.firings, errors=(507,)),
}
ACTIONS: Final = {
    ("GET", "projects"): ControlAction(Inspector.projects),
    ("POST", "projects/add"): ControlAction(Inspector.add_project, errors=(409,)),
    ("POST", "projects/remove"): ControlAction(Inspector.remove_project, errors=(409,)),
    ("GET", "daemons"): ControlAction(Inspector.daemons),
    ("POST", "daemons/add"): ControlAction(Inspector.add_daemon, errors=(409,)),
    ("POST", "daemons/remove"): ControlAction(Inspector.remove_daemon, errors=(409,)),
    ("GET", "expect/slot"): ControlAction(expect_slot, errors=(404, 409, 507), waits=True),
    ("GET", "expect/rule"): ControlAction(expect_rule, errors=(404, 409, 507), waits=True),
    ("GET", "expect/idle"): ControlAction(expect_idle, errors=(404,), waits=True),
    ("GET", "rules"): ControlAction(rules_of, errors=(404, 507)),
    ("GET", "totals"): ControlAction(Inspector.totals),
    ("GET", "balance"): ControlAction(Inspector.balance),
    ("GET", "slots"): ControlAction(Inspector.slots, errors=(404,)),
    ("POST", "slots"): ControlAction(Inspector.named_slots, body="slots", errors=(404,)),
    ("GET", "applied"): ControlAction(Inspector.applied, errors=(404,)),
    ("GET", "slot"): ControlAction(Inspector.slot, errors=(404, 507)),
    ("GET", "machines"): ControlAction(Inspector.machines, errors=(404,)),
    ("GET", "users"): ControlAction(Inspector.users, errors=(404,)),
    ("GET", "journal"): ControlAction(Inspector.journal, errors=(404, 507)),
    ("GET", "refusals"): ControlAction(Inspector.refusals, errors=(404, 507)),
    ("GET", "malformed"): ControlAction(Inspector.malformed, errors=(404,)),
    ("GET", "links"): ControlAction(Inspector.links),
    ("POST", "links"): ControlAction(Inspector.link, body="links"),
    ("POST", "releases"): ControlAction(Inspector.release, body="machines"),
    ("POST", "reset"): ControlAction(Inspector.reset, errors=(404, 409)),
    ("POST", "housekeep"): ControlAction(Inspector.housekeep),
    **FAULT_ACTIONS,
    ("GET", "quirks"): ControlAction(Inspector.quirks),
    ("POST", "quirks"): ControlAction(Inspector.set_quirks, body="quirks", errors=(409,)),
    ("GET", "clock"): ControlAction(Inspector.clock),
    ("POST", "clock/freeze"): ControlAction(Inspector.freeze_clock),
    ("POST", "clock/run"): ControlAction(Inspector.run_clock),
    ("POST", "clock/advance"): ControlAction(Inspector.advance_clock, errors=(409,)),
    ("POST", "clock/set"): ControlAction(Inspector.set_clock, errors=(409,)),
    ("GET", "slots.parquet"): ControlAction(Inspector.slots_parquet, content_type=PARQUET, errors=(404, 501, 507)),
    ("GET", "accounts.parquet"): ControlAction(Inspector.accounts_parquet, content_type=PARQUET, errors=(501, 507)),
    ("GET", "ledger.jsonl"): ControlAction(Inspector.ledger_jsonl, content_type=JSON_LINES),
}
