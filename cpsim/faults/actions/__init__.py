"""One file a fault: what it does to a command that it selects. A class here is found by its file."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from cpsim.faults.action import Action


def found() -> dict[str, type[Action]]:
    """The actions of this folder, by name, in the order of their files."""
    modules = {module.name: import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)}
    return {
        name.replace("_", "-"): made
        for name, module in modules.items()
        for made in vars(module).values()
        if isinstance(made, type) and issubclass(made, Action) and made.__module__ == module.__name__
    }
