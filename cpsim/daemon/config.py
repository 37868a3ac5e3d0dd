"""The daemon's configuration: the INI file of the deployed daemon, overridden by the command line."""

from __future__ import annotations

import logging
import math
import re
from configparser import ConfigParser, MissingSectionHeaderError
from configparser import Error as IniError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import UnixEndpoint, UrlEndpoint, parse_endpoint
from cpdaemon.errors import EndpointError
from cpsim.errors import CpsimError
from cpsim.net.listen import Listen
from cpsim.net.service_manager import PassedSocket, by_kind, tcp_of
from cpsim.system.checks import LONGEST_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from socket import socket

    from cpdaemon.endpoint import TcpEndpoint

DEFAULT_FLUSH_INTERVAL_S: Final = 1.0
DEPLOYED_FLUSH_INTERVAL_S: Final = 5.0
DEPLOYED_BIND: Final = "/var/run/creditapi.socket"
"""Where the deployed daemon listens if its file does not say."""
KEYS: Final = {
    "api": ("api_url", "api_key", "api_secret", "project_id", "project_auth", "flush_interval"),
    "server": ("socket", "bind", "pidfile", "logfile", "loglevel", "spool"),
}
METRICS: Final = "metrics"
"""Name of a passed socket for metrics."""
LEVELS: Final = {"debug", "info", "warn", "warning", "error", "critical"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of a daemon; None where no value was given."""

    listen: UnixEndpoint | TcpEndpoint | None = None
    server: UrlEndpoint | None = None
    project: str | None = None
    secret: str | None = field(default=None, repr=False)
    spool: Path | None = None
    flush_interval_s: float = DEFAULT_FLUSH_INTERVAL_S
    pidfile: Path | None = None
    logfile: Path | None = None
    loglevel: int = logging.INFO
    metrics: TcpEndpoint | None = None
    drain: bool = False
    drain_timeout_s: float | None = None
    bound: Mapping[str, socket] = field(default_factory=dict, hash=False)
    """Sockets that listen already, by `unix` and `tcp`; then `listen` does not count."""
    bound_metrics: socket | None = None
    """One for the metrics."""
    warnings: tuple[str, ...] = ()
    """One sentence for each key that is ignored, or whose value is in quotes."""


def read_config(path: Path) -> Config:
    """Read the deployed daemon's INI file.

    Section `[api]` has api_url, api_key and api_secret (older files: project_id and project_auth), flush_interval in
    seconds; section `[server]` has socket (unix or tcp), bind (PATH or HOST:PORT), pidfile, logfile, loglevel, and
    optionally spool. A comment begins with white space and a semicolon. As with the deployed daemon, unknown keys are
    ignored, and quotes are part of a value; `warnings` lists both. Of a key that is given twice, the last counts.
    Without bind, it listens at /var/run/creditapi.socket; without flush_interval, that is 5 seconds.

    Raises:
        CpsimError: the file cannot be read, or a value cannot be used. No message quotes a secret.
    """
    ini = ConfigParser(interpolation=None, strict=False, inline_comment_prefixes=(";",))  # a secret may contain a %
    try:
        ini.read_string(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CpsimError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CpsimError(f"{path} is not UTF-8 from byte {error.start} on: save it as UTF-8") from None
    except IniError as error:
        raise CpsimError(f"{path} is not an INI file: {_mistake(error)}") from None
    api: Mapping[str, str] = ini["api"] if ini.has_section("api") else {}
    server: Mapping[str, str] = ini["server"] if ini.has_section("server") else {}
    try:
        return Config(
            listen=_listen(server),
            server=_url(api.get("api_url")),
            project=api.get("api_key") or api.get("project_id"),
            secret=api.get("api_secret") or api.get("project_auth"),
            spool=_path(server.get("spool")),
            flush_interval_s=_seconds(api.get("flush_interval")),
            pidfile=_path(server.get("pidfile")),
            logfile=_path(server.get("logfile")),
            loglevel=_level(server.get("loglevel")),
            warnings=(*_unknown_sections(ini), *_key_warnings("api", api), *_key_warnings("server", server)),
        )
    except (ValueError, EndpointError) as error:
        raise CpsimError(f"{path}: {error}") from error


def with_passed(config: Config, passed: Sequence[PassedSocket]) -> Config:
    """Return the settings with the sockets of a service manager: one named `metrics` for these, others for commands.

    Raises:
        CpsimError: there are too many of a kind.
    """
    return replace(
        config,
        bound=by_kind(each for each in passed if each.name != METRICS),
        bound_metrics=tcp_of(each for each in passed if each.name == METRICS),
    )


def _mistake(error: IniError) -> str:
    """Name the mistake and its line number, without the line itself, which may hold the secret."""
    if isinstance(error, MissingSectionHeaderError):
        return f"line {error.lineno}: there is no [section] before it; begin the file with [api] or [server]"
    return "a line is not KEY = VALUE"


def _unknown_sections(ini: ConfigParser) -> Iterator[str]:
    for section in ini.sections():
        if section not in KEYS:
            close = get_close_matches(section.lower(), KEYS, n=1)
            hint = f"did you mean [{close[0]}]?" if close else "there are [api] and [server]"
            yield f"[{section}] is unknown and ignored; {hint}"


def _key_warnings(section: str, given: Mapping[str, str]) -> Iterator[str]:
    for key, value in given.items():
        if key not in KEYS[section]:
            close = get_close_matches(key, KEYS[section], n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(KEYS[section])}"
            yield f"[{section}] {key} is unknown and ignored; {hint}"
        elif re.fullmatch(r"""(["']).*\1""", value, re.DOTALL):
            yield f"[{section}] {key}: the quotes are part of its value; remove them if you do not mean them"


def _listen(server: Mapping[str, str]) -> UnixEndpoint | TcpEndpoint | None:
    kind = server.get("socket", "unix").lower()
    bind = server.get("bind") or (DEPLOYED_BIND if kind == "unix" else "")
    if not bind:
        return None
    if kind == "unix":
        return UnixEndpoint(bind)
    if kind == "tcp":
        with suppress(ValueError):
            return Listen(bind)
    raise ValueError(f"socket={kind} with bind={bind}: use unix with a PATH, or tcp with HOST:PORT")


def _url(text: str | None) -> UrlEndpoint | None:
    if not text:
        return None
    endpoint = parse_endpoint(text)
    if not isinstance(endpoint, UrlEndpoint):
        raise ValueError(f"api_url={text} is not a URL")  # noqa: TRY004 - a value, not a type, is wrong
    return endpoint


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _seconds(text: str | None) -> float:
    try:
        seconds = DEPLOYED_FLUSH_INTERVAL_S if not text else float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= LONGEST_S:
        raise ValueError(f"flush_interval={text} is not a number of seconds up to {LONGEST_S:g}")
    return seconds


def _level(text: str | None) -> int:
    if not text:
        return logging.INFO
    if text.isdigit():
        return int(text)
    if text.lower() not in LEVELS:
        raise ValueError(f"loglevel={text} is none of {', '.join(sorted(LEVELS))}")
    level: int = getattr(logging, text.upper())
    return level
