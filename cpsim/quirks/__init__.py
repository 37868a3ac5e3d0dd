"""One file a quirk: a difference of the system in production from its document.

A quirk has the name of its file, and is described by its docstring, whose first paragraph `cpsim quirks` shows. It has
one or more of these functions, each of which changes a policy: `ledger` (of the accounts), `request` (of the server),
`delivery` (of the daemon's courier), `reading` (of its listener). Any of them can be switched on alone; the profile
`deployed` has all. A file without such a function has a `TIER`: the fake does not have that quirk, but the verifier
knows its name.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeVar

from cpsim.errors import CpsimError
from cpsim.system.checks import check_many
from cpsim.system.docstrings import docstring

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

    from cpsim.quirks.policies.delivery import DeliveryPolicy
    from cpsim.quirks.policies.ledger import LedgerPolicy
    from cpsim.quirks.policies.reading import ReadingPolicy
    from cpsim.quirks.policies.request import RequestPolicy

    Policy = TypeVar("Policy", LedgerPolicy, RequestPolicy, DeliveryPolicy, ReadingPolicy)

Tier = Literal["server", "daemon"]
TIERS: Final[dict[str, Tier]] = {"ledger": "server", "request": "server", "delivery": "daemon", "reading": "daemon"}
"""The tier of each policy."""


class Quirk(NamedTuple):
    """One difference: its name, its tier, and its effect."""

    name: str
    tier: Tier
    effect: str


def _found() -> dict[str, ModuleType]:
    """The modules of this folder by the names of their quirks, in order; those of the server first."""
    names = [module.name for module in iter_modules(__path__) if not module.ispkg]
    modules = {name.replace("_", "-"): import_module(f"{__name__}.{name}") for name in names}
    return dict(sorted(modules.items(), key=lambda item: (_tier(item[1]) != "server", item[0])))


def _tier(module: ModuleType) -> Tier:
    return next((tier for policy, tier in TIERS.items() if hasattr(module, policy)), None) or module.TIER


def _quirk(name: str, module: ModuleType) -> Quirk:
    effect = " ".join(docstring(module).partition("\n\n")[0].split()).removesuffix(".")
    return Quirk(name, _tier(module), effect if effect[1:2].isupper() else effect[:1].lower() + effect[1:])


MODULES: Final = _found()
QUIRKS: Final = {name: _quirk(name, module) for name, module in MODULES.items() if not hasattr(module, "TIER")}
NAMED: Final = {name: _quirk(name, module) for name, module in MODULES.items() if hasattr(module, "TIER")}
"""Quirks of production that the fake does not have."""
PROFILES: Final = {"documented": frozenset[str](), "deployed": frozenset(QUIRKS)}


def composed(policy: Policy, names: Iterable[str]) -> Policy:
    """Return a policy as the named quirks change it, one after the other."""
    for name in [name for name in QUIRKS if name in names]:
        change = getattr(MODULES[name], type(policy).__name__.removesuffix("Policy").lower(), None)
        policy = policy if change is None else change(policy)
    return policy


def chosen(profile: str, names: Iterable[str]) -> frozenset[str]:
    """Return the quirks of a profile and those named.

    Raises:
        CpsimError: there is no quirk or profile of that name.
    """
    check_many("quirks", names, "'bulk-abort'")
    unknown = [name for name in names if name not in QUIRKS]
    if unknown:
        raise CpsimError(f"no quirk {unknown[0]!r}; there are {', '.join(QUIRKS)}")
    if profile not in PROFILES:
        raise CpsimError(f"no profile {profile!r}; there are {', '.join(PROFILES)}")
    return PROFILES[profile] | frozenset(names)
