"""Questions that the master asks its workers, one worker at a time, and their answers."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from gevent.event import AsyncResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment
    from locust.rpc.protocol import Message
    from locust.runners import Runner

LOOK_S: Final = 0.05
ASKED, ANSWERED = "cpsim-ask", "cpsim-answer"


class WorkerLost(Exception):
    """The worker that was asked is lost."""


class Questions:
    """Asks workers.

    Args:
        runner: Locust's runner, which carries messages.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._numbers = itertools.count()
        self._open: dict[int, AsyncResult[Any]] = {}

    def ask(self, worker: str, is_lost: Callable[[], bool], what: str, given: dict[str, Any]) -> Any:  # noqa: ANN401
        """What a worker answers; other greenlets run meanwhile.

        Args:
            worker: its id.
            is_lost: whether nothing is heard of it any more.
            what: the name of the question, a method of `WorkersShare`.
            given: its arguments, which Locust can send.

        Raises:
            WorkerLost: it will not answer.
        """
        number = next(self._numbers)
        answer = self._open[number] = AsyncResult()
        try:
            self._runner.send_message(ASKED, {"number": number, "what": what, "given": given}, worker)
            while not answer.ready():
                if is_lost():
                    raise WorkerLost
                answer.wait(LOOK_S)
            return answer.get()
        finally:
            del self._open[number]

    def hear(self, environment: Environment, msg: Message) -> None:
        """Take an answer."""
        del environment
        if (answer := self._open.get(msg.data["number"])) is not None:
            answer.set(msg.data["answer"])
