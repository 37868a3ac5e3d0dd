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

SEEDS_A_TEST = 20
SEEDS_OF_A_MUTANT = 300
"""Seeds within which each mutant is found."""


@pytest.mark.parametrize("first", range(0, 200, SEEDS_A_TEST))
def test_seeds(first):
    for seed in range(first, first + SEEDS_A_TEST):
        torture.run(seed)


def test_a_seed_repeats_a_run_in_any_process():
    seeds = range(1, 6)
    digests = [run(seed).trace.hexdigest() for seed in seeds]
    assert len(set(digests)) == len(seeds)
    assert [run(seed).trace.hexdigest() for seed in seeds] == digests
    command = [sys.executable, Path(torture.__file__), str(len(seeds)), "--first", str(seeds[0]), "--digests"]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert other.stdout.split() == digests


def test_a_run_has_some_of_everything():
    """Or the seeds would find nothing because nothing happens."""
    counts = torture.total(range(40))
    assert min(counts[name] for name in ("acknowledged", "applied", "killed daemon", "killed server", "late")) > 20
    assert min(counts[name] for name in ("nothing", "all", "torn", "crash before", "crash after", "full")) > 10
    assert min(counts[name] for name in ("unknown", "ER", "in two segments", "cut", "set clock", "refused")) > 10


# Mutants


class AnswersBeforeTheCommit(DurableListener):
    def _put(self):
        for connection in self._taken:
            self._reply(connection, b"OK")
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


class TriesAgainInAnyOrder(DurableListener):
    """What failed is written again without what came behind it."""

    def _release(self):
        position, amended, self._amended = self._passed_to, self._amended, {}

        def written(problem):
            if problem is None or not amended:
                self._spool.release(position)
            else:
                self._spool.put([], amended, written)

        self._spool.put([], amended, written)


class RefusesWhatItHasWritten(DurableListener):
    def _answer(self, taken, problem):
        for connection in taken:
            connection.stored = False
        super()._answer(taken, problem)


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


class HalvesWithoutGivingUp(Courier):
    def _give_up_after_retries(self, batch, error, batch_id):
        self._failures += 1
        if self._failures < 3:
            return False
        self._halve(batch, "refused", f"{error}, repeatedly")
        return True


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
    def apply(self, project_id, calls, batch_id=None, document=None):
        return super().apply(project_id, calls, None, document)


class ForgetsBatchesWhenItRestarts(AccountServer):
    def _restore(self, store):
        super()._restore(store)
        self._batches = {}


class AppliesWhatWasGivenUp(AccountServer):
    def give_up(self, project_id, batch):
        return None


class AnswersBeforeTheChangeIsKept(SimulatedStore):
    def wait(self):
        pass


class KeepsWhatWasUndone(SimulatedStore):
    def resume(self):
        self._log.resume()
        self.is_broken = False


MUTANTS = {
    "listener": [
        AnswersBeforeTheCommit,
        AnswersOkThoughItIsNotWritten,
        AnswersErInDoubt,
        DeliversWhatCameFirst,
        ReleasesTooEarly,
        TriesAgainInAnyOrder,
        RefusesWhatItHasWritten,
    ],
    "spool": [ForgetsToStrikeOut, StrikesOutBeforeItIsSent, ReusesAnId, ForgetsItsNumber, WritesNoBatchDown],
    "courier": [MakesLostBatchesAnew, TakesALostReplyForSuccess, DropsWhatIsRefused, HalvesWithoutGivingUp],
    "log": [DoesNotOverwrite, TellsTooEarly, GoesOnAfterAFailure],
    "accounts": [ForgetsBatches, ForgetsBatchesWhenItRestarts, AppliesWhatWasGivenUp],
    "store": [AnswersBeforeTheChangeIsKept, KeepsWhatWasUndone],
}


@pytest.mark.parametrize(
    ("part", "mutant"), [(part, mutant) for part, mutants in MUTANTS.items() for mutant in mutants]
)
def test_what_is_broken_is_found(part, mutant):
    assert found(replace(Parts(), **{part: mutant})), f"no seed finds {mutant.__name__}"


def found(parts):
    """The first seed that finds what is broken, if any does."""
    for seed in range(SEEDS_OF_A_MUTANT):
        try:
            run(seed, parts)
        except AssertionError:
            return f"seed {seed}"
    return None
