"""The part of the control API that shows and changes faults; a proxy has it alone."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, TypeVar

from msgspec import Meta

from cpsim.errors import CpsimError
from cpsim.faults.plan import FaultPlan, Firing
from cpsim.net.control import PAGE
from cpsim.server.control.views import FaultView, FiringView, Page

T = TypeVar("T")
V = TypeVar("V")

Cursor = Annotated[int, Meta(ge=0, le=2**53 - 1, description="`next` of the page before; 0 begins.")]
Limit = Annotated[int, Meta(ge=1, le=PAGE, description="Items a page.")]
FaultText = Annotated[
    str,
    Meta(
        min_length=1,
        description="STAGE.ACTION=VALUE:KEY=VALUE,KEY=VALUE..., as `cpsim faults` has it.",
        examples=["daemon.hang:kind=claim,nth=3"],
    ),
]


class FaultInspector:
    """Shows and changes a plan of faults; a method raises ValueError if a fault is unknown or cannot be set.

    Args:
        faults: the plan.
        check: raises CpsimError if a fault cannot be set here.
    """

    def __init__(self, faults: FaultPlan, check: Callable[[str], object]) -> None:
        self._faults = faults
        self._check = check

    def faults(self) -> list[FaultView]:
        """The faults."""
        return [
            FaultView(fault=text, selected=selected, fired=fired) for text, selected, fired in self._faults.describe()
        ]

    def set_faults(self, faults: list[FaultText]) -> list[FaultView]:
        """Replace the faults, with new counts and times; an empty list removes all.

        `down`, which stops this API too, needs an `until`.
        """
        with as_value_error():
            self._faults.replace(self._checked(faults))
        return self.faults()

    def add_faults(self, faults: list[FaultText]) -> list[FaultView]:
        """Add faults; `down` needs an `until`."""
        with as_value_error():
            self._faults.add(*self._checked(faults))
        return self.faults()

    def remove_faults(self, faults: list[FaultText]) -> list[FaultView]:
        """Remove faults, one for each that is given."""
        with as_value_error():
            self._faults.remove(*faults)
        return self.faults()

    def firings(self, cursor: Cursor = 0, limit: Limit = 1000) -> Page[FiringView]:
        """The faults that fired, in order."""
        return page_of(islice(self._faults.firings, cursor, None), cursor, limit, firing_view)

    def _checked(self, faults: list[str]) -> list[str]:
        for fault in faults:
            self._check(fault)
        return faults


@contextmanager
def as_value_error() -> Iterator[None]:
    """Raise a CpsimError as a ValueError."""
    try:
        yield
    except CpsimError as problem:
        raise ValueError(str(problem)) from problem


def page_of(items: Iterable[T], cursor: int, limit: int, show: Callable[[T], V | None]) -> Page[V]:
    """Up to `limit` of the items that `show` shows; the first item stands at the cursor."""
    shown: list[V] = []
    for position, item in enumerate(items, cursor):
        if len(shown) == limit:
            return Page(items=shown, next=position)
        view = show(item)
        if view is not None:
            shown.append(view)
    return Page(items=shown, next=None)


def firing_view(firing: Firing) -> FiringView:
    """A fault that fired, as the control API shows it."""
    return FiringView(**firing._asdict())
