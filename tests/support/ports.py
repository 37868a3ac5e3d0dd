"""Ports for servers that tests start."""

import os
import socket
from contextlib import suppress
from itertools import count

FIRST, PORTS = 10_000, 20_000
"""Below the ports that a system gives to those who ask for any: one that was closed just now may be another's next."""
_numbers = count(os.getpid() * 97)


def free_port():
    """A port of 127.0.0.1 that nobody has, nor gets without asking for it."""
    while True:
        port = FIRST + next(_numbers) % PORTS
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
