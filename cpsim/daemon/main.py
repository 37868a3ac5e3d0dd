"""What `cpsim daemon` does once its configuration is known."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import TYPE_CHECKING, Final

from cpsim.daemon.courier import HttpServer
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import read_failed, read_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cpsim.daemon.config import Config

REQUEST_TIMEOUT_S: Final = 30.0


def run(config: Config, when_unknown: str, ready: Callable[[str], object]) -> None:
    """Run a daemon until SIGTERM or SIGINT.

    Args:
        config: with everything said that a daemon needs.
        when_unknown: `set-aside` or `resend`.
        ready: told the address, as `KIND ADDRESS`, once commands are accepted.

    Raises:
        CreditPiggyError: the credentials cannot be used.
        OSError: the address or a file cannot be used.
        Problem: the spool cannot be used.
    """
    assert config.listen is not None
    assert config.server is not None
    assert config.spool is not None
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    handler = logging.StreamHandler() if config.logfile is None else WatchedFileHandler(config.logfile)
    logging.basicConfig(
        level=config.loglevel, handlers=[handler], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    credentials = config.project or "", config.secret or ""
    with (
        closing(HttpServer(config.server, credentials, REQUEST_TIMEOUT_S)) as server,
        Daemon(
            config.listen,
            server,
            config.spool,
            flush_interval_s=config.flush_interval_s,
            when_unknown=when_unknown,
        ) as daemon,
        _pid_in(config.pidfile),
    ):
        ready(daemon.address)
        stop.wait()


def shown_status(spool: Path, as_json: bool) -> str:  # noqa: FBT001
    """The state of a spool, one figure a line or as a JSON document.

    Raises:
        Problem: there is no such spool, or it cannot be read.
    """
    figures = asdict(read_status(spool))
    if as_json:
        return json.dumps(figures) + "\n"
    figures["running"] = "yes" if figures["running"] else "no"
    return "".join(
        f"{name.replace('_', ' '):<10}  {value if isinstance(value, str) else f'{value:,}'}\n"
        for name, value in figures.items()
    )


def shown_failed(spool: Path, as_json: bool) -> str:  # noqa: FBT001
    """The commands of a spool that were refused or set aside, one a line or as a JSON document.

    Raises:
        Problem: there is no such spool, or it cannot be read.
    """
    rows = read_failed(spool)
    if as_json:
        return json.dumps([row._asdict() for row in rows], ensure_ascii=False) + "\n"
    return "".join(
        f"{datetime.fromtimestamp(row.at_us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}  {row.why}  {row.command}  {row.error}\n"
        for row in rows
    )


@contextmanager
def _pid_in(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    path.write_text(f"{os.getpid()}\n", encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
