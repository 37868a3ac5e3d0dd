"""Docstrings that users are shown, also where Python has left them out (`python -OO`)."""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def docstring(thing: ModuleType | Callable[..., Any]) -> str:
    """The docstring of a module or function, without its indentation; empty if it has none."""
    found = inspect.getdoc(thing)
    if found is None:
        import ast  # noqa: PLC0415 - only `python -OO` needs it

        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
        own = tree if inspect.ismodule(thing) else tree.body[0]
        assert isinstance(own, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef)
        found = ast.get_docstring(own)
    return found or ""
