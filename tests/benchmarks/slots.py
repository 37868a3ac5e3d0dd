"""A ledger with many slots: the memory of each, and how fast commands are applied beside so many."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from memory import IN_BATCH, MACHINES, SLOTS, resident_bytes
from rounds import Row, in_turns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cpsim.server.service import AccountServer

FEW = 1_000
OPEN = 10
"""Of as many slots, one is not claimed."""
TURNS, IN_TURN = 1_000, 8
"""Commands are applied by eights, as a daemon's loop gets them from clients with a command each."""


def rows(slots: int) -> Iterator[tuple[str, Row]]:
    """A ledger with so many slots beside one with few, and a dict of as many texts beside a small one."""
    many = _measured(slots)
    yield f"ledger with {slots:,} slots / with {FEW:,}, commands a second of CPU", Row(*many["commands"])
    yield f"dict of {slots:,} texts / of {FEW:,}, look-ups a second of CPU", Row(*many["look-ups"])
    if slots != SLOTS:
        bytes_of_one, usual = many["bytes"], _measured(SLOTS)["bytes"]
        title = f"memory of a slot claimed with two counters, of {slots:,} / of {SLOTS:,}, bytes"
        yield title, Row(bytes_of_one, usual, bytes_of_one / usual)


def _measured(slots: int) -> dict[str, list[float]]:
    """What a process of its own finds with so many slots."""
    command = [sys.executable, __file__, str(slots)]
    measured: dict[str, list[float]] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return measured


def filled(slots: int) -> AccountServer:
    """A server with so many slots: as requests fill it, which bring a thousand slots each."""
    from cpsim.server.service import AccountServer

    accounts = AccountServer({"bench": "secret"}, journal_limit=0)
    for first in range(0, slots, IN_BATCH):
        numbers = range(first, min(first + IN_BATCH, slots))
        calls = [["alloc", {"slot": f"job-{number}", "credits": "5"}] for number in numbers]
        calls += [
            ["counters", {"slot": f"job-{number}", "job/cpuusage": "3601", "job/success": "1"}] for number in numbers
        ]
        calls += [
            ["claim", {"slot": f"job-{number}", "machine": f"vm-{number % MACHINES}"}]
            for number in numbers
            if number % OPEN
        ]
        assert not accounts.apply("bench", json.loads(json.dumps(calls)))
    return accounts


def commands_a_second(accounts: AccountServer, slots: int, turn: int) -> float:
    """New slots are allocated, and open ones anywhere among the others get counters."""
    chance = random.Random(turn)
    batches = [
        [
            *(("alloc", {"slot": f"new-{turn}-{step}-{n}", "credits": "5"}) for n in range(IN_TURN // 2)),
            *(("counters", {"slot": f"job-{chance.randrange(0, slots, OPEN)}", "a": "1"}) for _ in range(IN_TURN // 2)),
        ]
        for step in range(TURNS)
    ]
    begun_s = time.thread_time()
    for calls in batches:
        accounts.apply("bench", calls)
    return TURNS * IN_TURN / (time.thread_time() - begun_s)


def lookups_a_second(texts: dict[str, int], turn: int) -> float:
    """Texts anywhere in a dict are looked up, each made anew as a command brings it."""
    chance = random.Random(turn)
    wanted = [f"job-{chance.randrange(len(texts))}" for _ in range(TURNS * IN_TURN)]
    begun_s = time.thread_time()
    for text in wanted:
        texts[text]
    return len(wanted) / (time.thread_time() - begun_s)


def measure(slots: int) -> dict[str, object]:
    """The memory of each slot, and the rates beside those with few slots."""
    from cpsim.system.process import tune_process

    tune_process()
    before = resident_bytes()
    full = filled(slots)
    grown = resident_bytes() - before
    commands = in_turns(
        lambda turn: commands_a_second(full, slots, turn), lambda turn: commands_a_second(filled(FEW), FEW, turn)
    )
    large, small = ({f"job-{number}": number for number in range(count)} for count in (slots, FEW))
    lookups = in_turns(lambda turn: lookups_a_second(large, turn), lambda turn: lookups_a_second(small, turn))
    return {"bytes": grown / slots, "commands": commands, "look-ups": lookups}


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # that the journal, which has no room, is full
    print(json.dumps(measure(int(sys.argv[1]))))
