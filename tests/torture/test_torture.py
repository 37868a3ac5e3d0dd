"""The whole site from a seed: 200 of them, what a seed repeats, and that what is broken on purpose is found."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torture
from torture_disk import SimulatedLog
from torture_site import Parts, SimulatedStore, run

from cpsim.daemon.courier import Courier
from cpsim.daemon.durable import DurableListener
from cpsim.daemon.spool import Spool
from cpsim.server.service import AccountServer
from cpsim.store.log import InDoubt

FIRST_SEEDS = 30
SEEDS_A_TEST = 17


def test_the_first_seeds_have_some_of_everything():
    """Or the others would find nothing because nothing happens."""
    counts = torture.total(range(FIRST_SEEDS))
    assert min(counts[name] for name in ("acknowledged", "applied", "killed daemon", "killed server", "unknown")) > 50
    assert min(counts[name] for name in ("nothing", "all", "torn", "crash before", "crash after", "found", "full")) > 2
    assert min(counts[name] for name in ("ER", "in two segments", "late", "cut", "set clock", "refused")) > 2


@pytest.mark.thorough
@pytest.mark.parametrize("first", range(FIRST_SEEDS, 200, SEEDS_A_TEST))
def test_seeds(first):
    for seed in range(first, first + SEEDS_A_TEST):
        torture.run(seed)


@pytest.mark.thorough
def test_a_seed_repeats_a_run_in_any_process():
    seeds = range(1, 4)
    digests = [run(seed).trace.hexdigest() for seed in seeds]
    assert len(set(digests)) == len(seeds)
    assert [run(seed).trace.hexdigest() for seed in seeds] == digests
    command = [sys.executable, Path(torture.__file__), str(len(seeds)), "--first", str(seeds[0]), "--digests"]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert other.stdout.split() == digests


# Mutants


class AnswersBeforeTheCommit(DurableListener):
    def _put(self):
        for connection in self._taken:
            self.reply(connection, b"OK")
        super()._put()


class AnswersOkThoughItIsNotWritten(DurableListener):
    def _answer(self, taken, problem):
        super()._answer(taken, None)


class AnswersErInDoubt(DurableListener):
    def _answer(self, taken, problem):
        super()._answer(taken, problem.problem if isinstance(problem, InDoubt) else problem)


class DeliversWhatCameFirst(DurableListener):
    """Of a frame that has grown, what was there when it was answered."""

    def _final_frame(self, connection):
        position = connection.position
        return next(row for (row,) in self._spool._log.query(f"SELECT record FROM log WHERE position = {position}"))


class ReleasesTooEarly(DurableListener):
    """What has grown may be delivered as it was before."""

    def _release(self):
        self._spool.release(self._passed_to)
        super()._release()


class ForgetsToStrikeOut(Spool):
    def settle(self, batch, failed, unnamed=0):
        self._log.wait(("DELETE FROM batch", ()))
        self._open, self._sent = None, batch.last


class StrikesOutBeforeItIsSent(Spool):
    def take(self, *arguments, **options):
        batch = super().take(*arguments, **options)
        if batch is not None:
            self._log.wait(("DELETE FROM log WHERE position <= ?", (batch.last,)))
        return batch


class ReusesAnId(Spool):
    def settle(self, *arguments):
        super().settle(*arguments)
        self._sequence -= 1


class ForgetsItsNumber(Spool):
    """Its batches have the numbers again that they had before the restart."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._sequence = 0


class WritesNoBatchDown(Spool):
    """A batch that was sent is not known after a restart."""

    def take(self, *arguments, **options):
        batch = super().take(*arguments, **options)
        if batch is not None:
            self._log.wait(("DELETE FROM batch", ()))
        return batch


class MakesLostBatchesAnew(Courier):
    def _handle_error(self, batch, error):
        if not error.definite:
            self._spool.put_back()
        return super()._handle_error(batch, error)


class TakesALostReplyForSuccess(Courier):
    def _handle_error(self, batch, error):
        if not error.definite:
            self._settle(batch, [None] * len(batch.calls))
            return True
        return super()._handle_error(batch, error)


class DropsWhatIsRefused(Courier):
    def _settle(self, batch, outcomes):
        super()._settle(batch, [None] * len(outcomes))


class DoesNotOverwrite(SimulatedLog):
    """What has failed may appear after a restart."""

    def _overwrite(self):
        return True


class TellsTooEarly(SimulatedLog):
    """Whoever waits for a commit is told before it is made."""

    def append(self, records, *statements, then=None, alone=False):
        last = super().append(records, *statements, alone=alone)
        if then is not None:
            then(None)
        return last


class GoesOnAfterAFailure(SimulatedLog):
    """What comes behind a change that was not written is written."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **{**options, "in_sequence": False})


class ForgetsBatches(AccountServer):
    def apply(self, project_id, calls, batch_id=None, document=None, **_):
        return super().apply(project_id, calls, None, document)


class ForgetsBatchesWhenItRestarts(AccountServer):
    def _restore(self, store):
        super()._restore(store)
        self._batches = {}


class AnswersBeforeTheChangeIsKept(SimulatedStore):
    def wait(self):
        pass


class KeepsWhatWasUndone(SimulatedStore):
    def resume(self):
        self._log.resume()
        self.is_broken = False


SOON = {
    "listener": [AnswersBeforeTheCommit, DeliversWhatCameFirst, ReleasesTooEarly],
    "spool": [ForgetsToStrikeOut, StrikesOutBeforeItIsSent, ReusesAnId],
    "courier": [DropsWhatIsRefused],
    "log": [DoesNotOverwrite, TellsTooEarly],
    "store": [AnswersBeforeTheChangeIsKept],
}
"""Mutants, by the part that each replaces, which one of the first seeds finds."""
LATE = {
    "listener": [AnswersOkThoughItIsNotWritten, AnswersErInDoubt],
    "spool": [ForgetsItsNumber, WritesNoBatchDown],
    "courier": [MakesLostBatchesAnew, TakesALostReplyForSuccess],
    "log": [GoesOnAfterAFailure],
    "accounts": [ForgetsBatches, ForgetsBatchesWhenItRestarts],
    "store": [KeepsWhatWasUndone],
}
"""Those that need something rare, or more of it together."""
BEGIN = {
    AnswersOkThoughItIsNotWritten: 28,
    AnswersErInDoubt: 233,
    WritesNoBatchDown: 8,
    GoesOnAfterAFailure: 178,
    KeepsWhatWasUndone: 10,
}
"""The seed from which those are looked for that are found last."""


def each(mutants):
    return [(part, mutant) for part, members in mutants.items() for mutant in members]


@pytest.mark.parametrize(("part", "mutant"), each(SOON))
def test_what_is_broken_is_found_soon(part, mutant):
    assert first_found(part, mutant, range(60)) is not None


@pytest.mark.thorough
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize(("part", "mutant"), each(LATE))
def test_what_is_broken_is_found(part, mutant):
    first = BEGIN.get(mutant, 0)
    assert first_found(part, mutant, range(first, first + 1_000)) is not None


def first_found(part, mutant, seeds):
    """The first of some seeds that finds what is broken; None if none does."""
    parts = replace(Parts(), **{part: mutant})
    for seed in seeds:
        try:
            run(seed, parts)
        except AssertionError:
            return seed
    return None
