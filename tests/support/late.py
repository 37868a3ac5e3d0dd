"""Threads and sockets that are late, as on a busy machine but far more often: `pytest --late SEED`.

What a test waits for comes after something else then, in any order that threads allow.
"""

import functools
import queue
import random
import selectors
import socket
import threading
import time

SHARE, LONGEST_S = 0.2, 0.1
SELDOM = SHARE / 10
"""For what is called more often than threads wake."""


def begin(seed):
    """Have this process's threads be late from now on, by as much as the seed says."""
    chosen, sleep, wait = random.Random(seed), time.sleep, threading.Condition.wait

    def pause(share):
        if chosen.random() < share:
            sleep(LONGEST_S * chosen.random())

    def wake_late(condition, timeout=None):
        found = wait(condition, timeout)
        condition.release()
        try:
            pause(SHARE)
        finally:
            condition.acquire()
        return found

    def change(place, name, share):
        function = getattr(place, name)

        @functools.wraps(function)
        def late(*arguments, **options):
            pause(share)
            return function(*arguments, **options)

        setattr(place, name, late)

    threading.Condition.wait = wake_late
    change(threading.Thread, "run", SHARE)
    change(selectors.DefaultSelector, "select", SHARE)
    change(threading.Event, "set", SELDOM)
    for name in ("get", "put"):
        change(queue.Queue, name, SELDOM)
    for name in ("close", "connect", "recv", "recv_into", "send", "sendall", "shutdown"):
        change(socket.socket, name, SELDOM)
