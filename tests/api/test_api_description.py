"""What the OpenAPI description says is so: requests made from it, right and wrong ones, get answers as it promises."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from doorstep.gateway.description import OPERATIONS, description

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
SETTINGS = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
SCHEMA = schemathesis.openapi.from_dict(description())


def _modes(operation):
    """Return how to ask: rightly, and wrongly where there is something to say."""
    return (GenerationMode.POSITIVE,) if operation.open else tuple(GenerationMode)


OPERATION = {f"{each.method} {each.path} {mode.value}": (each, mode) for each in OPERATIONS for mode in _modes(each)}


@pytest.mark.parametrize(("operation", "mode"), OPERATION.values(), ids=OPERATION)
def test_answers_are_as_described(address, key, named, operation, mode):
    seen = set()

    @SETTINGS
    @given(case=SCHEMA[operation.path][operation.method].as_strategy(generation_mode=mode))
    def check(case):
        _name(case, named)
        headers = {"authorization": f"Bearer {key}", "x-api-key": key}
        seen.add(case.call_and_validate(base_url=address, headers=headers, checks=CHECKS).status_code)

    check()
    assert 200 in seen or mode is GenerationMode.NEGATIVE


def _name(case, named):
    """Name what there is: by chance nobody would."""
    case.path_parameters.update({name: value for name, value in named.items() if name in case.path_parameters})
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "fake/video" if case.path == "/v1/videos" else "fake/echo"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method} {each.path}")
def test_a_key_is_needed_where_it_says_so(address, operation):
    answer = httpx.request(operation.method, address + operation.path, content=b"{}")
    assert answer.status_code == (200 if operation.open else 401)
