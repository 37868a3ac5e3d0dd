"""Metrics as text that Prometheus reads: its own format, or OpenMetrics if the scraper accepts it."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from cpsim.metrics.duration_buckets import BOUNDS_S, DurationCounts
from cpsim.system.extras import DISTRIBUTION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric

METRICS_PATH: Final = "/metrics"


class Family(NamedTuple):
    """A metric: its name, without the ending of a counter, and its samples, each with its labels."""

    type: Literal["counter", "gauge", "histogram", "info"]
    name: str
    help: str
    samples: Sequence[tuple[Mapping[str, str], float | DurationCounts]]


@cache
def build_info() -> Family:
    """Return the metric that names the versions of cpsim and Python."""
    versions = {"version": version(DISTRIBUTION), "python": platform.python_version()}
    return Family("info", "cpsim_build", "Versions of cpsim and Python.", [(versions, 1)])


def faults_fired(fired: Mapping[tuple[str, str], int]) -> Family:
    """Return the metric of the faults that fired, from their number by stage and action."""
    samples = [({"stage": stage, "action": action}, count) for (stage, action), count in list(fired.items())]
    return Family("counter", "cpsim_faults_fired", "Faults that fired.", samples)


def exposition(families: Iterable[Family], accept: str) -> tuple[bytes, bytes]:
    """Return the content type and the text of metrics, in the format that an `Accept` header asks for."""
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - a tenth of a second, for who scrapes

    metrics = [_metric(family) for family in families if family.samples]
    encode, content_type = choose_encoder(accept)
    return content_type.encode(), encode(SimpleNamespace(collect=lambda: metrics))


def _metric(family: Family) -> Metric:
    from prometheus_client import Metric  # noqa: PLC0415 - as above

    metric = Metric(family.name, family.help, family.type)
    for labels, value in family.samples:
        for suffix, more, number in _numbers(family.type, value):
            metric.add_sample(family.name + suffix, {**labels, **more}, number)
    return metric


def _numbers(kind: str, value: float | DurationCounts) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the ending of the name, the further labels and the value of each number that is written."""
    if not isinstance(value, DurationCounts):
        yield {"counter": "_total", "gauge": "", "info": "_info"}[kind], {}, value
        return
    for bound, count in zip([*map(str, BOUNDS_S), "+Inf"], value.up_to, strict=True):
        yield "_bucket", {"le": bound}, count
    yield "_count", {}, value.up_to[-1]
    yield "_sum", {}, value.sum_s
