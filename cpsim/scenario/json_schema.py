"""The JSON Schema of scenario files, for editors that complete and check TOML."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from cpsim.scenario.schema import Generated, Logged, Scenario
from cpsim.scenario.values import Duration

TIME: Final = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?(ms|s|min|h|d)$"}
CHANGED: Final = "Changed"
"""Prefix of the tables of a scenario that extends another: none of their keys is required."""
EXTENDS: Final = {"type": "string", "description": "the name or the path of a scenario that this one changes"}


def json_schema() -> str:
    """The document of `scenarios/scenario.schema.json`."""
    (scenario, generated, logged), parts = msgspec.json.schema_components(
        [Scenario, Generated, Logged], schema_hook=_of_type, ref_template="#/$defs/{name}"
    )
    for part in ("Scenario", "Generated", "Logged"):
        parts[part]["required"].remove("name")  # by default, the file's name
    changes = {f"{CHANGED}{name}": _in_part(part) for name, part in parts.items() if name != "Generated"}
    extending = [f"{CHANGED}Scenario", f"{CHANGED}Logged"]
    for part in extending:
        changes[part]["properties"]["extends"] = EXTENDS
        changes[part]["required"] = ["extends"]
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A scenario of cpsim",
        "anyOf": [scenario, generated, logged, *({"$ref": f"#/$defs/{part}"} for part in extending)],
        "$defs": {**parts, **changes},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _in_part(table: dict[str, Any]) -> dict[str, Any]:
    """A table without required keys."""
    text = json.dumps({key: value for key, value in table.items() if key != "required"})
    changed: dict[str, Any] = json.loads(text.replace("#/$defs/", f"#/$defs/{CHANGED}"))
    return changed


def _of_type(kind: type) -> dict[str, Any]:
    if kind is Duration:
        return dict(TIME)
    raise NotImplementedError(kind)
