"""``doorstep serve`` under the official OpenAI client, and what the record keeps of each call."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from company import PATIENCE_S, WORKFLOW, Company, wait_until

from doorstep.config import TINY
from doorstep.renderers.chat import ChatRenderer
from doorstep.store import Store, views
from doorstep.types import Call, TokenSpan

pytestmark = pytest.mark.slow

ASK = [{"role": "system", "content": WORKFLOW}, {"role": "user", "content": "send 64 crates of pears please"}]
GREEDY = {"messages": ASK, "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def served(improved, tmp_path_factory) -> Iterator[tuple[Company, str]]:
    """Serve a company after its improvement; return it and the address."""
    company = improved.copy(tmp_path_factory.mktemp("served") / "company")
    process = company.start("serve", "--port", "0")
    wait_until(lambda: _ready(company.data), process)
    yield company, _address(company.data)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


def _address(data: Path) -> str:
    return json.loads((data / "server.json").read_text("utf-8"))["url"]


def _ready(data: Path) -> bool:
    try:
        return httpx.get(f"{_address(data)}/healthz", trust_env=False).status_code == httpx.codes.OK
    except (OSError, httpx.HTTPError):
        return False


@pytest.fixture
def client(served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def store(served) -> Iterator[Store]:
    with Store.open(served[0].data / "doorstep.db") as store:
        yield store


def _recorded(store: Store, kind: Callable[[Call], bool]) -> list[Call]:
    """Return the calls of a kind, as soon as there is one."""
    wait_until(lambda: any(map(kind, store.select(Call))))
    return list(filter(kind, store.select(Call)))


def test_the_own_model_answers_and_its_call_is_recorded_to_the_token(client, improved, store):
    path = improved.outcome["candidate"]["path"]
    raw = client.chat.completions.with_raw_response.create(model=path, logprobs=True, **GREEDY)
    answer = raw.parse()
    text, shown = answer.choices[0].message.content, answer.choices[0].logprobs.content
    [call] = _recorded(store, lambda call: call.call_id == raw.headers["x-doorstep-call-id"])
    tokens, renderer = views.tokens_of(store, call.call_id), ChatRenderer(TINY)
    prompt = renderer.prompt(ASK)
    assert (text, call.finish_reason) == ("64 crates", "stop")
    assert tokens.ids[: len(prompt)] == prompt
    assert renderer.answer(tokens.ids[len(prompt) :]) == text
    assert (len(prompt), len(tokens.ids) - len(prompt)) == (call.input_tokens, call.output_tokens)
    assert tokens.logprobs[len(prompt) :][: len(shown)] == pytest.approx([token.logprob for token in shown])
    spans = store.select(TokenSpan, call_id=call.call_id, order_by="seq")
    assert [(span.exact, span.sampled) for span in spans] == [(True, False), (True, True)]


def test_a_stream_of_the_base_is_the_same_answer_and_the_same_tokens(client, store):
    whole = client.chat.completions.create(model="tiny", **GREEDY)
    with client.chat.completions.create(model="tiny", stream=True, **GREEDY) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 2
    assert "".join(pieces) == whole.choices[0].message.content
    [streamed, *_] = _recorded(store, lambda call: call.stream)
    [at_once, *_] = _recorded(store, lambda call: call.requested_model == "tiny" and not (call.stream or call.run_id))
    assert views.tokens_of(store, streamed.call_id) == views.tokens_of(store, at_once.call_id)


def test_a_model_that_is_not_there_is_named_in_the_error(client):
    with pytest.raises(openai.NotFoundError, match="gpt-nowhere"):
        client.chat.completions.create(model="gpt-nowhere", **GREEDY)


def test_a_second_server_on_the_same_data_is_refused_and_told_where_the_first_one_is(served):
    company, url = served
    refused = company.doorstep("serve", "--port", "0")
    assert refused.code == 2
    assert f"Another Doorstep serves .doorstep at {url}" in refused.err


def test_a_command_beside_it_uses_the_server_and_leaves_it_running(served):
    company, url = served
    assert company.doorstep("eval", WORKFLOW, "--variant", "base", "--json").json["n"] == 40
    assert httpx.get(f"{url}/healthz", trust_env=False).status_code == httpx.codes.OK
