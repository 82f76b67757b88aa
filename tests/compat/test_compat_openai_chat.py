"""The official ``openai`` SDK at ``/v1/chat/completions``, whatever the model's service speaks."""

import json

import openai
import pytest
from sdk_parts import CITY, HELLO, ORDER, PDF, PNG, Order, base64_of, data_url

WEATHER = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time", "parameters": CITY}}


def said(answer) -> str:
    return answer.choices[0].message.content


def streamed(gpt, **asked):
    with gpt.chat.completions.stream(stream_options={"include_usage": True}, **asked) as stream:
        return stream.get_final_completion()


def ask(gpt, **asked):
    return gpt.chat.completions.create(**asked)


def test_an_answer(gpt, way):
    answer = gpt.chat.completions.create(model=f"{way}echo", messages=HELLO, temperature=0.5, max_tokens=50)
    assert (said(answer), answer.choices[0].finish_reason) == ("hello there, world", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 3, 6)


def test_an_answer_that_is_cut(gpt, way):
    answer = gpt.chat.completions.create(model=f"{way}echo", messages=HELLO, max_tokens=2)
    assert (said(answer), answer.choices[0].finish_reason) == ("hello there,", "length")


def test_a_stream(gpt, way):
    chunks = list(gpt.chat.completions.create(model=f"{way}echo", messages=HELLO, stream=True))
    parts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(parts) > 2
    assert "".join(parts) == "hello there, world"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stream_with_its_usage(gpt, way):
    answer = streamed(gpt, model=f"{way}echo", messages=HELLO)
    assert said(answer) == "hello there, world"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)


async def test_an_asynchronous_stream(address, way):
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as gpt:
        stream = await gpt.chat.completions.create(model=f"{way}echo", messages=HELLO, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(parts) == "hello there, world"


def test_a_system_prompt_and_earlier_turns(gpt, way):
    talk = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "good bye"},
    ]
    answer = gpt.chat.completions.create(model=f"{way}echo", messages=talk)
    assert (said(answer), answer.usage.prompt_tokens) == ("good bye", 6)


@pytest.mark.parametrize("get", [ask, streamed])
def test_a_tool_from_the_call_to_its_result(gpt, way, get):
    asked = {"model": f"{way}tools", "tools": [WEATHER]}
    answer = get(gpt, messages=HELLO, **asked)
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert (answer.choices[0].finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == {"city": "text"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    assert said(get(gpt, messages=[*HELLO, message, result], **asked)) == "sunny"


@pytest.mark.parametrize("get", [ask, streamed])
def test_two_tools_at_once(gpt, way, get):
    asked = {"model": f"{way}tools", "tools": [WEATHER, CLOCK]}
    message = get(gpt, messages=HELLO, **asked).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["weather", "clock"]
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f"the {call.function.name}"} for call in message.tool_calls
    ]
    last = said(get(gpt, messages=[*HELLO, message, *results], **asked))
    assert last.endswith("the clock")


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ({"parallel_tool_calls": False}, ["weather"]),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, ["clock"]),
        ({"tool_choice": "none"}, []),
    ],
)
def test_a_choice_of_tools(gpt, way, wish, names):
    answer = gpt.chat.completions.create(model=f"{way}tools", messages=HELLO, tools=[WEATHER, CLOCK], **wish)
    assert [call.function.name for call in answer.choices[0].message.tool_calls or []] == names


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ({"type": "image_url", "image_url": {"url": data_url("image/png", PNG)}}, "[image]"),
        ({"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}, "[image]"),
        ({"type": "file", "file": {"filename": "a.pdf", "file_data": data_url("application/pdf", PDF)}}, "[file]"),
    ],
)
def test_pictures_and_documents(gpt, way, part, shown):
    content = [{"type": "text", "text": "see"}, part]
    answer = gpt.chat.completions.create(model=f"{way}echo", messages=[{"role": "user", "content": content}])
    assert said(answer) == f"see {shown}"


def test_sound(gpt):
    part = {"type": "input_audio", "input_audio": {"data": base64_of(b"RIFF"), "format": "wav"}}
    answer = gpt.chat.completions.create(model="chat/fake/echo", messages=[{"role": "user", "content": [part]}])
    assert said(answer) == "[audio]"


def test_an_answer_of_a_given_form(gpt, way):
    answer = gpt.chat.completions.parse(model=f"{way}json", messages=HELLO, response_format=Order)
    assert answer.choices[0].message.parsed == ORDER


def test_an_answer_of_a_given_form_as_a_stream(gpt, way):
    answer = streamed(gpt, model=f"{way}json", messages=HELLO, response_format=Order)
    assert answer.choices[0].message.parsed == ORDER


def test_thinking(gpt, way):
    answer = gpt.chat.completions.create(model=f"{way}thinking", messages=HELLO, reasoning_effort="low")
    assert said(answer) == "hello there, world"
    assert answer.choices[0].message.reasoning_content == "Let me think."
    again = [*HELLO, answer.choices[0].message, {"role": "user", "content": "and now?"}]
    assert said(gpt.chat.completions.create(model=f"{way}thinking", messages=again)) == "and now?"


@pytest.mark.parametrize("get", [ask, streamed])
def test_thinking_before_a_tool(gpt, way, get):
    asked = {"model": f"{way}agent", "tools": [WEATHER]}
    message = get(gpt, messages=HELLO, **asked).choices[0].message
    assert message.reasoning_content == "Let me think."
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    assert said(get(gpt, messages=[*HELLO, message, result], **asked)) == "sunny"


def test_thinking_comes_back_where_litellm_keeps_it(gpt, way):
    asked = {"model": f"{way}agent", "tools": [WEATHER]}
    message = gpt.chat.completions.create(messages=HELLO, **asked).choices[0].message.to_dict()
    message["provider_specific_fields"] = {"reasoning_details": message.pop("reasoning_details")}
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"}
    assert said(gpt.chat.completions.create(messages=[*HELLO, message, result], **asked)) == "sunny"


def test_a_refusal(gpt, way):
    choice = gpt.chat.completions.create(model=f"{way}refusal", messages=HELLO).choices[0]
    assert (choice.message.refusal, choice.message.content) == ("I cannot help with that.", None)


def test_log_probabilities_of_the_local_model(gpt):
    answer = gpt.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], logprobs=True)
    told = answer.choices[0].logprobs.content
    assert "".join(token.token for token in told) == said(answer) == "hello world"
    assert [token.logprob for token in told] == [-0.5 * (step + 1) for step in range(len(told))]


def test_the_call_can_be_found_by_its_header(gpt):
    raw = gpt.chat.completions.with_raw_response.create(model="fake/echo", messages=HELLO)
    assert raw.headers["x-doorstep-call-id"].startswith("call_")
    assert said(raw.parse()) == "hello there, world"


def test_the_models_are_listed(gpt):
    assert {"tiny", "patient"} <= {model.id for model in gpt.models.list()}
    assert gpt.models.retrieve("chat/fake/echo").id == "chat/fake/echo"
