"""A small run behind a daemon, of claims alone, as `cpsim run` performs it."""

from cpdaemon.endpoint import UnixEndpoint, parse_endpoint
from cpsim.replay.pace import AsFastAsPossible
from cpsim.run import pipeline
from cpsim.run.plan import ReplayTarget
from cpsim.scenario import generate, source

SCENARIO = """
description = "claims alone"
duration = "1d"
population = { machines = 3, users = 2 }
arrivals = { model = "constant", jobs = 8 }
run_time = { model = "constant", value = "10min" }
outcome = { claim = 1 }
credits = { policy = "none", claim = 3 }
"""


def claims_alone(path, server, credentials):
    """Run it at a UNIX socket, whose server is at a URL; it is valid."""
    result = pipeline.run(
        lambda: generate(source.parse(SCENARIO, "small.toml"), 7),
        ReplayTarget(UnixEndpoint(str(path)), parse_endpoint(server), credentials),
        AsFastAsPossible(),
        in_flight=2,
        timeout_s=60.0,
        slot_prefix="w",
        on_stage=lambda _: None,
        on_progress=lambda *_: None,
    )
    assert result.verdict.ruling == "valid"
    return result.evidence
