"""The shipped base behind the official clients: it knows nothing of tools or JSON, and keeps to both all the same."""

import json
from collections.abc import Iterator

import anthropic
import openai
import pytest
from gateway_parts import serving, settings_for
from shipped import Shipped

from doorstep.config import TINY

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Bergen"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "notes": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["city", "days", "notes"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": SCHEMA}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    async def start(_settings):
        return await Shipped.start(TINY, "tiny")

    with serving(settings_for(tmp_path_factory.mktemp("data")), start_engine=start) as url:
        yield url


@pytest.fixture
def client(address) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture
def claude(address) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address, api_key="any", max_retries=0) as made:
        yield made


def fits(value) -> bool:
    notes = value["notes"]
    return (
        set(value) == {"city", "days", "notes"}
        and value["city"] in ("Oslo", "Bergen")
        and value["days"] in range(1, 10)
        and len(notes) <= 2
        and all(len(note) <= 4 for note in notes)
    )


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_an_answer_in_a_schema(client, temperature):
    for seed in range(5):
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, response_format=FORMAT, temperature=temperature, seed=seed
        )
        assert answer.choices[0].finish_reason == "stop"
        assert fits(json.loads(answer.choices[0].message.content))


def test_an_answer_in_a_schema_from_the_other_clients(client, claude):
    text = {"format": {"type": "json_schema", "name": "weather", "schema": SCHEMA, "strict": True}}
    ours = client.responses.create(model="tiny", input="hello", text=text)
    theirs = claude.messages.create(
        model="tiny",
        messages=HELLO,
        max_tokens=200,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    assert fits(json.loads(ours.output_text))
    assert fits(json.loads(theirs.content[0].text))


def test_any_object(client):
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, response_format={"type": "json_object"}, temperature=0, max_tokens=300
    )
    assert answer.choices[0].message.content.startswith("{")


def test_a_schema_that_cannot_be_followed_is_refused(client):
    broken = {"type": "json_schema", "json_schema": {"name": "b", "schema": {"type": "wizard"}}}
    with pytest.raises(openai.BadRequestError, match="schema"):
        client.chat.completions.create(model="tiny", messages=HELLO, response_format=broken)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_must_be(client, choice):
    for seed in range(5):
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, seed=seed
        )
        [call] = answer.choices[0].message.tool_calls
        assert (call.function.name, answer.choices[0].finish_reason) == ("weather", "tool_calls")
        assert fits(json.loads(call.function.arguments))


def test_a_call_that_must_be_as_a_stream(client):
    asked = {"model": "tiny", "messages": HELLO, "tools": [TOOL], "tool_choice": "required"}
    with client.chat.completions.stream(**asked, parallel_tool_calls=False, seed=3) as stream:
        message = stream.get_final_completion().choices[0].message
    [call] = message.tool_calls
    assert fits(json.loads(call.function.arguments))


def test_a_call_that_must_be_from_anthropics_client(claude):
    tool = {"name": "weather", "input_schema": SCHEMA}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    with claude.messages.stream(
        model="tiny", messages=HELLO, max_tokens=300, tools=[tool], tool_choice=choice
    ) as stream:
        message = stream.get_final_message()
    [block] = message.content
    assert (block.type, block.name, message.stop_reason) == ("tool_use", "weather", "tool_use")
    assert fits(block.input)


def test_a_call_its_result_and_the_next_answer(client):
    asked = {"model": "tiny", "tools": [TOOL], "max_tokens": 200}
    first = client.chat.completions.create(messages=HELLO, tool_choice="required", parallel_tool_calls=False, **asked)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    after = [*HELLO, message.model_dump(exclude_none=True), result]
    second = client.chat.completions.create(messages=after, response_format=FORMAT, **asked | {"tools": []})
    assert fits(json.loads(second.choices[0].message.content))


def test_the_likeliest_tokens(client):
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, temperature=0, max_tokens=6, logprobs=True, top_logprobs=4
    )
    shown = answer.choices[0].logprobs.content
    assert len(shown) >= 1
    for token in shown:
        values = [other.logprob for other in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert (len(values), token.token, token.logprob) == (4, token.top_logprobs[0].token, values[0])


@pytest.mark.parametrize("change", [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"logit_bias": {"5": 100}}])
def test_a_penalty_and_a_bias_change_the_text(client, change):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "count: 1 1 1 1 1"}], "max_tokens": 12}
    plain, changed = (client.chat.completions.create(**asked, temperature=0, **more) for more in ({}, change))
    assert plain.choices[0].message.content != changed.choices[0].message.content


def test_a_seed_gives_the_same_again_and_n_give_several(client):
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 8, "seed": 4, "n": 3}
    one, two = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in two.choices]
    assert len(set(texts)) > 1


def test_min_p_leaves_only_the_likeliest(client):
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 8}
    greedy = client.chat.completions.create(**asked, temperature=0)
    narrow = client.chat.completions.create(**asked, temperature=1, extra_body={"min_p": 1})
    assert narrow.choices[0].message.content == greedy.choices[0].message.content


def test_the_addresses_of_the_hosted_service(address):
    ours = openai.OpenAI(base_url=f"{address}/oai/api/v1", api_key="any", max_retries=0)
    theirs = anthropic.Anthropic(base_url=f"{address}/anthropic/api", api_key="any", max_retries=0)
    with ours, theirs:
        assert "tiny" in [model.id for model in ours.models.list()]
        assert ours.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4).usage.prompt_tokens > 0
        assert theirs.messages.create(model="tiny", messages=HELLO, max_tokens=4).usage.output_tokens > 0
        assert theirs.messages.count_tokens(model="tiny", messages=HELLO).input_tokens > 0
