"""Ids of machines and users, and metadata, made by Faker.

Faker draws a moderate pool and a serial number makes each id unique: a million ids take about a second. A
release of Faker may change what its providers return; the pools keep their sizes, so that nothing else of a
workload changes with it.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from faker import Generator

POOL: Final = 1_000
CHOICES: Final = 64
MAX_CHOICE_CHARACTERS: Final = 64


@lru_cache(2)
def machines(seed: int, count: int) -> tuple[str, ...]:
    """Unique machine ids that read as host names, such as "laptop-75-3.clark.biz"."""
    hosts = _pool(seed, "machines", "hostname", min(count, POOL))
    names, domains = zip(*(host.split(".", 1) for host in hosts), strict=True)
    size = len(hosts)
    return tuple([f"{names[i % size]}-{i}.{domains[i % size]}" for i in range(count)])


@lru_cache(2)
def users(seed: int, count: int) -> tuple[str, ...]:
    """Unique user ids that read as login names, such as "shelby29-1"."""
    names = _pool(seed, "users", "user_name", min(count, POOL))
    return tuple([f"{names[i % len(names)]}-{i}" for i in range(count)])


def choices(seed: int, name: str, provider: str) -> tuple[str, ...]:
    """`CHOICES` values of a Faker provider, some perhaps equal, for the metadata called `name`.

    They are printable ASCII, with `,` and `=` replaced, and cut to `MAX_CHOICE_CHARACTERS`.
    """
    return _pool(seed, f"metadata.{name}", provider, CHOICES)


def providers() -> list[str]:
    """The names of Faker's providers."""
    from faker.generator import Generator as Bare  # noqa: PLC0415 - slow to import

    return sorted(name for name in set(dir(_faker())) - set(dir(Bare)) if not name.startswith("_"))


def _pool(seed: int, purpose: str, provider: str, size: int) -> tuple[str, ...]:
    faker = _faker()
    faker.seed_instance(f"{seed}:{purpose}")
    draw = getattr(faker, provider)
    return tuple([_frame_safe(str(draw())) for _ in range(size)])


@cache
def _faker() -> Generator:
    from faker import Factory  # noqa: PLC0415 - slow to import

    return Factory.create(use_weighting=False)


def _frame_safe(text: str) -> str:
    text = text.replace(",", ";").replace("=", ":").encode("ascii", "replace").decode()
    return re.sub(r"[\x00-\x20\x7f]+", " ", text)[:MAX_CHOICE_CHARACTERS].strip() or "-"
