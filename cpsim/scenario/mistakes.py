"""The first mistake in a tree of tables, told precisely: where, what is there, what is allowed."""

from __future__ import annotations

import difflib
import re
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

def _find(value: object, hint: Any, path: str) -> str | None:  # noqa: ANN401 - a type hint has no type
    """The first mistake in `value`, which should be a `hint`: its path, what is there, what is allowed."""
    try:
        msgspec.convert(value, hint, dec_hook=custom)
    except ValidationError as error:
        reason = str(error)
    else:
        return None
    options = _options(hint)
    if isinstance(value, dict):
        if structs := [
            option for option in options if isinstance(option, type) and issubclass(option, Struct)
        ]:
            return _in_table(value, structs, path) or f"{path}: {reason}".removeprefix(": ")
        for option in options:
            if get_origin(option) is dict:
                return _in_dict(value, *get_args(option), path)
    if isinstance(value, list):
        for option in options:
            if get_origin(_bare(option)) is list:
                items = (
                    _find(item, get_args(_bare(option))[0], f"{path}[{i}]") for i, item in enumerate(value)
                )
                return next(filter(None, items), None) or _expected(path, value, hint)
    return _expected(path, value, hint)


def _in_table(table: dict[str, Any], structs: list[type[Struct]], path: str) -> str | None:
    tag_field = structs[0].__struct_config__.tag_field
    by_tag = {struct.__struct_config__.tag: struct for struct in structs}
    tag = table.get(tag_field) if tag_field else None
    if tag not in by_tag:
        allowed = ", ".join(f'"{known}"' for known in by_tag)
        if tag_field not in table:
            return f"{_join(path, tag_field)} is missing: expected one of {allowed}"
        return f"{_join(path, tag_field)} = {tag!r}: expected one of {allowed}{suggestion(tag, by_tag)}"
    struct = by_tag[tag]
    hints = get_type_hints(struct, include_extras=True)
    for key in table:
        if key not in hints and key != tag_field:
            known = [*([tag_field] if tag_field else []), *struct.__struct_fields__]
            return f"{_join(path, key)}: unknown key: expected one of {', '.join(known)}{suggestion(key, known)}"
    for item in msgspec.structs.fields(struct):
        if item.name in table:
            if found := _find(table[item.name], hints[item.name], _join(path, item.name)):
                return found
        elif item.required:
            return f"{_join(path, item.name)} is missing: expected {_described(hints[item.name])}"
    return None


def _in_dict(table: dict[str, Any], key_hint: Any, value_hint: Any, path: str) -> str | None:  # noqa: ANN401
    for key, value in table.items():
        place = _join(path, key)
        if _find(key, key_hint, place):
            return f"{place}: expected {_described(key_hint)} as key"
        if found := _find(value, value_hint, place):
            return found
    return None


def _expected(path: str, value: object, hint: Any) -> str:  # noqa: ANN401
    shown = repr(value)
    return f"{path} = {shown if len(shown) <= 80 else shown[:79] + '…'}: expected {_described(hint)}"


def _described(hint: Any) -> str:  # noqa: ANN401
    return " or ".join(dict.fromkeys(filter(None, map(_describe_option, _options(hint)))))


def _describe_option(option: Any) -> str:  # noqa: ANN401
    if get_origin(option) is Annotated:
        return str(option.__metadata__[0].description)
    if option is Duration:
        return "a time with its unit, up to 3650d, such as 500ms, 90s, 5min, 8h or 1d"
    if option is type(None):
        return ""
    if option is str:
        return "text"
    tag_field = option.__struct_config__.tag_field if hasattr(option, "__struct_config__") else None
    return f"a table with its {tag_field}" if tag_field else "a table"


def _options(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)


def _bare(hint: Any) -> Any:  # noqa: ANN401
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _join(path: str, key: object) -> str:
    shown = key if isinstance(key, str) and re.fullmatch(r"[\w-]+", key) else f'"{key}"'
    return f"{path}.{shown}" if path else str(shown)


def suggestion(word: object, known: Iterable[object]) -> str:
    close = difflib.get_close_matches(str(word), [str(name) for name in known], n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
