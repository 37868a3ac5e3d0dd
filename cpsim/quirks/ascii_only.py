"""A byte above 127 in a signed body is an HTML 500, and so is a reason that is not ASCII."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cpsim.protocol.slots import MalformedArgument
from cpsim.quirks.policies.request import broken_off

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpsim.net.http.messages import Request, Response
    from cpsim.quirks.policies.ledger import LedgerPolicy
    from cpsim.quirks.policies.request import RequestPolicy


def request(requests: RequestPolicy) -> RequestPolicy:
    """Return how the server reads and answers requests with it."""
    return replace(requests, signed=(*requests.signed, _refuse_bytes))


def ledger(rules: LedgerPolicy) -> LedgerPolicy:
    """Return the ledger's rules with it."""

    def reason(arguments: Mapping[str, object], name: str) -> str:
        text = rules.reason(arguments, name)
        if not text.isascii():
            raise MalformedArgument(f"{name} is not ASCII")
        return text

    return replace(rules, reason=reason)


def _refuse_bytes(request: Request, *_: str) -> Response | None:
    return None if request.body.isascii() else broken_off()
