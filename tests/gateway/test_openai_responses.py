"""The Responses dialect on its own: what it refuses and why, seals of reasoning, and what the gateway asks of it."""

import json

import pytest
from dialect_tools import collect, pieces
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import BadInput
from doorstep.gateway.chat import (
    AnswerFormat,
    Audio,
    ChatRequest,
    File,
    Image,
    Message,
    Reasoning,
    Text,
    Thinking,
    ThinkingDelta,
    Tool,
    ToolResult,
)
from doorstep.gateway.dialects import openai_responses
from doorstep.gateway.dialects.base import ChatDialect, Head

HEAD = Head(model="m")
HELLO = Message(role="user", blocks=[Text(text="Hello")])


def read(**fields) -> ChatRequest:
    return openai_responses.read(json.dumps({"model": "m", "input": "Hello"} | fields).encode())


def write(*messages: Message, **settings):
    request = ChatRequest(messages=list(messages) or [HELLO], **settings)
    return json.loads(openai_responses.write_request(request, head=HEAD, model="m"))


def part(**fields):
    return {"input": [{"role": "user", "content": [fields]}]}


def test_it_is_a_dialect_of_chat():
    assert isinstance(openai_responses, ChatDialect)


@pytest.mark.parametrize(
    ("fields", "where", "why"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search' has no form"),
        ({"tools": [{"type": "custom", "name": "sql"}]}, "tools[0].type", "'custom' has no form"),
        ({"tools": [{"type": "function", "name": "f", "output_schema": {}}]}, "tools[0].output_schema", "has no form"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice.type", "has no form"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation in `input`"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "set `store` to false"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "write its text in `instructions`"),
        ({"background": True}, "background", "leave it out"),
        ({"truncation": "auto"}, "truncation", "shorten `input` yourself"),
        ({"moderation": {"model": "o"}}, "moderation", "has no form"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm", "Invalid"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "Invalid"),
        ({"temperature": 2.5}, "temperature", "<= 2.0"),
        ({"input": []}, "input", "is empty"),
        ({"input": None}, "input", "required"),
        ({"input": ["Hello"]}, "input[0]", "Expected `object`"),
        ({"input": [{"id": "msg_1"}]}, "input[0]", "refers to a stored item"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "refers to a stored item"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type", "'web_search_call' has no form"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "Invalid"),
        (part(type="input_audio", input_audio={}), "input[0].content[0].type", "'input_audio' has no form"),
        (part(type="refusal", refusal="no"), "input[0].content[0].type", "is the assistant's"),
        (part(type="input_image", detail="low"), "input[0].content[0]", "either `image_url` or `file_id`"),
        (part(type="input_image", image_url="data:x"), "input[0].content[0].image_url", "data:TYPE;base64,DATA"),
        (part(type="input_file", filename="a.pdf"), "input[0].content[0]", "one of `file_data`"),
        (part(type="input_file", file_data="data:text/plain;base64,/w=="), "input[0].content[0].file_data", "UTF-8"),
    ],
)
def test_what_has_no_form_elsewhere_is_refused_by_name(fields, where, why):
    with pytest.raises(BadInput) as caught:
        read(**fields)
    assert caught.value.where == where
    assert why in caught.value.why


def test_labels_and_settings_that_ask_for_nothing_are_left_out():
    harmless = {
        "metadata": {"a": "b"},
        "store": True,
        "prompt_cache_key": "k",
        "stream_options": {},
        "max_tool_calls": 1,
    }
    neutral = {"background": False, "truncation": "disabled", "previous_response_id": None, "include": None}
    assert read(**harmless, **neutral) == read()


def test_json_of_any_shape_crosses():
    assert read(text={"format": {"type": "json_object"}}).answer_format == AnswerFormat()
    assert write(answer_format=AnswerFormat())["text"] == {"format": {"type": "json_object"}}


def test_a_file_may_be_bare_base64():
    file = {"type": "input_file", "filename": "a.pdf", "file_data": "JVBERi0x"}
    request = read(**part(**file))
    assert request.messages[0].blocks == [File(data="JVBERi0x", name="a.pdf")]
    assert write(request.messages[0])["input"][0]["content"] == [file]


def test_top_logprobs_alone_give_nothing():
    assert read(top_logprobs=3).top_logprobs is None
    assert read(top_logprobs=3, include=["message.output_text.logprobs"]).top_logprobs == 3


def test_a_bare_id_of_reasoning_holds_nothing():
    said = {"role": "assistant", "content": "Hi"}
    assert read(input=[{"type": "reasoning", "id": "rs_1", "summary": []}, said]) == read(input=[said])


@pytest.mark.parametrize(
    "settings",
    [
        {"n": 2},
        {"stop": ["x"]},
        {"seed": 1},
        {"top_k": 5},
        {"logit_bias": {"1": 1.0}},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
    ],
)
def test_a_setting_that_the_format_lacks_is_refused_by_name(settings):
    with pytest.raises(BadInput) as caught:
        write(**settings)
    assert caught.value.where in settings


@pytest.mark.parametrize(
    ("message", "where"),
    [
        (Message(role="user", name="ann", blocks=[Text(text="x")]), "messages[1].name"),
        (Message(role="user", blocks=[Audio(data="x", format="wav")]), "messages[1]"),
        (Message(role="assistant", blocks=[Image(url="https://example.com/a.png")]), "messages[1]"),
        (Message(role="user", blocks=[Image(data="x")]), "messages[1]"),
    ],
)
def test_a_block_that_the_format_lacks_is_refused_by_its_place(message, where):
    with pytest.raises(BadInput) as caught:
        write(HELLO, message)
    assert caught.value.where == where


@pytest.mark.parametrize("seal", [{"signature": "of another"}, {"redacted": "of another"}])
def test_what_only_another_provider_can_read_is_left_out(seal):
    said = Message(role="assistant", blocks=[Thinking(**seal), Text(text="Yes.")])
    assert [item["type"] for item in write(HELLO, said)["input"]] == ["message", "message"]


def test_a_tool_that_failed_says_so():
    results = [ToolResult(call_id="a", content=[Text(text="no such file")], is_error=True)]
    results.append(ToolResult(call_id="b", content=[], is_error=True))
    items = write(HELLO, Message(role="tool", blocks=results))["input"]
    assert [item["output"] for item in items[1:]] == ["Error: no such file", "Error:"]


def test_a_tool_is_strict_only_where_that_was_said():
    tools = [Tool(name="a"), Tool(name="b", strict=True)]
    assert [tool["strict"] for tool in write(tools=tools)["tools"]] == [False, True]


@pytest.mark.parametrize(("budget", "effort"), [(1024, "low"), (8000, "medium"), (32000, "high")])
def test_a_budget_of_thinking_is_written_as_an_effort(budget, effort):
    assert write(reasoning=Reasoning(budget=budget))["reasoning"] == {"effort": effort}


def test_sealed_reasoning_is_asked_for_only_of_models_that_reason():
    thought = Message(role="assistant", blocks=[Thinking(text="Hm", signature="openai:gAAA")])
    assert "include" not in write()
    assert "include" not in write(reasoning=Reasoning(off=True))
    assert write(reasoning=Reasoning(effort="low"))["include"] == ["reasoning.encrypted_content"]
    assert write(HELLO, thought)["include"] == ["reasoning.encrypted_content"]


# Seals


@given(st.text(min_size=1), st.booleans())
async def test_the_seal_of_another_provider_comes_back_as_it_left(seal, is_signature):
    delta = ThinkingDelta(0, "Hm", signature=seal) if is_signature else ThinkingDelta(0, redacted=seal)
    written = openai_responses.write(
        pieces([delta]), head=HEAD, answer_id="1", model="m", request=ChatRequest(messages=[HELLO])
    )
    output = json.loads(b"".join(await collect(written)))["output"]
    [block] = read(input=output).messages[0].blocks
    assert (block.text, block.signature, block.redacted) == (delta.text, delta.signature, delta.redacted)


@pytest.mark.parametrize("summary", [[], [{"type": "summary_text", "text": "Hm"}]])
def test_the_seal_of_openai_goes_back_to_it_unchanged(summary):
    item = {"type": "reasoning", "summary": summary, "id": "rs_1", "encrypted_content": "gAAAAABo"}
    request = read(input=[{"role": "user", "content": "Hello"}, item])
    assert json.loads(openai_responses.write_request(request, head=HEAD, model="m"))["input"][1] == item


def test_a_provider_is_not_sent_the_seal_of_another():
    thought = Message(role="assistant", blocks=[Thinking(text="Hm", signature="ErUB", id="rs_1")])
    assert write(HELLO, thought)["input"][1] == {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "Hm"}],
    }


# What the gateway asks


def test_the_head_has_what_routing_needs():
    body = b'{"model":"m","stream":true,"max_output_tokens":50,"input":"x"}'
    assert openai_responses.head(body) == Head(model="m", stream=True, most_output=50)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"{}", "model"),
        (b'{"model":1}', "model"),
        (b'{"model":"m","max_output_tokens":"many"}', "max_output_tokens"),
        (b"nonsense", "body"),
        (b'{"model":"m","input":' + b"[" * 5000 + b"]" * 5000 + b"}", "body"),
    ],
)
def test_a_bad_head_names_its_field(body, where):
    with pytest.raises(BadInput) as caught:
        openai_responses.head(body)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("piece", "last"),
    [
        (b"event: response.completed\ndata: {", True),
        (b'event: x\n\nevent: response.incomplete\r\ndata: {"ty', True),
        (b'data: {"type": "response.failed"', True),
        (b'event: error\ndata: {"type":"error"}\n\n', True),
        (b"event: response.output_text.delta\ndata: {}\n\n", False),
        (json.dumps({"delta": 'event: response.completed\n"type":"response.completed"'}).encode(), False),
    ],
)
def test_the_end_mark_is_seen_and_words_about_it_are_not(piece, last):
    assert openai_responses.is_last(piece) is last


def test_messages_are_the_items_as_they_were_sent_each_with_a_role():
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    items = [{"role": "user", "content": "x"}, call, {"type": "function_call_output", "call_id": "a", "output": "y"}]
    body = json.dumps({"model": "m", "instructions": "Be brief.", "input": items}).encode()
    found = openai_responses.messages(body)
    assert [message["role"] for message in found] == ["system", "user", "assistant", "tool"]
    assert found[2] == call | {"role": "assistant"}
    assert openai_responses.messages(b'{"input":"x"}') == [{"role": "user", "content": "x"}]


def test_sampling_has_the_settings_that_were_said():
    body = b'{"model":"m","input":"x","temperature":0.5,"top_p":null,"reasoning":{"effort":"low"}}'
    assert openai_responses.sampling(body) == {"temperature": 0.5, "reasoning": {"effort": "low"}}


def test_an_error_event_has_the_flat_fields_and_the_nested_ones():
    event = openai_responses.stream_error(502, "gone").decode()
    data = json.loads(event.removeprefix("event: error\ndata: "))
    assert (data["type"], data["message"], data["error"]["message"]) == ("error", "gone", "gone")
    assert openai_responses.is_last(event.encode())
