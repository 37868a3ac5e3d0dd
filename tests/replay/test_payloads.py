"""What is rendered by the thousand equals what the client library would send, one by one."""

import pytest

from cpdaemon import commands, signing
from cpdaemon.endpoint import parse_endpoint
from cpsim.config.catalog import find_scenario
from cpsim.fake import ANY_PORT, Fake
from cpsim.replay import payloads
from cpsim.scenario import load_workload

CREDENTIALS = ("Proj%d", "s3%crét")
URL = parse_endpoint("http://[::1]:8080/some%20api")
PREFIXES = ["run", 'pre%d"fïx %s', "100%"]


@pytest.fixture(scope="module")
def smoke():
    return load_workload(find_scenario("smoke"), 3)


@pytest.fixture(params=["smoke", "awkward"])
def workload(request):
    return request.getfixturevalue(request.param)


def command(kind, arguments):
    slot, *_ = arguments.values()
    given = {name: value for name, value in arguments.items() if name != "slot"}
    match kind:
        case "counters":
            return commands.Counters(slot, given)
        case "meta":
            return commands.Meta(slot, given)
        case _:
            kinds = {"alloc": commands.Alloc, "claim": commands.Claim, "discard": commands.Discard}
            return kinds[kind](slot, **given)


def flat(chunks):
    return [payload for chunk in chunks for payload in chunk]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_frames_are_those_of_the_client_library(workload, prefix):
    calls = workload.calls(0, len(workload), prefix)
    expected = [command(kind, arguments).frame for kind, arguments in calls]
    assert flat(payloads.frames(workload, prefix)) == expected


@pytest.mark.parametrize("prefix", PREFIXES)
def test_requests_are_those_of_the_client_library(workload, prefix):
    calls = list(workload.calls(0, len(workload), prefix))
    requests = flat(payloads.requests(workload, prefix, URL, CREDENTIALS))
    assert len(requests) == len(calls)
    for request, (kind, arguments) in zip(requests, calls, strict=True):
        head, _, body = request.partition(b"\r\n\r\n")
        line, *headers = head.decode().split("\r\n")
        assert line == f"POST /some%20api/batch/{kind} HTTP/1.1"
        assert body == signing.single_body(arguments)
        assert sorted(headers) == [
            f"Authorization: {signing.token(CREDENTIALS, body)}",
            f"Content-Length: {len(body)}",
            "Content-Type: application/json",
            "Host: [::1]:8080",
        ]


@pytest.mark.parametrize("size", [1, 7, 16, 55, 10_000])
def test_chunks_border_anywhere(awkward, size):
    whole = flat(payloads.frames(awkward, "x"))
    signed = flat(payloads.requests(awkward, "x", URL, CREDENTIALS))
    sizes = [len(chunk) for chunk in payloads.frames(awkward, "x", size)]
    full, rest = divmod(len(awkward), size)
    assert sizes == [size] * full + [rest] * (rest > 0)
    assert flat(payloads.frames(awkward, "x", size)) == whole
    assert flat(payloads.requests(awkward, "x", URL, CREDENTIALS, size)) == signed


def test_the_awkward_workload_has_every_pattern_of_arguments(awkward):
    patterns = {(kind, *arguments) for kind, arguments in awkward.calls(0, len(awkward), "x")}
    assert [sum(kind == known for kind, *_ in patterns) for known in commands.KINDS] == [16, 7, 1, 1, 2]


@pytest.mark.parametrize(("name", "prefix"), [("smoke", PREFIXES[0]), *(("awkward", prefix) for prefix in PREFIXES)])
def test_a_server_accepts_every_request(request, name, prefix, replay):
    workload = request.getfixturevalue(name)
    with Fake({CREDENTIALS[0]: CREDENTIALS[1]}, http=ANY_PORT) as fake:
        endpoint = parse_endpoint(fake.addresses["http"])
        requests = flat(payloads.requests(workload, prefix, endpoint, CREDENTIALS))
        replayed = replay(endpoint, requests, slots=workload.slot.tolist(), in_flight=16)
        assert set(replayed.errors) == {""}
        with fake.accounts.reading() as ledger:
            assert set(ledger.projects[CREDENTIALS[0]].slots) == {
                arguments["slot"] for _, arguments in workload.calls(0, len(workload), prefix)
            }
