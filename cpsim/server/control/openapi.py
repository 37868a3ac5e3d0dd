"""The control API described as an OpenAPI 3.1 document, made of the table by which it is served."""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from cpsim.server.control.actions import ACTIONS, JSON
from cpsim.system.docstrings import docstring

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cpsim.server.control.actions import ControlAction

SCHEMA_PATH: Final = "#/components/schemas/{name}"
ERRORS: Final = {
    400: "The query or the body is not as described.",
    401: "The token is missing or wrong.",
    403: "The request is for another host, or comes from a page of another site.",
    404: "There is no such project or slot.",
    409: "The clock would go back, or beyond its end; there is no such fault or quirk, or it cannot be had, such as "
    "`down` without `until`; a daemon is too busy for a reset or has commands pending; a project or daemon cannot be "
    "added or removed; or an expectation is none.",
    413: "The body is too large.",
    501: "The server is installed without what writes Parquet; the message says what to install.",
    503: "The store cannot be written now; nothing is done.",
    504: "The store cannot be written now, and nobody knows whether this will have been done after a restart.",
    507: "There is more than is kept, or than a Parquet column holds; the message says what to do.",
}


class Error(msgspec.Struct):
    """Why a request was refused."""

    result: Literal["error"]
    message: str


def document(actions: Mapping[tuple[str, str], ControlAction] = ACTIONS, *, needs_token: bool) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        actions: the requests, by method and name.
        needs_token: whether every request has to show a token.
    """
    types = [action.hints["return"] for action in actions.values() if action.content_type == JSON]
    bodies = [action.hints[action.body] for action in actions.values() if action.body is not None]
    schemas, components = msgspec.json.schema_components([Error, *types, *bodies], ref_template=SCHEMA_PATH)
    error, *described = schemas
    answers, contents = iter(described[: len(types)]), iter(described[len(types) :])
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for (method, name), action in actions.items():
        answer = next(answers) if action.content_type == JSON else {}
        operation = _operation(action, answer, error, needs_token=needs_token)
        operation["operationId"] = action.perform.__name__
        if action.body is not None:
            operation["requestBody"] = {"required": True, "content": {JSON: {"schema": next(contents)}}}
        paths[f"/__cpsim/{name}"][method.lower()] = operation
    token: dict[str, Any] = {"token": {"type": "http", "scheme": "bearer"}} if needs_token else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cpsim control API",
            "version": version("creditpiggy-sim"),
            "description": "Look into the accounts of a fake CreditPiggy server, and change what an operator can. "
            "Times are microseconds since 1970, UTC.",
        },
        "paths": paths,
        "components": {"schemas": components, **({"securitySchemes": token} if token else {})},
        "security": [{name: []} for name in token],
    }


def _operation(action: ControlAction, answer: object, error: object, *, needs_token: bool) -> dict[str, Any]:
    statuses = {400, 401 if needs_token else 403, 413, 503, 504, *action.errors}
    refused = {JSON: {"schema": error}}
    return {
        "summary": docstring(action.perform).partition("\n")[0],
        "parameters": [_parameter(field) for field in msgspec.structs.fields(action.query)],
        "responses": {
            "200": {"description": "It is done.", "content": {action.content_type: {"schema": answer}}},
            **{str(status): {"description": ERRORS[status], "content": refused} for status in sorted(statuses)},
        },
    }


def _parameter(field: msgspec.structs.FieldInfo) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([field.type], ref_template=SCHEMA_PATH)
    if not field.required and field.default is not msgspec.UNSET:
        schema["default"] = field.default
    return {"name": field.name, "in": "query", "required": field.required, "schema": schema}
