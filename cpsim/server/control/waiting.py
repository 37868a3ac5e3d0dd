"""Requests whose answer waits until what they expect holds: the server looks again and again, and answers once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from cpsim.net.http.messages import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cpsim.net.http.application import Caller

LOOK_S: Final = 0.01
"""The pause before another look."""
LOOK_SHARE: Final = 9
"""A look that takes long is followed by a pause of so many times its duration."""


class Provisional(Response, frozen=True):
    """An answer that what will come may change; `within_s`: the seconds that the request may wait for that."""

    within_s: float = 0.0


async def settled(answer: Callable[[], Awaitable[Response]], caller: Caller) -> Response:
    """Return an answer, as soon as it is not provisional, its time is over, the server stops or the caller leaves."""
    response = await answer()
    if type(response) is not Provisional:
        return response
    loop = asyncio.get_running_loop()
    until_s = loop.time() + response.within_s
    ends = [asyncio.ensure_future(caller.stopping.wait()), asyncio.ensure_future(caller.left())]
    try:
        took_s = 0.0
        while type(response) is Provisional and (left_s := until_s - loop.time()) > 0:
            pause_s = min(left_s, max(LOOK_S, took_s * LOOK_SHARE))
            ended, _ = await asyncio.wait(ends, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            if ended:
                break
            began_s = loop.time()
            response = await answer()
            took_s = loop.time() - began_s
    finally:
        for end in ends:
            end.cancel()
    return response
