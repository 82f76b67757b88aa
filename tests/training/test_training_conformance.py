"""The conformance runner: it passes against our own service, and it finds what is wrong with others."""

import asyncio
import gc
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import wrong_engines
from starlette.applications import Starlette
from training_door import KEY, application, serving

from doorstep.config import TINY
from doorstep.engine.local import LocalEngine
from doorstep.training.conformance import runner
from doorstep.training.conformance.checks import Check, Wrong, missing, near
from doorstep.training.conformance.session import Target, sdk_class
from doorstep.training.service import Service

# The SDK leaves connections open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

LOCAL = {
    "get_telemetry",
    "get_console_url",
    "on_queue_state_change",
    "holder",
    "create",
}  # these ask the server nothing
ADMIN = {"get_audit_log", "get_billing_usage", "get_current_checkpoint_storage_usage"}  # moved to AdminClient

OTHER_KEY = "tml-another"
GAPS = {"Dimuon: a model with the other optimizer trains"}  # what we do not serve

Serve = Callable[[Callable[[Any], Any]], AbstractContextManager[str]]


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    engine = asyncio.run(LocalEngine.start(TINY, "tiny"))
    yield engine
    asyncio.run(engine.close())


@pytest.fixture
def serve(engine: LocalEngine, tmp_path) -> Serve:
    return lambda wrap: serving(tmp_path, lambda: wrap(Kept(engine)), tenants_by_key)


def tenants_by_key(service: Service) -> Starlette:
    service.authenticate = lambda headers: headers.get("x-api-key")
    return application(service)


class Kept(wrong_engines.Wrapped):
    """An engine that outlives its service."""

    async def close(self) -> None:
        pass


def found_wrong(url: str, names: set[str], limit_s: float = 30.0) -> dict[str, str | None]:
    """Run these checks; return what they found wrong, by name."""
    chosen = [one for one in runner.checks() if one.name in names]
    assert {one.name for one in chosen} == names
    return {call.name: call.error for call in calls(url, chosen, limit_s) if not call.ok}


def calls(url: str, chosen: list[Check], limit_s: float) -> list[runner.Call]:
    """Run checks; what the SDK leaves open complains here, where the tests expect it."""
    told = list(runner.run(Target(url, KEY, "tiny", OTHER_KEY), chosen, limit_s))
    gc.collect()
    return told


@pytest.mark.slow
def test_our_own_service_passes_every_check(serve):
    with serve(lambda engine: engine) as url:
        told = calls(url, runner.checks(), limit_s=30.0)
    assert {call.name: call.error for call in told if not call.ok and call.name not in GAPS} == {}
    assert sum(call.tried for call in told) > 110


FAULTS = {
    wrong_engines.HalfGradients: "gradients are those of the loss that is told",
    wrong_engines.MeanLoss: "TrainingClient.forward_backward",
    wrong_engines.ShiftedScores: "SamplingClient.compute_logprobs",
    wrong_engines.NoClipping: "grad_clip_norm bounds the gradients of all parameters together",
    wrong_engines.FlatTargets: "cross_entropy: targets of shape [N, K]",
    wrong_engines.Seedless: "a seed gives the same samples again, and another seed others",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(serve, fault):
    with serve(fault) as url:
        assert found_wrong(url, {FAULTS[fault]}).keys() == {FAULTS[fault]}


def test_what_takes_too_long_is_told_and_left(serve):
    first, second = "gradients are those of the loss that is told", "forward leaves no gradients"
    with serve(wrong_engines.Slow) as url:
        assert found_wrong(url, {first, second}, limit_s=3.0) == {first: "no answer within 3 s"}


def test_a_dead_server_does_not_take_all_day():
    hangs = Check("hangs", "group", (), lambda _session: time.sleep(0.5))
    told = [call.error for call in runner.run(Target("http://127.0.0.1:9", KEY, "tiny"), [hangs] * 5, limit_s=0.05)]
    assert told == ["no answer within 0.05 s"] * 3 + ["left out: 3 checks in a row got no answer"] * 2


def test_an_address_where_nothing_is_says_so():
    with pytest.raises(Wrong, match=r"nothing answers at http://127\.0\.0\.1:9"):
        runner.reach("http://127.0.0.1:9")


@pytest.mark.parametrize("client", ["ServiceClient", "TrainingClient", "SamplingClient", "RestClient"])
def test_every_public_method_has_a_check(client):
    methods = {name for name, _ in inspect.getmembers(sdk_class(client)) if name[0] != "_"}
    methods = {name for name in methods if not name.endswith("_async")} - LOCAL - ADMIN
    checked = {need.partition(".")[2] for one in runner.checks() for need in one.needs if need.startswith(client)}
    assert methods - checked - {"get_sampler_handle"} == set()


def test_a_method_that_the_sdk_lacks_is_named():
    assert missing(["TrainingClient.forward", "TrainingClient.no_such"]) == "TrainingClient.no_such"
    assert missing(["SamplingClient.sample:no_such"]) == "SamplingClient.sample:no_such"
    assert missing(["SamplingClient.sample:prompt"]) is None


@pytest.mark.parametrize("got", [[1.0], [1.0, 2.1], [1.0, float("nan")]])
def test_numbers_that_differ_are_wrong(got):
    near([1.0, 2.001], [1.0, 2.0], "numbers")
    with pytest.raises(Wrong, match="numbers: "):
        near(got, [1.0, 2.0], "numbers")
