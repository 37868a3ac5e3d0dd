"""The plan of a load: the command line, which master and workers share."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cpdaemon.endpoint import UrlEndpoint, parse_endpoint
from cpsim.replay.assignment import Assignment
from cpsim.replay.pace import AsFastAsPossible, Profile, Rate, Speed
from cpsim.scenario import load_workload

if TYPE_CHECKING:
    from cpdaemon.endpoint import Endpoint
    from cpsim.replay.pace import Pace
    from cpsim.scenario.workload import Workload

VARIABLE: Final = "CPSIM_LOAD"


@dataclass(frozen=True)
class Plan:
    """The options of `cpsim load`, as text; the secret stays in its file."""

    scenario: str
    seed: int | None
    target: str
    server: str | None
    project: str | None
    secret_file: str | None
    rate: str | None
    speed: float | None
    in_flight: int
    timeout_s: float
    slot_prefix: str | None
    output: str | None
    thresholds: tuple[str, ...]

    @classmethod
    def given(cls) -> Plan:
        """The plan that this process was started with."""
        document = json.loads(os.environ[VARIABLE])
        return cls(**document | {"thresholds": tuple(document["thresholds"])})

    @cached_property
    def workload(self) -> Workload:
        """The whole workload, made in this process: scenario and seed give the same on every machine."""
        return load_workload(Path(self.scenario), self.seed)

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint of the replay."""
        return parse_endpoint(self.target)

    @property
    def accounts(self) -> UrlEndpoint | None:
        """The server whose accounts are observed; None if there is none."""
        for address in (self.server, self.target):
            endpoint = None if address is None else parse_endpoint(address)
            if isinstance(endpoint, UrlEndpoint):
                return endpoint
        return None

    @property
    def credentials(self) -> tuple[str, str] | None:
        """Project id and secret."""
        if self.project is None or self.secret_file is None:
            return None
        return self.project, Path(self.secret_file).read_text(encoding="utf-8").strip()

    @property
    def pace(self) -> Pace:
        """When operations are due."""
        if self.rate is not None:
            return Profile.parse(self.rate) if ":" in self.rate else Rate(float(self.rate))
        return AsFastAsPossible() if self.speed is None else Speed(self.speed)

    def assignment(self, slot_prefix: str) -> Assignment:
        """The assignment of the whole workload."""
        return Assignment(
            workload=self.workload,
            ops=np.arange(len(self.workload)),
            schedule_us=self.pace.schedule(self.workload.due_us),
            slot_prefix=slot_prefix,
            endpoint=self.endpoint,
            credentials=self.credentials,
            in_flight=self.in_flight,
            timeout_s=self.timeout_s,
        )
