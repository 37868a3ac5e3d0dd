"""`cpsim daemon`, once its configuration is known."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import TcpEndpoint, UnixEndpoint
from cpdaemon.errors import CreditPiggyError
from cpsim.daemon.client import BulkClient
from cpsim.daemon.metrics import daemon_metrics
from cpsim.daemon.site import Daemon
from cpsim.daemon.spool import RESERVE_BYTES, Spool
from cpsim.errors import CpsimError
from cpsim.faults.plan import FaultPlan
from cpsim.faults.spec import SERVER_REQUESTS
from cpsim.metrics.exposition import build_info, faults_fired
from cpsim.net.listen import is_loopback
from cpsim.net.service_manager import ServiceManager
from cpsim.quirks import composed
from cpsim.quirks.policies.delivery import DeliveryPolicy
from cpsim.system.signals import Signals
from cpsim.system.threads import on_thread_failure
from cpsim.ui.logs import LINES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cpsim.daemon.config import Config


log = logging.getLogger(__name__)

DRAIN: Final = signal.SIGUSR1
"""The signal at which a daemon takes no more commands, and ends when it has delivered those that it has."""


class _LogFile(WatchedFileHandler):
    """A log file whose loss ends nothing: what cannot be written to it is said on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            super().emit(record)
        except OSError as error:  # it cannot be opened anew
            with suppress(OSError):
                LINES.error(f"[server] logfile = {self.baseFilename}: {error.strerror}")
                print(LINES.formatter().format(record), file=sys.stderr, flush=True)


def run(
    config: Config,
    ready: Callable[[str], object],
    read_secret: Callable[[], str],
    *,
    timeout_s: float,
    when_unknown: str,
    quirks: frozenset[str],
    faults: Iterable[str],
    seed: int,
) -> int:
    """Run a daemon until SIGTERM or SIGINT. SIGHUP has it open its log file anew, and read its secret again.

    SIGUSR1, or `config.drain` from the start, has it take no commands, deliver those that it has, and end.

    Args:
        config: the settings, complete.
        ready: called once commands are accepted, with a line `KIND ADDRESS` for each address, the last for the metrics.
        read_secret: reads the secret again; raises CpsimError.
        timeout_s: seconds that the server may take to answer a batch.
        when_unknown: `dead-letter` or `resend`.
        quirks: names from `cpsim.quirks.QUIRKS`; with "ack-before-delivery" there is no spool.
        faults: faults, as text.
        seed: seed of the faults' probabilities.

    Returns:
        The number of commands that a drain has left; 0 without one.

    Raises:
        CreditPiggyError: the credentials cannot be used.
        OSError: the address or a file cannot be used.
        CpsimError: the spool cannot be used, or a fault is not one of a daemon.
        ThreadFailed: an unexpected error ended a thread.
    """
    assert config.server is not None
    plan = _plan(config, faults, seed)
    handler = _start_log(config)
    credentials = config.project or "", config.secret or ""
    delivery = composed(DeliveryPolicy(), quirks)
    listen = None if config.bound or config.drain else config.listen
    manager = ServiceManager()
    with (
        Signals(DRAIN) as signals,
        on_thread_failure(lambda _: signals.end()),
        closing(BulkClient(config.server, credentials, timeout_s, follows=delivery.follows)) as server,
        Daemon(
            server,
            credentials[0],
            unix=Path(listen.path) if isinstance(listen, UnixEndpoint) else None,
            tcp=None if isinstance(listen, UnixEndpoint) else listen,
            bound={} if config.drain else config.bound,
            spool=_spool(config) if delivery.durable else None,
            flush_interval_s=config.flush_interval_s,
            when_unknown=when_unknown,
            quirks=quirks,
            faults=plan,
        ) as daemon,
        _metrics(config, daemon, plan) as metrics,
        _pid_in(config.pidfile),
    ):
        ready("".join(f"{kind} {address}\n" for kind, address in daemon.addresses.items()) + metrics)
        read_again = partial(_read_again, handler, server, read_secret)
        wait = partial(manager.wait, signals, read_again, daemon.after_a_turn, lambda: daemon.status_line)
        drains = config.drain or wait() == DRAIN
        if drains:
            daemon.drain(signals.end)
            wait(config.drain_timeout_s)
        manager.end()
    return daemon.pending if drains else 0


def _start_log(config: Config) -> logging.Handler:
    with _named("logfile"):
        handler = logging.StreamHandler() if config.logfile is None else _LogFile(config.logfile)
    handler.setFormatter(LINES.formatter(in_file=config.logfile is not None))
    logging.basicConfig(level=config.loglevel, handlers=[handler])
    return handler


def _plan(config: Config, faults: Iterable[str], seed: int) -> FaultPlan:
    held = ("daemon",) if config.bound else ()
    plan = FaultPlan(faults, seed=seed, crash=partial(os.kill, os.getpid(), signal.SIGKILL), held=held)
    for fault in plan:
        if fault.stage == "server" or fault.kind in SERVER_REQUESTS:
            raise CpsimError(f"fault {str(fault)!r} is a fault of a server: give it to the server behind this daemon")
    return plan


@contextmanager
def _metrics(config: Config, daemon: Daemon, plan: FaultPlan) -> Iterator[str]:
    """Serve metrics, if they are asked for; yield the line of their address."""
    address = config.bound_metrics or config.metrics
    if address is None:
        yield ""
        return
    from cpsim.daemon.metrics_server import MetricsServer  # noqa: PLC0415 - an HTTP server, for who asks for it

    where = address if isinstance(address, TcpEndpoint) else TcpEndpoint(*address.getsockname()[:2])
    if not is_loopback(where.host):
        log.warning("other machines can read the metrics at %s", where)
    with MetricsServer(address, lambda: [build_info(), *daemon_metrics([daemon]), faults_fired(plan.fired)]) as url:
        yield f"metrics {url}\n"


def _read_again(handler: logging.Handler, server: BulkClient, read_secret: Callable[[], str]) -> None:
    """Open the log file anew, and read the secret again; what cannot be read stays as it was."""
    if isinstance(handler, WatchedFileHandler):
        with suppress(OSError), handler.lock or nullcontext():  # which the next record says
            handler.reopenIfNeeded()
    try:
        server.renew(read_secret())
    except (CpsimError, CreditPiggyError) as error:
        log.error("SIGHUP: the secret stays as it was: %s", error)  # noqa: TRY400 - no traceback
    else:
        log.info("SIGHUP: the log file is open, and the secret was read again")


def _spool(config: Config) -> Spool:
    assert config.spool is not None
    assert config.project is not None
    spool = Spool(config.spool, reserve_bytes=RESERVE_BYTES)
    try:
        spool.set_project(config.project)
    except CpsimError:
        spool.close()
        raise
    return spool


@contextmanager
def _pid_in(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    content = f"{os.getpid()}\n"
    with _named("pidfile"):
        path.write_text(content, encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError, UnicodeDecodeError):  # another daemon's, by now, or none
            if path.read_text(encoding="utf-8") == content:
                path.unlink()


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Raise an OSError as a CpsimError that names the key of the file."""
    try:
        yield
    except OSError as error:
        raise CpsimError(f"[server] {key} = {error.filename}: {error.strerror}") from error
