"""The locustfile of `cpsim load`."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, ClassVar

import gevent
from locust import LoadTestShape, User, events, task
from locust.runners import MasterRunner, WorkerRunner

from cpsim.load.guard import guarded
from cpsim.load.leaving import leave
from cpsim.load.master import Master
from cpsim.load.metrics_page import serve_metrics
from cpsim.load.page import show_verdict
from cpsim.load.settings import Settings
from cpsim.load.worker import Worker
from cpsim.run.live_figures import LiveFigures
from cpsim.system.mapped import keep_nothing_large
from cpsim.system.process import prepare_arrow

if TYPE_CHECKING:
    from locust.env import Environment
    from locust.runners import Runner
    from locust.web import WebUI


class ReplayUser(User):
    """A placeholder for a worker's replay, which runs in a greenlet of its own."""

    @task
    def watch(self) -> None:
        """Let the replay run."""
        gevent.sleep(0.5)


class ReplayShape(LoadTestShape):
    """One placeholder for each worker, so that nobody is asked for users and a ramp, which mean nothing to a replay."""

    use_common_options: ClassVar[bool] = True
    """Keeps Locust from saying that --run-time is ignored; on its page, the options would be asked for."""

    def reset_time(self) -> None:
        """Begin anew."""
        super().reset_time()
        self._users: int | None = None

    def tick(self) -> tuple[int, float] | None:
        """As many users as there were workers at first; None, which ends the test, without any or after --run-time."""
        if self._users is None:
            self._users = self.runner.worker_count if isinstance(self.runner, MasterRunner) else 1
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        is_over = options is not None and options.run_time and self.get_run_time() >= options.run_time
        return None if is_over or not self._users else (self._users, float(self._users))


@events.init.add_listener
def take_part(environment: Environment, runner: Runner, web_ui: WebUI | None, **_: object) -> None:
    """Start the master or the worker of this process."""
    if web_ui is not None:
        _check_free(web_ui)
    prepare_arrow()
    keep_nothing_large()
    settings = Settings.given()

    if not isinstance(runner, MasterRunner):
        Worker(environment, runner, settings)
    if not isinstance(runner, WorkerRunner):
        figures = LiveFigures()
        master = Master(environment, runner, settings, figures)
        if web_ui is not None:
            environment.shape_class.use_common_options = False
            show_verdict(web_ui, master.told)
        if settings.metrics is not None:
            try:
                serve_metrics(settings.metrics, figures)
            except OSError as error:
                leave(error.strerror or str(error))
        guarded(lambda: settings.whole, leave)()


def _check_free(page: WebUI) -> None:
    """Exit if the page's address is taken: Locust would print a traceback."""
    try:
        socket.create_server((page.host, page.port)).close()
    except OSError as error:
        leave(
            f"Locust's page cannot be served at {page.host}:{page.port}: {os.strerror(error.errno or 0)}; "
            "choose another port for it by -- --web-port N, or do without it by -- --headless"
        )
