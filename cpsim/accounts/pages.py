"""The slots of a server, page by page."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Final

from cpsim.accounts.view import NEXT
from cpsim.net.control import PAGE
from cpsim.system.parquet import DamagedParquet, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from cpdaemon.endpoint import UrlEndpoint
    from cpsim.errors import CpsimError
    from cpsim.net.control import ControlClient

SLOTS: Final = "slots.parquet"


def slot_pages(control: ControlClient, server: UrlEndpoint, error: type[CpsimError]) -> Iterator[pa.Table]:
    """The slots of a server, in tables of one schema: all at once if there are no pages, none if not as Parquet.

    Args:
        control: its control API.
        server: what errors call it.
        error: of a page that leads nowhere, or is damaged.
    """
    page = read_table(control, server, error, SLOTS, {"limit": PAGE})
    if page is None and (page := read_table(control, server, error, SLOTS)) is None:
        return
    schema = page.schema.remove_metadata()
    places: set[bytes] = set()
    while True:
        yield page.cast(schema)
        place = _next(page)
        wrong = f"{SLOTS} on {server} names as the next page "
        if place is None:
            return
        if place in places or not len(page):
            raise error(f"{wrong}one that leads no further: {place!r:.80}")
        places.add(place)
        try:
            page = read_table(control, server, error, SLOTS, {**json.loads(place), "limit": PAGE})
        except (ValueError, TypeError, RecursionError):
            raise error(f"{wrong}what is no object of JSON: {place!r:.80}") from None
        if page is None or page.schema.remove_metadata() != schema:
            raise error(f"{wrong}one without the columns of the first: {place!r:.80}")


def read_table(
    control: ControlClient,
    server: UrlEndpoint,
    error: type[CpsimError],
    name: str,
    query: Mapping[str, object] | None = None,
) -> pa.Table | None:
    """A table as Parquet, or a page of it; None if the server does not show it as such."""
    body = control.table(name, query)
    if body is None:
        return None
    try:
        return read(io.BytesIO(body), f"{name} on {server}")
    except DamagedParquet as damage:
        raise error(str(damage)) from damage


def _next(page: pa.Table) -> bytes | None:
    """The arguments of the page after this one, as JSON; None if it is the last."""
    following: bytes | None = (page.schema.metadata or {}).get(NEXT)
    return following
