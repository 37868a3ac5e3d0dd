"""TOML tables converted to msgspec types, with precise errors.

msgspec's errors name types, and no keys of dictionaries. So when msgspec refuses a tree, this module searches the tree
for the first part that msgspec refuses alone, and reports its path, its value and what is allowed: the description in
the `msgspec.Meta` of its type.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from datetime import date, datetime, time
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct, ValidationError

from cpsim.protocol import depth

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")
NAMED: Final = {str: "text", int: "a whole number", float: "a number", bool: "true or false", datetime: "a time"}
"""What values of types are called."""
BUILT_IN: Final = (datetime,)
"""What msgspec leaves as it is: TOML has its own times, and msgspec would round a text's fraction up.

A constant, for a test that freezes time binds the name `datetime` to a class that msgspec does not know.
"""


def parse(text: str) -> dict[str, Any]:
    """The tables of a TOML document.

    Raises:
        ValueError: the text is not TOML, or is nested too deeply.
    """
    too_deep = f"nested too deeply: {depth.MAX_DEPTH} levels of tables and lists are read"
    try:
        tables = tomllib.loads(text)
        depth.check([tables])
    except (RecursionError, depth.TooDeep):
        raise ValueError(too_deep) from None
    except ValueError as error:
        raise ValueError(f"not TOML: {error}") from error
    return tables


def convert(tree: object, kind: type[T]) -> T:
    """Convert tables, lists and scalars to a `kind`; a type that msgspec does not know is called with the value.

    Raises:
        ValueError: a value is not allowed; the message names its path, the value and what is allowed.
    """
    try:
        converted: T = _convert(tree, kind)
    except ValidationError as error:
        raise ValueError(_mistake(tree, kind, "") or str(error)) from error
    return converted


def suggestion(word: object, known: Iterable[str]) -> str:
    """The end of a message: the known word nearest to a misspelt one, or nothing."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _convert(value: object, hint: Any) -> Any:  # noqa: ANN401 - a type hint has no type of its own
    return msgspec.convert(value, hint, builtin_types=BUILT_IN, dec_hook=lambda kind, value: kind(value))


def _mistake(value: object, hint: Any, path: str) -> str | None:  # noqa: ANN401
    try:
        _convert(value, hint)
    except ValidationError as error:
        reason = str(error)
    else:
        return None
    options = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    bare = [get_args(option)[0] if get_origin(option) is Annotated else option for option in options]
    structs = [option for option in bare if isinstance(option, type) and issubclass(option, Struct)]
    inner = {get_origin(option): get_args(option) for option in bare}
    mistake = None
    if isinstance(value, dict) and structs:
        mistake = _mistake_in_table(value, structs, path) or f"{path}: {reason}".removeprefix(": ")
    elif isinstance(value, dict) and dict in inner:
        mistake = _mistake_in_dict(value, *inner[dict], path=path)
    elif isinstance(value, list) and list in inner:
        items = (_mistake(item, inner[list][0], f"{path}[{i}]") for i, item in enumerate(value))
        mistake = next(filter(None, items), None)
    return mistake or f"{path} = {_shown(value)}: expected {_described(options)}"


def _mistake_in_table(table: dict[str, Any], structs: list[type[Struct]], path: str) -> str | None:
    tag_field = structs[0].__struct_config__.tag_field
    by_tag = {str(struct.__struct_config__.tag): struct for struct in structs}
    tag = str(table.get(tag_field)) if tag_field else "None"
    if tag not in by_tag:
        allowed = "expected one of " + ", ".join(f'"{known}"' for known in by_tag)
        if tag_field not in table:
            return f"{_join(path, tag_field)} is missing: {allowed}"
        shown = _shown(table[tag_field])
        return f"{_join(path, tag_field)} = {shown}: {allowed}{suggestion(tag, by_tag)}"
    struct = by_tag[tag]
    hints = get_type_hints(struct, include_extras=True)
    known = [*filter(None, [tag_field]), *hints]
    for key in table:
        if key not in known:
            allowed = ", ".join(known) or "none"
            return f"{_join(path, key)}: unknown key: expected one of {allowed}{suggestion(key, known)}"
    for field in msgspec.structs.fields(struct):
        place = _join(path, field.name)
        if field.name in table:
            if mistake := _mistake(table[field.name], hints[field.name], place):
                return mistake
        elif field.required:
            return f"{place} is missing: expected {_described((field.type,))}"
    return None


def _mistake_in_dict(table: dict[str, Any], key_hint: Any, value_hint: Any, *, path: str) -> str | None:  # noqa: ANN401
    for key, value in table.items():
        place = _join(path, key)
        if _mistake(key, key_hint, place):
            return f"{place}: unusable key: expected {_described((key_hint,))}"
        if mistake := _mistake(value, value_hint, place):
            return mistake
    return None


def _described(options: Iterable[Any]) -> str:
    return " or ".join(dict.fromkeys(_description(option) for option in options if option is not NoneType))


def _description(option: Any) -> str:  # noqa: ANN401
    if get_origin(option) is Annotated:
        return str(option.__metadata__[0].description)
    if get_origin(option) in {Union, UnionType}:
        return _described(get_args(option))
    if get_origin(option) is Literal:
        *others, last = (_shown(word) for word in get_args(option))
        return f"{', '.join(others)} or {last}" if others else last
    if get_origin(option) is list:
        return "a list"
    if option in NAMED:
        return NAMED[option]
    config = getattr(option, "__struct_config__", None)
    return f"a table with its {config.tag_field}" if config and config.tag_field else "a table"


def _join(path: str, key: object) -> str:
    name = str(key)
    shown = name if re.fullmatch(r"[\w-]+", name) else _shown(name)
    return f"{path}.{shown}" if path else shown


def _shown(value: object) -> str:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, dict):
        return "a table"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
