"""What most would write: a Locust user that opens a socket for each of its tasks."""

import itertools
import os
import socket
import time

from locust import User, task

numbers = itertools.count()


class Plain(User):
    @task
    def alloc(self):
        begun_s = time.perf_counter()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(os.environ["LIMIT_SOCKET"])
            sock.sendall(b"alloc,slot=plain-%d,credits=5" % next(numbers))
            reply = sock.recv(8)
        self.environment.events.request.fire(
            request_type="SEND",
            name="alloc",
            response_time=(time.perf_counter() - begun_s) * 1000,
            response_length=len(reply),
            exception=None if reply == b"OK" else ValueError("not OK"),
            context={},
        )
