"""One run through a real HTTP server: whose failure is whose."""

import math

import pytest
from chat_door import completion, failure, open_door
from starlette.responses import JSONResponse, PlainTextResponse

from doorstep.errors import UsageError
from doorstep.types import Mode, RunStatus
from doorstep.workflows import client as client_module
from doorstep.workflows.client import ModelClient
from doorstep.workflows.runner import Runner
from doorstep.workflows.taskset import Task, task_digest
from doorstep.workflows.workflow import load_workflow

WORKFLOW = "def finish(value, item):\n    if value == 'refuse': raise ValueError('not sold any more')\n    return value"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(client_module, "BACKOFF_S", 0.0)


@pytest.fixture
def run_one(tmp_path):
    """Run one task against a server that answers by the given rule; return the run and how often it was asked."""
    (tmp_path / "workflow.py").write_text(WORKFLOW)

    async def run(rule, item="3 boxes"):
        task = Task(task_id="t1", digest=task_digest("3 boxes"), item=item, customer="eva")
        with open_door(rule) as door:
            async with ModelClient(door.url) as client:
                runner = Runner(client, load_workflow(tmp_path), variant="base", model="m", mode=Mode.EVAL)
                return await runner.run(task), door.bodies

    return run


async def test_a_good_answer(run_one):
    run, bodies = await run_one(lambda body: '{"qty": 3}')
    assert (run.status, run.output, run.needs_person, run.customer) == (RunStatus.OK, {"qty": 3}, False, "eva")
    assert run.confidence == pytest.approx(math.exp(-0.2))
    assert [run_id for run_id, _ in bodies] == [run.run_id]
    assert (bodies[0][1]["temperature"], bodies[0][1]["logprobs"]) == (0, True)


@pytest.mark.parametrize("answer", ["", "{oops", '{"qty": NaN}', "refuse"])
async def test_an_unusable_answer_is_the_models_failure_and_a_persons_work(run_one, answer):
    run, _ = await run_one(lambda body: answer)
    assert (run.status, run.needs_person, run.output) == (RunStatus.AGENT_ERROR, True, None)
    assert "is unusable" in run.error


async def test_a_model_without_logprobs_has_no_confidence(run_one):
    run, _ = await run_one(lambda body: JSONResponse(completion("yes")))
    assert (run.confidence, run.gaps) == (None, ["no_logprobs"])


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_what_may_pass_is_asked_three_times_and_counts_against_nobody(run_one, status):
    run, bodies = await run_one(lambda body: failure(status, "busy"))
    assert (run.status, len(bodies)) == (RunStatus.INFRA_ERROR, 3)
    assert run.error == f"HTTP {status}: busy"


async def test_a_second_try_that_succeeds_is_one_run(run_one):
    answers = iter([failure(500), "yes"])
    run, bodies = await run_one(lambda body: next(answers))
    assert (run.status, run.output) == (RunStatus.OK, "yes")
    assert {run_id for run_id, _ in bodies} == {run.run_id}


@pytest.mark.parametrize("body", [{"choices": []}, {"choices": [{"message": None}]}, [], {"error": "?"}])
async def test_what_is_no_completion_is_the_infrastructures_failure(run_one, body):
    run, _ = await run_one(lambda _: JSONResponse(body))
    assert (run.status, "no chat completion" in run.error) == (RunStatus.INFRA_ERROR, True)


async def test_a_page_of_a_proxy_is_the_infrastructures_failure(run_one):
    run, _ = await run_one(lambda body: PlainTextResponse("<html>log in"))
    assert run.status is RunStatus.INFRA_ERROR


@pytest.mark.parametrize(("status", "param"), [(400, None), (400, "messages"), (403, None), (413, None)])
async def test_a_conversation_that_the_model_refuses_is_an_input_error(run_one, status, param):
    run, bodies = await run_one(lambda body: failure(status, "too long", param))
    assert (run.status, run.error, len(bodies)) == (RunStatus.INPUT_ERROR, f"HTTP {status}: too long", 1)


@pytest.mark.parametrize(("status", "param"), [(401, None), (404, "model"), (400, "top_k")])
async def test_a_model_that_refuses_every_request_stops_the_work(run_one, status, param):
    with pytest.raises(UsageError, match=f"m refuses every request .HTTP {status}.: no such thing"):
        await run_one(lambda body: failure(status, "no such thing.", param))


def refuse_options(**messages):
    """Answer when none of these options is there."""

    def rule(body):
        named = next((name for name in messages if name in body), None)
        return failure(400, messages[named], named) if named else "yes"

    return rule


async def test_what_a_hosted_model_refuses_by_name_is_left_out_or_renamed(run_one):
    run, bodies = await run_one(refuse_options(temperature="only 1", max_tokens="use the other", logprobs="none here"))
    assert (run.status, run.gaps, len(bodies)) == (RunStatus.OK, [], 4)
    assert bodies[-1][1].keys() == {"model", "messages", "max_completion_tokens"}


async def test_a_refusal_of_logprobs_may_have_no_name_but_its_message(run_one):
    not_allowed = failure(403, "You are not allowed to request logprobs from this model")
    run, bodies = await run_one(lambda body: not_allowed if "logprobs" in body else "yes")
    assert (run.status, len(bodies)) == (RunStatus.OK, 2)


async def test_what_a_model_refused_is_remembered_for_that_model():
    with open_door(refuse_options(temperature="only 1")) as door:
        async with ModelClient(door.url) as client:
            for model in ("a", "a", "b"):
                await client.complete("run_1", model, [], temperature=0)
    assert ["temperature" in body for _, body in door.bodies] == [True, False, False, True, False]


async def test_a_model_that_refuses_an_option_under_both_names_stops_the_work(run_one):
    with pytest.raises(UsageError, match="refuses every request"):
        await run_one(refuse_options(max_tokens="use the other", max_completion_tokens="too many"))


async def test_the_wait_that_a_provider_asks_for_is_kept(run_one):
    busy = failure(429, "busy")
    busy.headers["retry-after"] = "0.3"
    answers = iter([busy, "yes"])
    run, _ = await run_one(lambda body: next(answers))
    assert run.status is RunStatus.OK
    assert run.ended_us - run.started_us >= 300_000


@pytest.mark.parametrize("wait", ["86400", "Wed, 21 Oct 2099 07:28:00 GMT", "nan", "soon", "-5"])
async def test_no_provider_makes_us_wait_for_long(run_one, monkeypatch, wait):
    monkeypatch.setattr(client_module, "MAX_WAIT_S", 0.01)
    busy = failure(503, "busy")
    busy.headers["retry-after"] = wait
    run, bodies = await run_one(lambda body: busy)
    assert (run.status, len(bodies)) == (RunStatus.INFRA_ERROR, 3)
    assert run.ended_us - run.started_us < 5_000_000


@pytest.mark.parametrize(("tokens", "says"), [(160, "cut at 160 tokens; raise MAX_TOKENS"), (40, "context is full")])
async def test_an_answer_that_was_cut_is_the_models_failure(run_one, tokens, says):
    cut = completion("half an ans")
    cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"] = "length", tokens
    run, _ = await run_one(lambda body: JSONResponse(cut))
    assert (run.status, run.output, run.needs_person) == (RunStatus.AGENT_ERROR, None, True)
    assert says in run.error


async def test_an_input_that_is_no_text_is_an_input_error(run_one):
    run, bodies = await run_one(lambda body: "yes", item="half \ud83d")
    assert (run.status, bodies) == (RunStatus.INPUT_ERROR, [])


async def test_nobody_at_the_address_is_the_infrastructures_failure(tmp_path):
    (tmp_path / "workflow.py").write_text(WORKFLOW)
    async with ModelClient("http://127.0.0.1:9") as client:
        runner = Runner(client, load_workflow(tmp_path), variant="base", model="m", mode=Mode.EVAL)
        run = await runner.run(Task(task_id="t1", digest="d", item="x"))
    assert (run.status, run.error.startswith("127.0.0.1:9 cannot be reached")) == (RunStatus.INFRA_ERROR, True)
