"""The courier, against servers that fail in every way."""

import logging
import random
import threading
from functools import partial
from itertools import pairwise
from queue import SimpleQueue

import pytest

from cpdaemon.errors import BadReply, ConnectFailed, Refused, ReplyLost, ReplyTimeout
from cpsim.daemon.courier import CONFLICT, MAX_BACKOFF_S, MAX_TRIES, MAX_TRIES_ALONE, TRIES_PER_TIMEOUT, Courier
from cpsim.daemon.memory import MemorySpool
from cpsim.daemon.spool import MAX_BATCH, Spool
from cpsim.daemon.spool_status import read_failed, read_status
from cpsim.store.log import Log
from cpsim.testing import ManualClock

LONG_S = 60
UNKNOWN = [ReplyLost("cut"), BadReply("<h1>Oops</h1>")]


class Server:
    """Answers from a script of what to raise, None for a success; then always with success."""

    def __init__(self, *script, knows_batches=True, spoiled=(), refused=(), reachable=True, turns_away_with=500):
        self.script = list(script)
        self.knows = knows_batches
        self.spoiled = set(spoiled)
        self.refused = set(refused)
        self.reachable = reachable
        self.turns_away_with = turns_away_with
        self.knows_of = {}
        self.asked = 0
        self.batches = []
        self.given_up = []
        self.came = threading.Condition()

    def knows_batches(self):
        self.asked += 1
        if not self.reachable:
            raise ConnectFailed("down")
        return self.knows

    def post(self, batch_id, calls):
        slots = [arguments["slot"] for _, arguments in calls]
        with self.came:
            self.batches.append((batch_id, slots))
            self.came.notify_all()
        failure = self.script.pop(0) if self.script else None
        if failure is not None:
            raise failure
        if self.spoiled & set(slots):
            raise Refused("spoiled", self.turns_away_with)
        return [Refused("no") if slot in self.refused else None for slot in slots]

    def give_up(self, batch_id, calls):
        self.given_up.append(batch_id)
        return self.knows_of.get(batch_id) if self.knows_batches() else None

    @property
    def applied(self):
        """What was sent, each batch once."""
        return [slot for slots in dict(self.batches).values() for slot in slots]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def spool(path, clock):
    """A spool that writes when somebody waits for it."""
    spool = Spool(path, clock=clock, open_log=partial(Log, threaded=False))
    yield spool
    spool.close()


def put(spool, *slots):
    put_frames(spool, *(f"alloc,slot={slot}" for slot in slots))


def put_frames(spool, *frames):
    last = spool.put(frames, {}, lambda _: None)
    spool.wait()
    spool.release(last)


@pytest.fixture
def courier_of(spool, clock):
    """Return courier_of(server, ...) -> a courier on the clock, to be stepped."""
    return partial(Courier, spool, clock=clock, chance=random.Random(1))


@pytest.fixture
def empty(spool, clock):
    """Return empty(courier), which steps it until all has left the spool, and lets the time between pass at once."""

    def run(courier):
        while spool.pending:
            clock.advance(courier.step() or 0.0)
        spool.wait()

    return run


@pytest.fixture
def deliver(spool, path, courier_of, empty):
    """Return deliver(server, slots) -> Status, once all has left the spool."""

    def run(server, count=4, when_unknown="dead-letter", flush_interval_s=0.0):
        put(spool, *range(count))
        empty(courier_of(server, flush_interval_s, when_unknown))
        return read_status(path)

    return run


def failed(path):
    return [(row.command.partition("=")[2], row.why) for row in read_failed(path)]


def test_all_is_delivered_in_one_batch(deliver):
    server = Server()
    status = deliver(server)
    assert [slots for _, slots in server.batches] == [["0", "1", "2", "3"]]
    assert (status.delivered, status.retries, server.asked) == (4, 0, 1)


def test_a_full_batch_does_not_wait(deliver, clock):
    server = Server()
    assert deliver(server, MAX_BATCH, flush_interval_s=3600).delivered == MAX_BATCH
    assert clock.monotonic() == 0


def test_a_command_waits_for_others_no_longer_than_the_interval(spool, courier_of, clock):
    server = Server()
    courier = courier_of(server, 2.0)
    assert courier.step() is None
    put(spool, "a")
    assert courier.step() == 2.0
    clock.advance(1.5)
    put(spool, "b")
    assert courier.step() == 0.5
    assert server.batches == []
    clock.advance(0.5)
    assert courier.step() is None
    assert [slots for _, slots in server.batches] == [["a", "b"]]
    put(spool, "c")
    assert courier.step() == 2.0
    assert server.applied == ["a", "b"]


def test_what_has_waited_goes_in_as_many_batches_as_it_takes(spool, courier_of, clock, empty):
    put_frames(spool, *["counters,slot=x,n=1", "alloc,slot=x,credits=1"] * 5)
    server = Server()
    empty(courier_of(server, 0.4))
    assert [len(slots) for _, slots in server.batches] == [1, 2, 2, 2, 2, 1]
    assert clock.monotonic() == 0.4  # one interval for them all, not one for each


def test_backoff_doubles_up_to_its_limit(spool, courier_of, clock):
    put(spool, "a")
    server = Server(reachable=False)
    courier = courier_of(server, 0.0)
    waits_s = []
    for _ in range(12):
        waits_s.append(courier.step())
        assert courier.step() == pytest.approx(waits_s[-1], abs=1e-6)  # no further attempt before its time
        clock.advance(waits_s[-1])
    assert server.asked == 12
    backoffs_s = [min(0.1 * 2**failures, MAX_BACKOFF_S) for failures in range(12)]
    assert all(backoff_s / 2 <= wait_s <= backoff_s for wait_s, backoff_s in zip(waits_s, backoffs_s, strict=True))
    assert len(set(waits_s[-3:])) == 3  # with jitter


@pytest.mark.parametrize("in_memory", [False, True])
def test_nothing_that_was_dropped_is_delivered_and_no_failure_is_remembered(spool, courier_of, clock, in_memory):
    queue = MemorySpool() if in_memory else spool
    give = (lambda slot: queue.put([("alloc", {"slot": slot})])) if in_memory else partial(put, spool)
    server = Server(*[ConnectFailed("no")] * 3, ReplyLost("cut"))
    courier = Courier(queue, server, 0.0, clock=clock, chance=random.Random(1))
    give("a")
    for _ in range(4):
        clock.advance(courier.step())
    courier.step()
    server.batches.clear()
    server.script = [ReplyLost("cut")]
    give("b")
    courier.step()
    courier.drop()
    server.batches.clear()
    assert (queue.pending, courier.step()) == (0, None)
    give("c")
    assert courier.step() is None  # at once
    assert [slots for _, slots in server.batches] == [["c"]]


def test_a_server_that_was_not_reached_gets_it_later(deliver, path):
    status = deliver(Server(ConnectFailed("no"), Refused("not you", 401), Refused("later", 503)))
    assert (status.delivered, status.retries, failed(path)) == (4, 3, [])


def test_a_failure_leaves_nothing_to_the_garbage_collector(deliver, left_to_the_collector):
    class LosesReplies(Server):
        def post(self, batch_id, calls):
            outcomes = super().post(batch_id, calls)
            if len(self.batches) < 4:
                raise ReplyLost("cut")
            return outcomes

    with left_to_the_collector() as left:
        assert deliver(LosesReplies()).retries == 3
    assert not [thing for thing in left if isinstance(thing, ReplyLost)]


def test_a_command_that_is_alone_is_tried_again_after_an_error_that_may_pass(deliver, path):
    status = deliver(Server(*[Refused("a worker died", 500)] * (MAX_TRIES_ALONE - 1)), 1)
    assert (status.delivered, status.retries, failed(path)) == (1, MAX_TRIES_ALONE - 1, [])


@pytest.mark.parametrize("status", [400, 413, 500])
def test_no_command_is_to_blame_where_a_batch_of_nothing_is_refused_too(deliver, path, status):
    class Closed(Server):
        def knows_batches(self):
            self.asked += 1
            if 1 < self.asked <= 8:
                raise Refused("closed", status)
            return True

        def post(self, batch_id, calls):
            outcomes = super().post(batch_id, calls)
            if self.asked <= 8:
                raise Refused("closed", status)
            return outcomes

    assert deliver(Closed(), 1).delivered == 1
    assert failed(path) == []


@pytest.mark.parametrize("failure", UNKNOWN, ids=repr)
def test_a_lost_reply_of_a_server_that_knows_batches(deliver, path, failure):
    server = Server(failure, ConnectFailed("no"), failure)
    status = deliver(server)
    assert len({server.batches[i][0] for i in range(4)}) == 1
    assert (status.delivered, status.retries, failed(path)) == (4, 3, [])


@pytest.mark.parametrize("failure", UNKNOWN, ids=repr)
def test_commands_of_a_lost_reply_become_dead_letters(deliver, path, failure, caplog):
    server = Server(failure, knows_batches=False)
    status = deliver(server)
    assert "whether they were applied is unknown; --when-unknown resend would" in caplog.text
    assert len(server.batches) == 1
    assert failed(path) == [(slot, "dead letter") for slot in "0123"]
    assert (status.delivered, status.dead_letters) == (0, 4)
    assert read_failed(path)[0].error == str(failure)


def test_a_lost_reply_is_resent_where_that_is_the_policy(deliver, path):
    server = Server(ReplyLost("cut"), knows_batches=False)
    assert deliver(server, when_unknown="resend").delivered == 4
    assert [slots for _, slots in server.batches] == [["0", "1", "2", "3"]] * 2
    assert failed(path) == []


def test_a_command_that_always_breaks_the_server_becomes_a_dead_letter_in_the_end(deliver, path):
    class Broken(Server):
        def post(self, batch_id, calls):
            try:
                return super().post(batch_id, calls)
            except Refused:
                raise BadReply("<h1>Server Error (500)</h1>") from None

    status = deliver(Broken(knows_batches=False, spoiled=["2"]), when_unknown="resend")
    assert failed(path) == [("2", "dead letter")]
    assert status.delivered == 3


@pytest.mark.parametrize("turns_away_with", [400, 413, 500])
@pytest.mark.parametrize("spoiled", [["0"], ["63"], ["31", "32"], ["5", "6", "40"]])
def test_a_command_that_spoils_a_batch_is_found_by_halves(deliver, path, spoiled, turns_away_with):
    server = Server(spoiled=spoiled, turns_away_with=turns_away_with)
    status = deliver(server, 64)
    assert failed(path) == [(slot, "refused") for slot in spoiled]
    assert (status.delivered, status.refused) == (64 - len(spoiled), len(spoiled))
    good = [slot for _, slots in server.batches if not set(spoiled) & set(slots) for slot in slots]
    assert good == [slot for slot in map(str, range(64)) if slot not in spoiled]


class Overwhelmed(Server):
    """Fails in some way wherever a command is in a batch that it cannot bear."""

    def __init__(self, failure, **behaviour):
        super().__init__(**behaviour)
        self.failure = failure

    def post(self, batch_id, calls):
        try:
            return super().post(batch_id, calls)
        except Refused:
            raise self.failure from None


@pytest.mark.parametrize("failure", [*UNKNOWN, Refused("unavailable", 503)], ids=repr)
def test_a_command_that_the_server_never_answers_is_found_by_halves(deliver, path, failure):
    server = Overwhelmed(failure, spoiled=["2"])
    status = deliver(server, 6)
    (row,) = read_failed(path)
    assert (row.command, row.why) == ("alloc,slot=2", "refused")
    assert str(failure) in row.error
    assert (status.delivered, status.refused) == (5, 1)
    good = [slot for _, slots in server.batches if "2" not in slots for slot in slots]
    assert sorted(good) == ["0", "1", "3", "4", "5"]  # each once
    tries = [slots for _, slots in server.batches if "2" in slots]
    assert [tries.count(slots) for slots in (tries[0], ["2"])] == [MAX_TRIES, MAX_TRIES_ALONE]
    assert status.retries == len(tries) - 1


def test_a_server_that_hangs_is_not_a_command_that_spoils(deliver, path):
    status = deliver(Server(*[ConnectFailed("gone meanwhile")] * 3 * MAX_TRIES_ALONE))
    assert (status.delivered, failed(path)) == (4, [])


def test_commands_that_follow_one_another_are_found_as_soon_as_one(deliver, path):
    server = Overwhelmed(ReplyLost("cut"), spoiled=["0", "1", "3"])
    deliver(server)
    sent = [slots for _, slots in server.batches]
    assert [sent.count([slot]) for slot in "0123"] == [MAX_TRIES_ALONE, MAX_TRIES_ALONE, 1, MAX_TRIES_ALONE]
    assert failed(path) == [(slot, "refused") for slot in "013"]


def test_time_that_runs_out_counts_for_more(deliver):
    server = Overwhelmed(ReplyTimeout("no reply came in time"), spoiled=["1"])
    assert deliver(server, 2).delivered == 1
    assert [slots for _, slots in server.batches].count(["1"]) == -(-MAX_TRIES_ALONE // TRIES_PER_TIMEOUT)


def test_a_batch_is_not_halved_while_the_server_does_not_say_what_became_of_it(deliver, path):
    class Slow(Overwhelmed):
        def give_up(self, batch_id, calls):
            if len(self.given_up) < 2:
                self.given_up.append(batch_id)
                raise ReplyTimeout("no reply came in time")
            return super().give_up(batch_id, calls)

    server = Slow(ReplyLost("cut"), spoiled=["2"])
    assert deliver(server, 3).delivered == 2
    whole = [slots for _, slots in server.batches].count(["0", "1", "2"])
    assert whole == MAX_TRIES + 2


def test_a_batch_that_was_applied_and_never_answered_is_settled(deliver, path):
    class Mute(Server):
        def post(self, batch_id, calls):
            self.knows_of[batch_id] = super().post(batch_id, calls)
            raise ReplyLost("cut")

    status = deliver(Mute(refused=["1"]))
    assert failed(path) == [("1", "refused")]
    assert (status.delivered, status.retries) == (3, MAX_TRIES - 1)


def test_a_server_that_may_break_off_a_batch_is_sent_bad_numbers_alone(spool, path, courier_of, empty):
    frames = [
        "alloc,slot=a,credits=5",
        "alloc,slot=b,min=x",
        "counters,slot=a,n=-1",
        "counters,slot=a,n=1.5",
        "meta,slot=a,k=v",
    ]
    put_frames(spool, *frames)

    class Production(Server):
        def post(self, batch_id, calls):
            super().post(batch_id, calls)
            if any("x" in arguments.values() or "1.5" in arguments.values() for _, arguments in calls):
                raise BadReply("<h1>Server Error (500)</h1>")
            return [None] * len(calls)

    empty(courier_of(Production(knows_batches=False), 0.0))
    assert [row.command for row in read_failed(path)] == [frames[1], frames[3]]
    assert read_status(path).delivered == 3


def test_the_status_says_what_the_trouble_is(spool, path, courier_of, empty, clock):
    server = Server(reachable=False)
    courier = courier_of(server, 0.0)
    put(spool, "a")
    for _ in range(2):
        clock.advance(courier.step())
    spool.wait()
    assert (read_status(path).retries, read_status(path).trouble) == (2, "down")
    server.reachable = True
    empty(courier)
    assert (read_status(path).delivered, read_status(path).trouble) == (1, "")


def test_the_log_says_every_ten_minutes_that_an_outage_lasts(spool, path, courier_of, empty, clock, caplog):
    caplog.set_level(logging.INFO)
    server = Server(reachable=False)
    courier = courier_of(server, 0.0)
    put(spool, "a")
    began_us = clock.now_us()
    while clock.now_us() < began_us + 1_300_000_000:
        clock.advance(courier.step())
    said = [record.message for record in caplog.records]
    assert said == [
        "down",
        *("for 10 minutes nothing was delivered, and 1 commands wait", "down"),
        *("for 20 minutes nothing was delivered, and 1 commands wait", "down"),
    ]
    spool.wait()
    assert "for " in read_status(path).failures[0]
    server.reachable = True
    empty(courier)
    assert caplog.records[-1].message == "the server accepts commands again"


def test_refused_commands_are_listed(deliver, path):
    status = deliver(Server(refused=["1", "3"]))
    assert failed(path) == [("1", "refused"), ("3", "refused")]
    assert (status.delivered, status.refused) == (2, 2)


@pytest.mark.parametrize(("unnamed", "refused"), [(3, 3), (9, 4)])
def test_a_refusal_that_names_no_command(deliver, path, unnamed, refused):
    class Vague(Server):
        def post(self, batch_id, calls):
            super().post(batch_id, calls)
            return [BadReply(f"the server refused {unnamed} of 4 commands", unnamed)] * 4

    status = deliver(Vague())
    (row,) = read_failed(path)
    assert (row.why, row.command) == ("refused", "(some of 4 commands up to 'alloc,slot=3')")
    assert (status.delivered, status.refused, status.dead_letters) == (4 - refused, refused, 0)


@pytest.mark.parametrize("knows_batches", [True, False])
def test_what_an_earlier_daemon_had_sent(path, spool, deliver, knows_batches):
    server = Server(knows_batches=knows_batches)
    put(spool, "sent")
    batch = spool.take()
    status = deliver(server)
    if knows_batches:
        assert server.batches[0] == (batch.id, ["sent"])
        assert status.delivered == 5
    else:
        assert failed(path) == [("sent", "dead letter")]
        assert "ended before" in read_failed(path)[0].error
        assert status.delivered == 4


@pytest.mark.parametrize("is_known", [False, True])
def test_a_batch_that_was_given_up_is_made_anew_and_one_that_was_seen_is_kept_for_a_person(path, deliver, is_known):
    """Of the one it is certain that it was not applied; of the other, perhaps other commands were under its number."""
    seen = Refused("batch comes too late", CONFLICT)

    class Knowing(Server):
        def give_up(self, batch_id, calls):
            if is_known:
                return super().give_up(batch_id, calls)
            raise seen

    server = Knowing(seen)
    status = deliver(server)
    first, *later = server.batches
    if is_known:
        assert status.delivered == 4
        assert [slots for _, slots in later] == [first[1]]
        assert later[0][0] != first[0]
    else:
        assert failed(path) == [(str(number), "dead letter") for number in range(4)]
        assert read_failed(path)[0].error == "batch comes too late"


def test_a_batch_under_whose_number_others_were_applied_is_kept_for_a_person(path, deliver):
    class Mistaken(Server):
        def give_up(self, batch_id, calls):
            return [None] * len(calls)

    assert deliver(Mistaken(Refused("other commands", CONFLICT))).dead_letters == 4


def test_a_server_that_has_come_to_know_batches_did_not_know_those_before(path, spool, deliver):
    put(spool, "sent")
    spool.take(named=False)
    assert deliver(Server()).delivered == 4
    assert failed(path) == [("sent", "dead letter")]


def test_pauses_begin_anew_with_each_batch_that_comes_through(spool, courier_of, clock, empty):
    server = Server(*[failure for _ in range(20) for failure in (ReplyLost("cut"), None)])
    put_frames(spool, *["counters,slot=x,n=1", "alloc,slot=x"] * 10)  # each in a batch with its successor at most
    empty(courier_of(server, 0.0, max_backoff_s=3600.0))
    assert len(server.batches) > 20
    assert clock.monotonic() <= 0.1 * 20  # doubled twenty times, a pause would be of hours


@pytest.fixture
def threads(path):
    """Return threads(server, interval) -> (spool, courier), both with threads and on the machine's clock."""
    spool = Spool(path)

    def start(server, flush_interval_s):
        courier = Courier(spool, server, flush_interval_s)
        courier.start()
        return spool, courier

    yield start
    spool.close()


def test_to_stop_leaves_what_cannot_be_delivered(threads):
    server = Server(reachable=False)
    spool, courier = threads(server, 0.0)
    put(spool, "a")
    assert courier.stop(LONG_S)
    assert spool.pending == 1
    assert server.batches == []


def test_to_stop_delivers_without_waiting_for_the_interval(threads):
    server = Server()
    spool, courier = threads(server, 3600.0)
    put(spool, "a")
    assert courier.stop(LONG_S)
    assert server.applied == ["a"]


def test_a_thread_delivers_what_comes(threads):
    server = Server(ConnectFailed("no"))
    spool, courier = threads(server, 0.0)
    put(spool, "a")
    with server.came:
        assert server.came.wait_for(lambda: len(server.batches) == 2, LONG_S)
    assert courier.stop(LONG_S)
    assert spool.pending == 0
    assert [slots for _, slots in server.batches] == [["a"], ["a"]]


def test_commands_that_come_during_a_backoff_wake_nobody():
    """With a thousand waiting, each that comes is told of: the listener would share its time with the courier."""
    waited = SimpleQueue()

    class Noted(ManualClock):
        def wait(self, condition, timeout_s):
            waited.put((condition, timeout_s))
            return super().wait(condition, timeout_s)

    spool, clock = MemorySpool(), Noted()
    spool.put([("alloc", {"slot": str(number)}) for number in range(MAX_BATCH)])
    server = Server(reachable=False)
    courier = Courier(spool, server, 0.0, clock=clock)
    courier.start()
    condition, timeout_s = waited.get(timeout=LONG_S)
    assert (condition is spool.released, timeout_s > 0, server.asked) == (False, True, 1)
    clock.advance(timeout_s)
    condition, longer_s = waited.get(timeout=LONG_S)
    assert (condition is spool.released, server.asked) == (False, 2)
    server.reachable = True
    clock.advance(longer_s)
    condition, timeout_s = waited.get(timeout=LONG_S)
    assert (condition is spool.released, timeout_s, spool.pending) == (True, None, 0)
    assert courier.stop(LONG_S)


def test_a_failure_that_goes_on_is_told_once(deliver, caplog):
    caplog.set_level("INFO", "cpsim.daemon")
    deliver(Server(*[ConnectFailed("no")] * 3, Refused("not you", 401)))
    assert [record.message for record in caplog.records] == ["no", "not you", "the server accepts commands again"]


def test_batches_shrink_after_a_timeout_and_grow_again(spool, courier_of, clock):
    class Slow(Server):
        """Takes no more than so many at a time; what is more takes it too long, and is applied all the same."""

        most = 100

        def post(self, batch_id, calls):
            outcomes = super().post(batch_id, calls)
            if len(calls) > self.most:
                raise ReplyTimeout("no reply came in time")
            return outcomes

    server = Slow(knows_batches=False)
    courier = courier_of(server, 0.0)
    slots = [str(number) for number in range(3 * MAX_BATCH)]
    put(spool, *slots)
    while len(server.batches) < 9:
        clock.advance(courier.step() or 0.0)
    sizes = [len(sent) for _, sent in server.batches]
    assert sizes[:3] == [MAX_BATCH, MAX_BATCH // 2, MAX_BATCH // 4]
    first = next(place for place, size in enumerate(sizes) if size <= server.most)
    assert sizes[first - 1] // 2 == sizes[first]
    assert [b - a for a, b in pairwise(sizes[first:])] == [sizes[first - 1] // 16] * (len(sizes) - first - 1)
    server.most = MAX_BATCH
    while spool.pending:
        clock.advance(courier.step() or 0.0)
    assert sorted(slot for _, sent in server.batches for slot in sent) == sorted(slots)
