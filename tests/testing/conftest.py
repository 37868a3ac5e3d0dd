"""A CreditPiggy outside pytest's fixtures, and a job manager of a few lines."""

import os
import socket
import warnings

import pytest

from cpdaemon import Client
from cpsim.testing import CreditPiggy


@pytest.fixture
def creditpiggy():
    """One whose refusals are the test's own business."""
    with CreditPiggy(allow_refusals=True) as creditpiggy:
        yield creditpiggy


@pytest.fixture
def client(creditpiggy):
    with Client(creditpiggy.endpoint) as client:
        yield client


@pytest.fixture
def say():
    """Sends a frame as a shell hook does, and returns the answer."""

    def say(endpoint, frame):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(280)
            sock.connect(endpoint)
            sock.sendall(frame.encode())
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(10).decode()

    return say


@pytest.fixture
def forked():
    """Runs a function in a forked process, and returns its status."""

    def forked(child):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads forks: that is the test
            pid = os.fork()
        if pid == 0:
            status = 99
            try:
                status = child()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return forked
