"""The official ``openai`` SDK at ``/v1/responses``, whatever the model's service speaks."""

import json

import openai
import pytest
from sdk_parts import CITY, HELLO, ORDER, PDF, PNG, Order, data_url

WEATHER = {"type": "function", "name": "weather", "description": "The weather", "parameters": CITY, "strict": True}
CLOCK = {"type": "function", "name": "clock", "description": "The time", "parameters": CITY, "strict": True}


def ask(gpt, **asked):
    return gpt.responses.create(**asked)


def streamed(gpt, **asked):
    with gpt.responses.stream(**asked) as stream:
        return stream.get_final_response()


def calls_of(answer):
    return [item for item in answer.output if item.type == "function_call"]


def test_an_answer(gpt, way):
    answer = gpt.responses.create(
        model=f"{way}echo", input="hello there, world", instructions="be brief", temperature=0.5, max_output_tokens=50
    )
    assert (answer.output_text, answer.status) == ("hello there, world", "completed")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (5, 3, 8)


def test_labels_of_a_client_go_to_every_service(gpt, way):
    labels = {"client_metadata": {"session_id": "s"}, "prompt_cache_key": "s"}  # as Codex sends them
    answer = gpt.responses.create(model=f"{way}echo", input=HELLO, metadata={"team": "a"}, extra_body=labels)
    assert answer.output_text == "hello there, world"


def test_an_answer_that_is_cut(gpt, way):
    answer = gpt.responses.create(model=f"{way}echo", input=HELLO, max_output_tokens=2)
    assert (answer.output_text, answer.status) == ("hello there,", "incomplete")
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_a_stream(gpt, way):
    events = list(gpt.responses.create(model=f"{way}echo", input=HELLO, stream=True))
    parts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(parts) > 2
    assert "".join(parts) == events[-1].response.output_text == "hello there, world"
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert events[-1].response.usage.total_tokens == 6


async def test_an_asynchronous_stream(address, way):
    async with (
        openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as gpt,
        gpt.responses.stream(model=f"{way}echo", input=HELLO) as stream,
    ):
        answer = await stream.get_final_response()
    assert answer.output_text == "hello there, world"


@pytest.mark.parametrize("get", [ask, streamed])
def test_a_tool_from_the_call_to_its_result(gpt, way, get):
    asked = {"model": f"{way}tools", "tools": [WEATHER]}
    answer = get(gpt, input=HELLO, **asked)
    (call,) = calls_of(answer)
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "text"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    assert get(gpt, input=[*HELLO, *answer.output, result], **asked).output_text == "sunny"


def test_what_the_sdk_for_typescript_adds_may_come_back(gpt, way):
    call = {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}", "parsed_arguments": {}}
    text = {"type": "output_text", "text": "{}", "annotations": [], "parsed": {}}
    talk = [{"type": "message", "role": "assistant", "content": [text]}, call]
    result = {"type": "function_call_output", "call_id": "c", "output": "sunny"}
    answer = gpt.responses.create(model=f"{way}tools", input=[*HELLO, *talk, result], tools=[WEATHER])
    assert answer.output_text == "sunny"


@pytest.mark.parametrize("get", [ask, streamed])
def test_two_tools_at_once(gpt, way, get):
    asked = {"model": f"{way}tools", "tools": [WEATHER, CLOCK]}
    answer = get(gpt, input=HELLO, **asked)
    calls = calls_of(answer)
    assert [call.name for call in calls] == ["weather", "clock"]
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"the {call.name}"} for call in calls
    ]
    assert get(gpt, input=[*HELLO, *answer.output, *results], **asked).output_text.endswith("the clock")


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        ({"parallel_tool_calls": False}, ["weather"]),
        ({"tool_choice": {"type": "function", "name": "clock"}}, ["clock"]),
        ({"tool_choice": "none"}, []),
    ],
)
def test_a_choice_of_tools(gpt, way, wish, names):
    answer = gpt.responses.create(model=f"{way}tools", input=HELLO, tools=[WEATHER, CLOCK], **wish)
    assert [call.name for call in calls_of(answer)] == names


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ({"type": "input_image", "image_url": data_url("image/png", PNG), "detail": "auto"}, "[image]"),
        ({"type": "input_image", "image_url": "https://example.com/cat.png", "detail": "auto"}, "[image]"),
        ({"type": "input_file", "filename": "a.pdf", "file_data": data_url("application/pdf", PDF)}, "[file]"),
    ],
)
def test_pictures_and_documents(gpt, way, part, shown):
    content = [{"type": "input_text", "text": "see"}, part]
    answer = gpt.responses.create(model=f"{way}echo", input=[{"role": "user", "content": content}])
    assert answer.output_text == f"see {shown}"


def test_an_answer_of_a_given_form(gpt, way):
    answer = gpt.responses.parse(model=f"{way}json", input=HELLO, text_format=Order)
    assert answer.output_parsed == ORDER


def test_an_answer_of_a_given_form_as_a_stream(gpt, way):
    assert streamed(gpt, model=f"{way}json", input=HELLO, text_format=Order).output_parsed == ORDER


@pytest.mark.parametrize("get", [ask, streamed])
def test_thinking_comes_and_goes_back(gpt, way, get):
    asked = {"model": f"{way}thinking", "store": False, "include": ["reasoning.encrypted_content"]}
    answer = get(gpt, input=HELLO, reasoning={"effort": "low", "summary": "auto"}, **asked)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].summary[0].text == "Let me think."
    assert answer.usage.output_tokens_details.reasoning_tokens == 3
    again = [*HELLO, *answer.output, {"role": "user", "content": "and now?"}]
    assert get(gpt, input=again, **asked).output_text == "and now?"


@pytest.mark.parametrize("get", [ask, streamed])
def test_thinking_before_a_tool_goes_back_with_its_signature(gpt, way, get):
    asked = {"model": f"{way}agent", "tools": [WEATHER], "store": False, "include": ["reasoning.encrypted_content"]}
    answer = get(gpt, input=HELLO, **asked)
    thought, call = answer.output
    assert (thought.type, bool(thought.encrypted_content), call.name) == ("reasoning", True, "weather")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    assert get(gpt, input=[*HELLO, thought, call, result], **asked).output_text == "sunny"


def test_a_refusal(gpt, way):
    answer = gpt.responses.create(model=f"{way}refusal", input=HELLO)
    assert answer.output[0].content[0].refusal == "I cannot help with that."


def test_log_probabilities_of_the_local_model(gpt):
    answer = gpt.responses.create(model="tiny", input="hi", include=["message.output_text.logprobs"])
    told = answer.output[0].content[0].logprobs
    assert "".join(token.token for token in told) == answer.output_text == "hello world"
    assert [token.logprob for token in told] == [-0.5 * (step + 1) for step in range(len(told))]
