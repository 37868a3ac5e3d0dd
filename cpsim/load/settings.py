"""The settings of a load: its command line, which master and workers share."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cpdaemon.endpoint import UrlEndpoint, parse_endpoint
from cpsim.accounts.sources import parse_source
from cpsim.config.thresholds import Threshold
from cpsim.replay.pace import AsFastAsPossible, Profile, Rate, Speed
from cpsim.run.folder import new_name
from cpsim.run.plan import Plan, ReplayTarget
from cpsim.scenario import load_share
from cpsim.ui.results import ResultFiles

if TYPE_CHECKING:
    from datetime import datetime

    from cpdaemon.endpoint import Endpoint
    from cpsim.replay.pace import Pace
    from cpsim.scenario.share import WorkloadShare
    from cpsim.scenario.workload import Workload

VARIABLE: Final = "CPSIM_LOAD"


@dataclass(frozen=True)
class Settings:
    """The options of `cpsim load`, as text; the secret stays in its file. `title` is its name in files of results."""

    title: str
    scenario: str
    settings: tuple[str, ...]
    seed: int | None
    endpoint: str
    server: str | None
    project: str | None
    secret_file: str | None
    accounts: str | None
    quirks: tuple[str, ...]
    rate: str | None
    speed: float | None
    in_flight: int
    timeout_s: float
    slot_prefix: str | None
    output: str | None
    runs: str
    page: str | None
    metrics: str | None
    thresholds: tuple[Threshold, ...]
    baseline: Path | None
    stop_on_breach: bool
    fail_fast: bool
    warm_up_s: float
    junit: str | None
    summary_file: str | None
    tls: dict[str, str]

    @classmethod
    def given(cls) -> Settings:
        """The settings that this process was started with."""
        document = json.loads(os.environ[VARIABLE])
        thresholds = tuple(Threshold(**given) for given in document["thresholds"])
        baseline = None if document["baseline"] is None else Path(document["baseline"])
        lists = {name: tuple(document[name]) for name in ("settings", "quirks")}
        return cls(**document | lists | {"thresholds": thresholds, "baseline": baseline})

    def share(self, index: int, count: int) -> WorkloadShare:
        """A share of the workload, made in this process: scenario and seed give the same on every machine."""
        return load_share(Path(self.scenario), self.seed, self.settings, index, count)

    @cached_property
    def whole(self) -> WorkloadShare:
        """The whole workload, kept until it is let go; it is made again if it is needed again."""
        return self.share(0, 1)

    @property
    def is_seen(self) -> bool:
        """Whether somebody sees, without Locust's page, which slots are judged while the load goes on."""
        return self.fail_fast or self.page is not None or self.metrics is not None

    def let_go(self) -> None:
        """Let the whole workload go."""
        vars(self).pop("whole", None)

    def folder(self) -> Path:
        """Where the run folder of a load is to be."""
        return Path(self.output) if self.output else new_name(Path(self.scenario), Path(self.runs))

    def files(self) -> ResultFiles:
        """A context whose end writes results of the load."""
        junit, summary = (None if name is None else Path(name) for name in (self.junit, self.summary_file))
        return ResultFiles(self.title, junit, summary)

    @property
    def target(self) -> ReplayTarget:
        """Where the load goes, and the server whose accounts are observed, if there is one."""
        endpoints = [self._endpoint(address) for address in (self.server, self.endpoint) if address is not None]
        servers = [endpoint for endpoint in endpoints if isinstance(endpoint, UrlEndpoint)]
        return ReplayTarget(
            endpoints[-1],
            servers[0] if servers else None,
            self.credentials,
            accounts=None if self.accounts is None else parse_source(self.accounts),
            accounts_project=self.project,
            quirks=frozenset(self.quirks),
        )

    def _endpoint(self, address: str) -> Endpoint:
        endpoint = parse_endpoint(address)
        return endpoint.with_tls(**self.tls) if self.tls and isinstance(endpoint, UrlEndpoint) else endpoint

    @property
    def credentials(self) -> tuple[str, str] | None:
        """Project id and secret."""
        if self.project is None or self.secret_file is None:
            return None
        return self.project, Path(self.secret_file).read_text(encoding="utf-8-sig").strip()

    @property
    def pace(self) -> Pace:
        """When operations are due."""
        if self.rate is not None:
            return Profile.parse(self.rate) if ":" in self.rate else Rate(float(self.rate))
        return AsFastAsPossible() if self.speed is None else Speed(self.speed)

    def plan(self, workload: Workload, slot_prefix: str, started: datetime) -> Plan:
        """The plan of a load, or of a share of it."""
        return Plan(
            workload=workload,
            target=self.target,
            pace=self.pace,
            slot_prefix=slot_prefix,
            started=started,
            in_flight=self.in_flight,
            timeout_s=self.timeout_s,
            warm_up_s=self.warm_up_s,
            stop_on=self.thresholds if self.stop_on_breach else (),
            fresh=self.slot_prefix is None and not workload.slot_ids,
        )
