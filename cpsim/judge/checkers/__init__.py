"""One file a checker: what it looks at, and what it finds. A class here that can `check` is found by its file."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpsim.judge.judge import Checker


def found() -> list[Checker]:
    """The checkers of this folder, in the order of their files."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return [
        made()
        for module in modules
        for made in vars(module).values()
        if isinstance(made, type) and made.__module__ == module.__name__ and hasattr(made, "check")
    ]
