"""Scrapes of metrics, read by Prometheus' own parser."""

import urllib.error
import urllib.request
from contextlib import suppress

from prometheus_client.openmetrics.parser import text_string_to_metric_families


def scrape(port):
    """The samples of `/metrics`, by name, each with its labels; nothing while nobody listens there."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
    request.add_header("Accept", "application/openmetrics-text; version=1.0.0")
    found = {}
    with suppress(urllib.error.URLError), urllib.request.urlopen(request, timeout=60) as response:
        for family in text_string_to_metric_families(response.read().decode()):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def replayed(found):
    """How many operations of a replay a scrape has counted."""
    return sum(value for _, value in found.get("cpsim_replay_operations_total", ()))
