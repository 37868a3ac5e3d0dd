"""The locustfile of `cpsim load`."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import gevent
from locust import User, events, task
from locust.runners import MasterRunner, WorkerRunner

from cpsim.load.guard import guarded
from cpsim.load.leaving import leave
from cpsim.load.master import Master
from cpsim.load.metrics_page import serve_metrics
from cpsim.load.settings import Settings
from cpsim.load.worker import Worker
from cpsim.run.live_figures import LiveFigures
from cpsim.system.process import put_off_pandas

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment
    from locust.runners import Runner
    from locust.web import WebUI


class ReplayUser(User):
    """A placeholder for a worker's replay, which runs in a greenlet of its own."""

    @task
    def watch(self) -> None:
        """Let the replay run."""
        gevent.sleep(0.5)


@events.init.add_listener
def take_part(environment: Environment, runner: Runner, web_ui: WebUI | None, **_: object) -> None:
    """Start the master or the worker of this process."""
    if web_ui is not None:
        _check_free(web_ui)
    put_off_pandas()
    settings = Settings.given()

    fail: Callable[[str], object] = leave
    if not isinstance(runner, MasterRunner):
        worker = Worker(environment, runner, settings)
    if isinstance(runner, WorkerRunner):
        fail = worker.fail
    else:
        figures = LiveFigures()
        Master(environment, runner, settings, figures)
        if settings.metrics is not None:
            try:
                serve_metrics(settings.metrics, figures)
            except OSError as error:
                leave(error.strerror or str(error))
    guarded(lambda: len(settings.workload), fail)()


def _check_free(page: WebUI) -> None:
    """Exit if the page's address is taken: Locust would print a traceback."""
    try:
        socket.create_server((page.host, page.port)).close()
    except OSError as error:
        leave(
            f"Locust's page cannot be served at {page.host}:{page.port}: {os.strerror(error.errno or 0)}; "
            "choose another port for it by -- --web-port N, or do without it by -- --headless"
        )
