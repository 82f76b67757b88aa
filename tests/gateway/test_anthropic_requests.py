"""Anthropic's requests, read into canonical ones and written out of them."""

import base64
import json
from contextlib import suppress

import msgspec
import pytest
from anthropic_parts import ASKED, golden
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import BadInput
from doorstep.gateway.chat import (
    AnswerFormat,
    Audio,
    CacheMark,
    ChatRequest,
    File,
    Image,
    Message,
    Reasoning,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from doorstep.gateway.dialects import anthropic_messages, openai_chat
from doorstep.gateway.dialects.base import ChatDialect, Head

HEAD = Head(model="m")


def asked(**fields):
    return json.dumps(
        {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]} | fields
    ).encode()


def said(*content, role="user"):
    return asked(messages=[{"role": role, "content": list(content)}])


def written(request=ASKED, **changes):
    return json.loads(
        anthropic_messages.write_request(msgspec.structs.replace(request, **changes), head=HEAD, model="x")
    )


def conversation(*turns):
    return msgspec.structs.replace(ASKED, messages=[Message(role=role, blocks=list(blocks)) for role, *blocks in turns])


def test_it_is_a_dialect_of_chat():
    assert isinstance(anthropic_messages, ChatDialect)


# Reading


@pytest.mark.parametrize("name", ["request_agent", "request_prompt"])
def test_a_request_is_read_whole(name):
    expected = msgspec.json.decode(golden(f"{name}.canonical.json"), type=ChatRequest)
    assert anthropic_messages.read(golden(f"{name}.json")) == expected


@pytest.mark.parametrize("name", ["request_agent", "request_prompt"])
def test_what_was_read_is_written_back(name):
    body = golden(f"{name}.json")
    request = anthropic_messages.read(body)
    again = anthropic_messages.write_request(request, head=anthropic_messages.head(body), model="m")
    assert anthropic_messages.read(again) == request


def test_the_arguments_of_a_tool_keep_their_spelling():
    block = b'{"type":"tool_use","id":"t","name":"n","input":{"a": 1.50}}'
    body = b'{"model":"m","max_tokens":1,"messages":[{"role":"assistant","content":[%b]}]}' % block
    request = anthropic_messages.read(body)
    assert request.messages[0].blocks == [ToolCall(id="t", name="n", arguments='{"a": 1.50}')]
    assert b'{"a": 1.50}' in anthropic_messages.write_request(request, head=HEAD, model="m")


def test_results_among_other_blocks_are_a_message_of_their_own():
    result = {"type": "tool_result", "tool_use_id": "t"}
    request = anthropic_messages.read(said({"type": "text", "text": "a"}, result, {"type": "text", "text": "b"}))
    assert [message.role for message in request.messages] == ["user", "tool", "user"]


def test_a_mark_for_the_whole_request_stands_at_its_last_block():
    body = asked(cache_control={"type": "ephemeral", "ttl": "1h"})
    assert anthropic_messages.read(body).messages[-1].blocks == [Text(text="Hello", cache=CacheMark("1h"))]


@pytest.mark.parametrize(
    ("thinking", "reasoning"),
    [
        ({"type": "enabled", "budget_tokens": 2048}, Reasoning(budget=2048)),
        ({"type": "adaptive"}, Reasoning()),
        ({"type": "adaptive", "display": "summarized"}, Reasoning(summary="auto")),
        ({"type": "disabled"}, Reasoning(off=True)),
    ],
)
def test_thinking_is_read(thinking, reasoning):
    assert anthropic_messages.read(asked(thinking=thinking)).reasoning == reasoning
    assert written(reasoning=reasoning)["thinking"] == thinking


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (asked(tools=[{"name": "web_search", "max_uses": 3, "type": "web_search_20250305"}]), "tools[0].type"),
        (asked(tools=[{"name": "f", "input_schema": {}, "defer_loading": True}]), "tools[0].defer_loading"),
        (asked(tools=[{"name": "f", "input_schema": {}, "input_examples": [{}]}]), "tools[0].input_examples"),
        (asked(container="c"), "container"),
        (asked(context_management={"edits": [{"type": "clear_thinking_20251015", "keep": 2}]}),
         "context_management.edits[0].keep"),
        (asked(context_management={"edits": [{"type": "clear_tool_uses_20250919"}]}),
         "context_management.edits[0].type"),
        (asked(mcp_servers=[{"url": "https://example.com"}]), "mcp_servers"),
        (asked(inference_geo="eu"), "inference_geo"),
        (asked(speed="fast"), "speed"),
        (asked(nonsense=1), "nonsense"),
        (asked(thinking={"type": "between_tools"}), "thinking.type"),
        (asked(thinking={"type": "enabled"}), "thinking.budget_tokens"),
        (asked(tool_choice={"type": "tool"}), "tool_choice.name"),
        (asked(temperature=1.5), "temperature"),
        (asked(max_tokens=0), "max_tokens"),
        (asked(messages=[]), "messages"),
        (b'{"model":"m","messages":[{"role":"user","content":"a"}]}', "max_tokens"),
        (asked(messages=[{"role": "tool", "content": "a"}]), "messages[0].role"),
        (said({"type": "search_result", "source": "s", "title": "t", "content": []}), "messages[0].content[0].type"),
        (said({"type": "text", "text": "a", "citations": [{}]}), "messages[0].content[0].citations"),
        (said({"type": "tool_use", "id": "i", "name": "n", "input": {}}), "messages[0].content[0].type"),
        (said({"type": "tool_use", "id": "i", "name": "n", "input": 3}, role="assistant"),
         "messages[0].content[0].input"),
        (said({"type": "text", "text": "a"}, {"type": "tool_result", "tool_use_id": "i"}, role="assistant"),
         "messages[0].content[1].type"),
        (said({"type": "document", "source": {"type": "url", "url": "u"}, "citations": {"enabled": True}}),
         "messages[0].content[0].citations"),
        (said({"type": "document", "source": {"type": "url", "url": "u"}, "context": "c"}),
         "messages[0].content[0].context"),
    ],
)  # fmt: skip
def test_what_no_other_dialect_can_say_is_refused_by_name(body, where):
    with pytest.raises(BadInput) as caught:
        anthropic_messages.read(body)
    assert caught.value.where == where


@pytest.mark.parametrize(
    "fields",
    [
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"diagnostics": {"previous_message_id": None}},
        {"speed": "standard", "container": None, "mcp_servers": []},
    ],
)
def test_what_asks_for_nothing_is_read(fields):
    assert anthropic_messages.read(asked(**fields)) == anthropic_messages.read(asked())


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b'{"model":NaN}', b'{"model":"a","model":"b"}', b'{"a":' * 5000])
def test_a_body_that_cannot_be_read_is_refused(body):
    with pytest.raises(BadInput):
        anthropic_messages.read(body)


# Writing


def test_a_conversation_of_chat_is_written():
    body = golden("chat_request.json")
    head = openai_chat.head(body)
    sent = anthropic_messages.write_request(openai_chat.read(body), head=head, model="claude-opus-4-6")
    assert json.loads(sent) == json.loads(golden("chat_request.anthropic.json"))


def test_a_conversation_goes_to_chat_and_back_with_nothing_lost():
    body = golden("chat_request.anthropic.json")
    head = anthropic_messages.head(body)
    there = openai_chat.write_request(anthropic_messages.read(body), head=head, model="gpt-5")
    back = anthropic_messages.write_request(openai_chat.read(there), head=head, model=head.model)
    assert json.loads(back) == json.loads(body)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"n": 2}, "n"),
        ({"seed": 1}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": 1.2}, "temperature"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"verbosity": "low"}, "verbosity"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"answer_format": AnswerFormat()}, "response_format"),
        ({"reasoning": Reasoning(effort="minimal")}, "reasoning_effort"),
        ({"messages": [Message(role="user", blocks=[], name="Ann")]}, "messages[0].name"),
        ({"messages": [Message(role="user", blocks=[Audio(data="", format="wav")])]}, "messages[0].content[0]"),
        ({"messages": [Message(role="user", blocks=[Image(url="u", detail="low")])]}, "messages[0].content[0]"),
        ({"messages": [Message(role="system", blocks=[Image(url="u")])]}, "messages[0].content"),
        ({"messages": [Message(role="user", blocks=[File(data="", media_type="application/zip")])]},
         "messages[0].content[0]"),
        ({"messages": [Message(role="assistant", blocks=[ToolCall(id="i", name="n", arguments="[1]")])]},
         "messages[0].content[0].arguments"),
    ],
)  # fmt: skip
def test_what_anthropic_cannot_do_is_refused_by_name(changes, where):
    with pytest.raises(BadInput) as caught:
        written(**changes)
    assert caught.value.where == where


def test_what_asks_for_nothing_is_no_reason_to_refuse():
    fields = written(presence_penalty=0.0, logit_bias={}, verbosity="medium", top_logprobs=0)
    assert fields.keys() == {"model", "max_tokens", "messages"}


def test_the_room_for_an_answer_comes_on_top_of_the_thinking():
    assert written()["max_tokens"] == 8192
    assert written(reasoning=Reasoning(budget=2000))["max_tokens"] == 10192
    assert written(reasoning=Reasoning(budget=2000), max_tokens=3000)["max_tokens"] == 3000


def test_the_system_speaks_first_or_in_its_place():
    fields = written(
        conversation(
            ("system", Text(text="a")),
            ("user", Text(text="b")),
            ("developer", Text(text="c")),
            ("user", Text(text="d")),
        )
    )
    assert fields["system"] == [{"type": "text", "text": "a"}]
    assert [message["role"] for message in fields["messages"]] == ["user", "system", "user"]


def test_neighbours_become_one_message_with_the_results_first():
    result = ToolResult(call_id="i", content=[])
    fields = written(conversation(("user", Text(text="a")), ("tool", result), ("user", Text(text="b"), Text(text=""))))
    kinds = [block.get("text", block["type"]) for block in fields["messages"][0]["content"]]
    assert (len(fields["messages"]), kinds) == (1, ["tool_result", "a", "b"])


@pytest.mark.parametrize(
    ("choice", "parallel", "wire"),
    [
        (None, None, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (ToolChoice(mode="none"), False, {"type": "none"}),
        (ToolChoice(mode="required"), None, {"type": "any"}),
        (ToolChoice(mode="one", name="f"), True, {"type": "tool", "name": "f", "disable_parallel_tool_use": False}),
    ],
)
def test_the_choice_of_a_tool(choice, parallel, wire):
    assert written(tools=[Tool(name="f")], tool_choice=choice, parallel_tool_calls=parallel).get("tool_choice") == wire
    if choice is None:
        assert "tool_choice" not in written(parallel_tool_calls=parallel)


def test_a_tool_without_parameters_takes_an_empty_object():
    assert written(tools=[Tool(name="f")])["tools"] == [
        {"name": "f", "input_schema": {"type": "object", "properties": {}}}
    ]


def test_a_text_file_goes_as_text():
    block = File(data=base64.b64encode("grün".encode()).decode(), media_type="text/csv", name="a.csv")
    document = written(conversation(("user", block)))["messages"][0]["content"][0]
    assert document["source"] == {"type": "text", "media_type": "text/plain", "data": "grün"}


def test_a_provider_gets_its_signature_back_as_it_gave_it():
    block = Thinking(text="why", signature="EqQB", id="rs_of_another_dialect")
    assert written(conversation(("assistant", block)))["messages"][0]["content"] == [
        {"type": "thinking", "thinking": "why", "signature": "EqQB"}
    ]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from(["text", "user", "image", "base64", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.sampled_from(["type", "content", "role", "source", "text", "input"]), inner)
    ),
    max_leaves=12,
)
FIELDS = [
    "system",
    "messages",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "metadata",
    "top_k",
    "stop_sequences",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON) | st.fixed_dictionaries({"messages": st.lists(JSON)}))
def test_any_request_is_read_or_refused(fields):
    try:
        request = anthropic_messages.read(asked(**fields))
    except BadInput:
        return
    assert isinstance(request, ChatRequest)


@given(st.binary())
def test_any_bytes_are_read_or_refused(body):
    with suppress(BadInput):
        anthropic_messages.messages(body)
    for function in (anthropic_messages.read, anthropic_messages.head):
        with pytest.raises(BadInput):
            function(body)


# What every address has


def test_the_head_tells_what_routing_needs():
    found = anthropic_messages.head(asked(stream=True))
    assert (found.model, found.stream, found.most_output) == ("m", True, 9)


def test_the_system_is_the_first_message_of_the_record():
    found = anthropic_messages.messages(asked(system="Be brief."))
    assert found == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


def test_the_record_keeps_the_sampling_settings():
    assert anthropic_messages.sampling(asked(top_k=3, stream=True)) == {"max_tokens": 9, "top_k": 3}


@pytest.mark.parametrize("seal", [{"text": "Hm", "signature": "openai:gAAA"}, {"redacted": "openai:gAAA"}])
def test_reasoning_that_openai_sealed_does_not_go_to_anthropic(seal):
    turns = [
        Message(role="user", blocks=[Text(text="Hi")]),
        Message(role="assistant", blocks=[Thinking(**seal), Text(text="Hello")]),
        Message(role="user", blocks=[Text(text="And?")]),
    ]
    written = anthropic_messages.write_request(ChatRequest(messages=turns), head=HEAD, model="m")
    assert json.loads(written)["messages"][1]["content"] == [{"type": "text", "text": "Hello"}]
