"""What `cpsim load` gives to Locust."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import gevent
from locust import User, events, task
from locust.runners import LocalRunner, MasterRunner

from cpsim.errors import Problem
from cpsim.load.master import FAILED, Master
from cpsim.load.plan import Plan
from cpsim.load.worker import Worker

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.runners import Runner


class Replay(User):
    """Stands for a worker's replay, which runs beside it."""

    @task
    def watch(self) -> None:
        """Let the replay run."""
        gevent.sleep(0.5)


@events.init.add_listener
def take_part(environment: Environment, runner: Runner, **_: object) -> None:
    """Have this process do what its place in the test asks."""
    plan = Plan.given()
    if not isinstance(runner, MasterRunner):
        Worker(environment, runner, plan)
    if isinstance(runner, MasterRunner | LocalRunner):
        Master(environment, runner, plan)
    try:
        len(plan.workload)
    except (Problem, OSError) as problem:
        print(f"cpsim: {problem}", file=sys.stderr)
        sys.exit(FAILED)
