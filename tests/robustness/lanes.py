"""Connections that send what they are told and wait for the answer, many at once, in one thread."""

from __future__ import annotations

import re
import selectors
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mutations import Exchange

PATIENCE_S = 100.0
LOOK_S = 1.0
"""How often it is seen whether somebody has waited too long."""
BOTH = selectors.EVENT_READ | selectors.EVENT_WRITE
HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) .*?\r\ncontent-length: (\d+)\r\n(?:.*?\r\n)?\r\n", re.DOTALL)


class Lane:
    """One exchange after another; a new connection whenever the server has closed the last one."""

    def __init__(self, connect: Callable[[], socket.socket], *, keeps: bool) -> None:
        self._connect = connect
        self._keeps = keeps
        self.sock: socket.socket | None = None

    def begin(self, exchange: Exchange, deadline: float) -> None:
        self.exchange, self.deadline, self.answer = exchange, deadline, b""
        if self.sock is None:
            self.sock = self._connect()
        self.unsent = list(exchange.pieces)
        self.send()

    def send(self) -> None:
        """Send the next piece, or as much of it as there is room for."""
        assert self.sock is not None
        with suppress(BlockingIOError, OSError):
            while self.unsent:
                sent = self.sock.send(self.unsent[0])
                rest = self.unsent[0][sent:]
                self.unsent[:1] = [rest] if rest else []
                if not rest:
                    break
            if not self.unsent and self.exchange.half_close:
                self.sock.shutdown(socket.SHUT_WR)

    def receive(self) -> str:
        """What the exchange has come to: "", "closed", or the answer, in a word."""
        assert self.sock is not None
        try:
            data = self.sock.recv(65_536)
        except BlockingIOError:
            return ""
        except OSError:
            data = b""
        self.answer += data
        if not data:
            self.close()
            return _word(self.answer)
        found = HEAD.match(self.answer)
        if self._keeps and found and len(self.answer) >= found.end() + int(found[2]):
            if self.exchange.half_close or b"connection: close" in found[0]:
                self.close()
            return _word(self.answer)
        return ""

    def close(self) -> None:
        assert self.sock is not None
        self.sock.close()
        self.sock = None

    def end(self) -> None:
        """Close the connection if there is one."""
        if self.sock is not None:
            self.close()


def _word(answer: bytes) -> str:
    if found := HEAD.match(answer):
        body = answer[found.end() :]
        return "200 with errors" if found[1] == b"200" and b'"errors"' in body else found[1].decode()
    return answer[:2].decode("ascii", "replace") or "closed"


def converse(lanes: list[Lane], exchanges: Iterator[Exchange], on_answer: Callable[[Exchange, str], None]) -> int:
    """Have all exchanges; returns how many were not answered in time."""
    selector = selectors.DefaultSelector()
    idle, silent, looked = list(lanes), 0, time.monotonic()
    while True:
        while idle and (exchange := next(exchanges, None)) is not None:
            lane = idle.pop()
            lane.begin(exchange, time.monotonic() + PATIENCE_S)
            watch = selector.modify if lane.sock in selector.get_map() else selector.register
            watch(lane.sock, BOTH if lane.unsent else selectors.EVENT_READ, lane)
        if len(idle) == len(lanes):
            break
        for key, events in selector.select(LOOK_S):
            lane = key.data
            if lane in idle:
                continue
            if events & selectors.EVENT_WRITE:
                lane.send()
                if not lane.unsent:
                    selector.modify(lane.sock, selectors.EVENT_READ, lane)
            if events & selectors.EVENT_READ and (word := lane.receive()):
                if lane.sock is None:
                    selector.unregister(key.fileobj)
                idle.append(lane)
                on_answer(lane.exchange, word)
        now = time.monotonic()
        if now < looked + LOOK_S:
            continue
        looked = now
        for key in [key for key in selector.get_map().values() if key.data not in idle and key.data.deadline < now]:
            selector.unregister(key.fileobj)
            key.data.close()
            idle.append(key.data)
            silent += 1
    selector.close()
    return silent
