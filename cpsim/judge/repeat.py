"""The commands of a slot as shell lines that repeat a finding."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import UnixEndpoint, UrlEndpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cpdaemon.endpoint import Endpoint
    from cpsim.judge.model import Step

AGAIN: Final = "-again"
"""The suffix of the slot's id: the original id is already used at the endpoint."""
SIGNED: Final = (
    'curl -s -H "Authorization: sha-256,"{project}",$(printf %s "$body$(cat secret)" | openssl dgst -sha256 -r | '
    'cut -c1-64)" -d "$body" {url}; echo'
)


def shell_lines(steps: Iterable[Step], endpoint: Endpoint, project_id: str | None = None) -> list[str]:
    """Shell lines that send a slot's commands again, in order, under another slot id.

    Args:
        steps: the slot's operations; operations that certainly never reached the accounts are left out.
        endpoint: the endpoint under test.
        project_id: the project that signs requests to a server; the lines read its secret from a file `secret`.
    """
    lines = []
    for step in steps:
        if step.applied is False:
            continue
        arguments = {**step.arguments, "slot": f"{step.arguments['slot']}{AGAIN}"}
        if isinstance(endpoint, UrlEndpoint):
            body = shlex.quote(json.dumps(arguments))
            url = shlex.quote(f"{endpoint}/batch/{step.kind}")
            lines.append(f"body={body}; {SIGNED.format(project=shlex.quote(project_id or ''), url=url)}")
        else:
            frame = ",".join([step.kind, *(f"{name}={value}" for name, value in arguments.items())])
            where = (
                f"-U {shlex.quote(endpoint.path)}"
                if isinstance(endpoint, UnixEndpoint)
                else f"{shlex.quote(endpoint.host)} {endpoint.port}"
            )
            lines.append(f"printf '%s\\n' {shlex.quote(frame)} | nc {where}")
    return lines
