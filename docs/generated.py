"""Directives that make reference pages from what the program itself knows, so that the two cannot differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from sphinx.util.docutils import SphinxDirective

from cpsim.accounts.view import CONTRACTS, NUMBERS, TEXT, TEXTS, WHOLE
from cpsim.faults.spec import ACTIONS, KEYS
from cpsim.quirks import QUIRKS
from cpsim.scenario.json_schema import CHANGED, json_schema
from cpsim.server.control import openapi

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from docutils.nodes import Node
    from sphinx.application import Sphinx


LIMITS: Final = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}


class Generated(SphinxDirective):
    """Lines of Markdown in the place of the directive."""

    def lines(self) -> Iterator[str]:
        """The lines."""
        raise NotImplementedError

    def run(self) -> list[Node]:
        """The nodes that the lines make."""
        return self.parse_text_to_nodes("\n".join(self.lines()), allow_section_headings=True)


class ControlApi(Generated):
    """Each request of the control API, from its OpenAPI document."""

    def lines(self) -> Iterator[str]:
        """A section for each request."""
        document = msgspec.json.decode(msgspec.json.encode(openapi.document(needs_token=False)))
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                yield from (f"## {method.upper()} {path}", "", operation["summary"], "")
                yield from _parameters(operation["parameters"])
                if "requestBody" in operation:
                    schema = next(iter(operation["requestBody"]["content"].values()))["schema"]
                    yield from (f"Body: {_type(schema)}.", "")
                kind, answer = next(iter(operation["responses"]["200"]["content"].items()))
                yield from (f"Answer: {_type(answer['schema']) if answer['schema'] else f'`{kind}`'}.", "")
        yield from ("## What is answered", "")
        for name, schema in document["components"]["schemas"].items():
            yield from (f"### {name}", "", schema.get("description", ""), "", "| field | type |", "|---|---|")
            yield from (f"| `{field}` | {_type(each)} |" for field, each in schema.get("properties", {}).items())
            yield ""


class AccountsView(Generated):
    """The tables that a server may show of its accounts."""

    def lines(self) -> Iterator[str]:
        """A section for each table."""
        for name, contract in CONTRACTS.items():
            yield from (f"## {name}", "", f"A row for each {contract.row}.", "")
            unverified = contract.shows or "Nothing"
            yield from (f"Not verified without this table: {_lower(unverified)}.", "")
            yield from ("| column | type | | null | not verified without it |", "|---|---|---|---|---|")
            for column in contract.columns:
                without = "(needed)" if column.identifies else _lower(column.shows or "nothing")
                yield f"| `{column.name}` | {_arrow(column.type)} | {column.meaning} | {column.null} | {without} |"
            yield ""


class Faults(Generated):
    """What can go wrong."""

    def lines(self) -> Iterator[str]:
        """A table of actions, and one of keys."""
        yield from ("| action | stages | effect |", "|---|---|---|")
        for name, action in ACTIONS.items():
            text = f"{name}={action.takes.upper()}" if action.takes else name
            yield f"| `{text}` | {', '.join(action.stages)} | {action.effect} |"
        yield from ("", "Keys after a colon select commands and times:", "", "| key | |", "|---|---|")
        yield from (f"| `{key}` | {attribute.allowed} |" for key, attribute in KEYS.items())


class Quirks(Generated):
    """How the system in production differs."""

    def lines(self) -> Iterator[str]:
        """A table."""
        yield from ("| quirk | tier | what happens |", "|---|---|---|")
        yield from (f"| `{quirk.name}` | {quirk.tier} | {quirk.effect} |" for quirk in QUIRKS.values())


class ScenarioSchema(Generated):
    """The keys of a scenario file, from its JSON Schema."""

    def lines(self) -> Iterator[str]:
        """A section for each table of the file, and for each model."""
        schema = msgspec.json.decode(json_schema())
        for name, definition in schema["$defs"].items():
            if "properties" in definition and not name.startswith(CHANGED):
                yield from _section(name, definition)


def _section(title: str, schema: dict[str, Any]) -> Iterator[str]:
    yield from (f"## {title}", "", schema.get("description", ""), "", "| key | type | |", "|---|---|---|")
    for name, each in schema["properties"].items():
        said = str(each.get("description", "")).replace("|", "\\|")
        yield f"| `{name}` | {_type(each)} | {said} |"
    yield ""


def _parameters(parameters: list[dict[str, Any]]) -> Iterator[str]:
    if parameters:
        yield from ("| argument | type | default |", "|---|---|---|")
    for each in parameters:
        default = "required" if each["required"] else f"`{each['schema'].get('default', 'none')}`"
        yield f"| `{each['name']}` | {_type(each['schema'])} | {default} |"
    yield ""


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _arrow(type_: pa.DataType) -> str:
    """An Arrow type in a few words."""
    names = {TEXT: "text", WHOLE: "integer", NUMBERS: "map of text to integer", TEXTS: "map of text to text"}
    return names[type_]


def _type(schema: dict[str, Any]) -> str:
    """A type in a few words."""
    match schema:
        case {"$ref": str(where)}:
            text = f"`{where.rpartition('/')[2]}`"
        case {"const": value}:
            text = f"`{value}`"
        case {"enum": list(values)}:
            text = "one of " + ", ".join(f"`{value}`" for value in values)
        case {"anyOf": list(others)} | {"oneOf": list(others)}:
            text = " or ".join(dict.fromkeys(map(_type, others)))
        case {"type": "array", "prefixItems": list(items)}:
            text = "a list of " + " and ".join(map(_type, items))
        case {"type": "array", "items": dict(items)}:
            text = f"a list of {_type(items)}"
        case {"type": "object", "additionalProperties": dict(values)}:
            text = f"an object of {_type(values)}"
        case {"type": str(name)}:
            text = " ".join([name, *(f"{word} {schema[key]:,}" for key, word in LIMITS.items() if key in schema)])
        case _:
            text = "anything"
    return text


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the directives known."""
    for name, directive in (
        ("control-api", ControlApi),
        ("accounts-view", AccountsView),
        ("faults", Faults),
        ("quirks", Quirks),
        ("scenario-schema", ScenarioSchema),
    ):
        app.add_directive(name, directive)
    return {"parallel_read_safe": True}
