"""Misbehaviour: wrong use on purpose, which must be refused and change nothing.

| name | sent | expected |
|---|---|---|
| `claim_twice` | the claim, once more, as after a lost reply | refused; credited once |
| `claim_by_two` | another machine's claim at the same moment | the first is credited, the other refused |
| `claim_before_alloc` | a claim, then the allocation | refused; the slot then lives as usual |
| `claim_after_discard` | a claim of a discarded slot | refused |
| `claim_after_expiry` | a claim of a slot whose time is over | refused, where time passes as in the scenario |
| `alloc_twice` | the allocation, once more | refused |
| `counters_after_claim` | counters for a claimed slot | refused |
| `discard_after_claim` | a discard of a claimed slot | refused; it stays claimed |
| `unknown_slot` | a claim of a slot that nobody allocated | refused |
| `forged` | an allocation of negative credits, of min above max, or without time; then a claim | both refused |
| `malformed` | a malformed frame | answered ER; a server answers 400 |
| `oversized` | a frame of more bytes than a daemon reads | answered ER; a server answers 400 |
| `wrong_credentials` | an allocation, signed with another secret | answered 401; by a daemon, which takes none, ER |

Each is a share: of the jobs to which it can happen, or, for the last five, of all jobs, beside which it happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cpdaemon.commands import MAX_FRAME_BYTES
from cpsim.scenario.values import Section, Share

if TYPE_CHECKING:
    import numpy.typing as npt

    from cpsim.scenario.models.distributions import Integers
    from cpsim.scenario.streams import Draw

    Slots = npt.NDArray[np.int32]

SLOT: Final = "{slot}"
"""Stands in a frame for the slot's id."""
MALFORMED: Final = (
    "alloc",
    "claim,slot={slot}",
    "fly,slot={slot}",
    "alloc,slot={slot}=x",
    "alloc,slot={slot},credits",
    "claim,slot={slot},machine=m,machine=n",
    "alloc,slot={slot},credits=\x01",
    "\xff\xfe,slot={slot}",
    ",slot={slot}",
    "alloc,slot=",
)
OVERSIZED: Final = tuple(
    f"counters,slot={SLOT},{'x' * (size - 20)}=1" for size in (MAX_FRAME_BYTES + 20, 2 * MAX_FRAME_BYTES - 200)
)
UNSIGNED: Final = "Authorization: sha-256,nobody,0\r\n\r\n"
"""Begins what is signed with another secret; a daemon, which knows no credentials, is told these."""
WRONG_CREDENTIALS: Final = (f'{UNSIGNED}{{"slot":"{SLOT}"}}',)
FRAMES: Final = {"malformed": MALFORMED, "oversized": OVERSIZED, "wrong_credentials": WRONG_CREDENTIALS}
"""What a misbehaviour sends that is no command."""
FORGED: Final = ({"credits": -5}, {"min": 9, "max": 2}, {"expire": 0}, {"max": -1})


class Misbehaviour(Section, frozen=True):
    """The share of each."""

    claim_twice: Share = 0.0
    claim_by_two: Share = 0.0
    claim_before_alloc: Share = 0.0
    claim_after_discard: Share = 0.0
    claim_after_expiry: Share = 0.0
    alloc_twice: Share = 0.0
    counters_after_claim: Share = 0.0
    discard_after_claim: Share = 0.0
    unknown_slot: Share = 0.0
    forged: Share = 0.0
    malformed: Share = 0.0
    oversized: Share = 0.0
    wrong_credentials: Share = 0.0


class Chooser:
    """Chooses the jobs that misbehave.

    Args:
        misbehaviour: the share of each misbehaviour.
        draw: the random numbers.
    """

    def __init__(self, misbehaviour: Misbehaviour, draw: Draw) -> None:
        self._misbehaviour = misbehaviour
        self._draw = draw

    def __call__(self, name: str, among: Slots) -> Slots:
        """The jobs, among some, with a misbehaviour."""
        share: float = getattr(self._misbehaviour, name)
        return among[self._draw(f"misbehaviour.{name}")[among] < share] if share else among[:0]

    def counts(self, name: str) -> tuple[int, int]:
        """The number of jobs with a misbehaviour before this part, and in the whole workload."""
        return self._draw.chosen(f"misbehaviour.{name}", getattr(self._misbehaviour, name))


def forms(name: str, count: int, before: int) -> Integers:
    """Which of all `FRAMES` each of so many of a misbehaviour is, one after another; so many came before."""
    names = list(FRAMES)
    first = sum(len(FRAMES[other]) for other in names[: names.index(name)])
    return first + np.arange(before, before + count) % len(FRAMES[name])


def frame_bytes(form: str, slot_id: bytes) -> bytes:
    """A malformed frame about a slot, whose form is text in Latin-1."""
    return form.encode("latin-1").replace(SLOT.encode(), slot_id)
