"""How near the replay engine comes to what the machine allows, and whether it stays there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import memory
import numpy as np
from rounds import Row, in_turns
from served import CREDENTIALS, single

from cpdaemon import Client
from cpdaemon.endpoint import Endpoint, UnixEndpoint, parse_endpoint
from cpsim.config.catalog import find_scenario
from cpsim.evidence.journal import Journal
from cpsim.replay.assignment import Assignment
from cpsim.replay.engine import Engine
from cpsim.replay.pace import AsFastAsPossible, Rate
from cpsim.replay.processes import Processes
from cpsim.replay.wires.connect import open_wire
from cpsim.scenario import load_workload
from cpsim.system.process import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from c_limit import Limit

    from cpsim.replay.pace import Pace
    from cpsim.scenario.workload import Workload

THREADS = 16
IN_FLIGHT = 64
LOCUST_S = 3
CALLS = 5_000
FEW_JOBS, MANY_JOBS = 16_000, 160_000
LONG_JOBS, LONGEST_JOBS = 500_000, 5_000_000
SCENARIO = """
description = "As many jobs as are asked for"
duration = "1d"
population = {{ machines = 5_000, users = 3_000 }}
arrivals = {{ model = "poisson", jobs = {jobs} }}
run_time = {{ model = "lognormal", median = "40min", sigma = 0.8 }}
"""


def rows(folder: Path, path: str) -> Iterator[tuple[str, Row]]:
    """What is measured with the engine at a daemon that only answers, at a UNIX socket."""
    challenge = load_workload(find_scenario("challenge"))
    least = UnixEndpoint(path)
    if find_spec("locust"):
        yield (
            "replay engine / plain Locust user, one-shot, commands/s",
            in_turns(lambda turn: rate(challenge, least, f"locust-{turn}"), lambda _: plain_locust(path, folder)),
        )
        yield (
            "replay under cpsim load / under cpsim run, commands/s",
            in_turns(lambda turn: under("load", folder, path, turn), lambda turn: under("run", folder, path, turn)),
        )
    else:
        print("Locust is not installed, so nothing is compared with it", file=sys.stderr)
    few, many = (load_workload(scenario(folder, jobs)) for jobs in (FEW_JOBS, MANY_JOBS))
    yield (
        f"replay of {len(many):,} operations / of {len(few):,}, commands/s",
        in_turns(lambda turn: rate(many, least, f"m{turn}"), lambda turn: rate(few, least, f"f{turn}")),
    )
    yield longest(folder, least)
    yield (
        "workload generation / replay, operations/s",
        in_turns(lambda turn: generation(folder, turn), lambda turn: rate(few, least, f"g{turn}")),
    )
    half = rate(challenge, least, "half") / 2
    yield (
        "lateness p99 in ms at half of the engine's rate / service time p50",
        in_turns(lambda turn: lateness_ms(challenge, least, f"l{turn}", half), lambda _: service_ms[-1]),
    )
    yield (
        "a call of the client / of a bare socket, calls/s",
        in_turns(lambda _: calls(path), lambda _: bare_calls(path)),
    )
    yield (
        "a call of the client / of a bare socket, calls per second of CPU time",
        in_turns(lambda _: calls(path, time.process_time), lambda _: bare_calls(path, time.process_time)),
    )
    yield from memory.by_length(folder)


def against_the_limit(limit: Limit, path: str) -> Iterator[tuple[str, Row]]:
    """The engine and the client in C, at servers in C."""
    challenge = load_workload(find_scenario("challenge"))

    def engine(endpoint: Endpoint, prefix: str) -> Callable[[int], float]:
        return lambda turn: rate(challenge, endpoint, f"{prefix}{turn}")

    least = UnixEndpoint(path)
    yield (
        f"replay engine / C client with {THREADS} threads, one-shot, commands/s",
        in_turns(engine(least, "one"), lambda _: limit.oneshot(path, THREADS)),
    )
    yield (
        "two replay processes / C client, one-shot, commands/s",
        in_turns(lambda turn: rate_of_two(challenge, least, f"two{turn}"), lambda _: limit.oneshot(path, THREADS)),
    )
    with limit.serving_tcp() as address:
        yield (
            f"replay engine / C client with {THREADS} threads, one-shot over TCP, commands/s",
            in_turns(engine(parse_endpoint(address), "tcp"), lambda _: limit.oneshot(address, THREADS)),
        )
        if which("taskset"):
            yield (
                "C client on one core / on all, one-shot over TCP, commands/s",
                in_turns(
                    lambda _: limit.oneshot(address, THREADS, one_core=True), lambda _: limit.oneshot(address, THREADS)
                ),
            )
    with limit.serving_http() as url:
        requests = [request.replace(b"bench", b"limit") for request in single("c", 20_000)]
        yield (
            f"replay engine / C client with {THREADS} threads, kept HTTP connections, requests/s",
            in_turns(engine(parse_endpoint(url), "http"), lambda _: limit.http(url, requests, THREADS)),
        )


def under(command: str, folder: Path, path: str, turn: int) -> float:
    """Operations a second of `cpsim run` or `cpsim load`, as the run folder has them."""
    output = folder / f"{command}-{turn}"
    words = [sys.executable, "-P", "-m", "cpsim", command, str(scenario(folder, FEW_JOBS)), "--target", path]
    options = ["--output", str(output), *(["--", "--headless"] if command == "load" else [])]
    subprocess.run([*words, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return float(json.loads((output / "run.json").read_text(encoding="utf-8"))["operations_per_s"])


def longest(folder: Path, endpoint: Endpoint) -> tuple[str, Row]:
    """The longest replay beside one of a tenth, once, because it takes minutes."""
    ten, one = (load_workload(scenario(folder, jobs)) for jobs in (LONGEST_JOBS, LONG_JOBS))
    return (
        f"replay of {len(ten):,} operations / of {len(one):,}, commands/s",
        in_turns(lambda _: rate(ten, endpoint, "ten"), lambda _: rate(one, endpoint, "one"), rounds=1),
    )


def calls(path: str, now_s: Callable[[], float] = time.perf_counter) -> float:
    """Calls a second of the client library."""
    with Client(path) as client:
        begun_s = now_s()
        for number in range(CALLS):
            client.alloc(f"call-{number}", credits=5)
        return CALLS / (now_s() - begun_s)


def bare_calls(path: str, now_s: Callable[[], float] = time.perf_counter) -> float:
    """Calls a second of the least that anybody could write."""
    begun_s = now_s()
    for number in range(CALLS):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(path)
            sock.sendall(b"alloc,slot=bare-%d,credits=5" % number)
            assert sock.recv(8) == b"OK"
    return CALLS / (now_s() - begun_s)


def assignment(workload: Workload, endpoint: Endpoint, prefix: str, pace: Pace) -> Assignment:
    """A whole workload at an endpoint."""
    ops, due_us = np.arange(len(workload)), pace.schedule(workload.due_us)
    return Assignment(workload, ops, due_us, prefix, endpoint, CREDENTIALS, IN_FLIGHT, 10.0)


def replayed(given: Assignment) -> tuple[float, np.ndarray]:
    """Operations a second of one engine, undisturbed as in `cpsim run`, and its records."""
    journal = Journal()
    wire = open_wire(given.endpoint, given.timeout_s, given.in_flight)
    engine = Engine(wire, journal, in_flight=IN_FLIGHT, timeout_s=given.timeout_s, on_progress=lambda _: None)
    with undisturbed():
        elapsed_s = engine.run(given.operations())
    records = journal.records()
    wire.close()
    journal.close()
    assert not records["outcome"].any(), journal.errors
    return len(given.workload) / elapsed_s, records


def rate(workload: Workload, endpoint: Endpoint, prefix: str) -> float:
    """Operations a second, as fast as possible."""
    return replayed(assignment(workload, endpoint, prefix, AsFastAsPossible()))[0]


def rate_of_two(workload: Workload, endpoint: Endpoint, prefix: str) -> float:
    """Operations a second of two processes."""
    with Processes(assignment(workload, endpoint, prefix, AsFastAsPossible()), 2, lambda _: None) as processes:
        elapsed_s, records, errors = processes.run()
    assert not records["outcome"].any(), errors
    return len(records) / elapsed_s


service_ms: list[float] = []


def lateness_ms(workload: Workload, endpoint: Endpoint, prefix: str, operations_per_s: float) -> float:
    """Milliseconds by which operations were late at the 99th percentile; the median service time is noted."""
    given = assignment(workload, endpoint, prefix, Rate(operations_per_s))
    _, records = replayed(given)
    service_ms.append(float(np.median(records["answered_ns"] - records["sent_ns"])) / 1e6)
    assert given.schedule_us is not None
    return float(np.percentile(records["sent_ns"] - given.schedule_us[records["op"]] * 1000, 99)) / 1e6


def plain_locust(path: str, folder: Path) -> float:
    """Requests a second of a plain Locust user's sixteen."""
    script = Path(__file__).with_name("locust_user.py")
    options = [
        "--headless",
        "-u",
        str(THREADS),
        "-r",
        "100",
        "-t",
        f"{LOCUST_S}s",
        "--json-file",
        str(folder / "locust"),
    ]
    command = [sys.executable, "-m", "locust", "-f", script, *options]
    subprocess.run(command, env=os.environ | {"LIMIT_SOCKET": path}, stderr=subprocess.DEVNULL, check=True)
    (entry,) = json.loads((folder / "locust.json").read_text(encoding="utf-8"))
    assert not entry["num_failures"]
    return float(entry["num_requests"] / (entry["last_request_timestamp"] - entry["start_time"]))


def scenario(folder: Path, jobs: int) -> Path:
    """A scenario of that many jobs."""
    path = folder / f"jobs-{jobs}.toml"
    path.write_text(SCENARIO.format(jobs=jobs), encoding="utf-8")
    return path


def generation(folder: Path, seed: int) -> float:
    """Operations a second that are made of a scenario."""
    begun_s = time.perf_counter()
    workload = load_workload(scenario(folder, MANY_JOBS), seed)
    return len(workload) / (time.perf_counter() - begun_s)
