"""The control API does what its OpenAPI document says, and the document is one."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from cpsim.fake import ANY_PORT, Fake
from cpsim.server.control import openapi
from cpsim.server.control.actions import ACTIONS

CALLS = [
    ("alloc", {"slot": "a", "min": 1, "max": 3}),
    ("counters", {"slot": "a", "job/events": 7}),
    ("claim", {"slot": "a", "machine": "m"}),
    ("claim", {"slot": "a", "machine": "n"}),
]


OPERATIONS = [
    found.ok() for found in schemathesis.openapi.from_dict(openapi.document(needs_token=False)).get_all_operations()
]


CASES = [
    pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
    for operation in OPERATIONS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or list(operation.query) or list(operation.body)  # else none can be wrong
]


@pytest.fixture(scope="module")
def server():
    """The URL of a server that has something to show."""
    with Fake({"0": "s", "q": "t"}, http=ANY_PORT) as fake:
        for project_id in ("0", "q"):
            fake.accounts.apply(project_id, CALLS)
        fake.accounts.link([("m", "u")])
        fake.faults.add("late=0:kind=claim")
        yield fake.addresses["http"].removesuffix("/api")


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_every_request_is_answered_as_described(server, operation, mode):
    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def answered(case):
        if isinstance(case.query.get("within_s"), int | float):
            case.query["within_s"] = 0  # or the answer waits for what will never be
        case.call_and_validate(base_url=server)

    answered()


def test_every_request_is_described(site):
    status, body = site.request("GET", "/__cpsim/openapi.json")
    assert status == 200
    document = json.loads(body)
    assert document == json.loads(json.dumps(openapi.document(needs_token=False)))
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(method, f"/__cpsim/{name}") for method, name in ACTIONS}
    answers = [one["responses"].keys() for methods in document["paths"].values() for one in methods.values()]
    assert set().union(*answers) == {"200", "400", "403", "404", "409", "413", "501", "503", "504", "507"}


def test_a_token_is_described_where_one_is_asked_for():
    document = openapi.document(needs_token=True)
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert document["security"] == [{"token": []}]
    assert "401" in document["paths"]["/__cpsim/totals"]["get"]["responses"]
