"""What the official SDK sends is read, and what is written it understands; over real HTTP."""

import openai
import pytest
from dialect_tools import pieces
from gateway_parts import serving
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from doorstep.gateway.chat import (
    Begin,
    Delta,
    End,
    RefusalDelta,
    Text,
    ThinkingDelta,
    ToolCallBegin,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from doorstep.gateway.dialects import openai_chat

WORDS = [Begin("up", "m"), Delta(0, "Grüße"), Delta(0, " 🐈"), End(0, "stop")]
TOOLS = [
    ThinkingDelta(0, "Two."),
    ThinkingDelta(0, signature="s"),
    Delta(0, "Let me look."),
    ToolCallBegin(0, 0, "c1", "quote"),
    ToolCallDelta(0, 0, '{"city":'),
    ToolCallBegin(0, 1, "c2", "quote"),
    ToolCallDelta(0, 1, '{"city":"Genève"}'),
    ToolCallDelta(0, 0, '"Zürich"}'),
    End(0, "tool_calls"),
]
USAGE = Usage(input_tokens=9, output_tokens=7, cached_tokens=4, reasoning_tokens=2)
QUOTE = {"type": "function", "function": {"name": "quote", "parameters": {"type": "object", "properties": {}}}}
HELLO = [{"role": "user", "content": "hello"}]


class Flag(BaseModel):
    colours: list[str]


class Teller:
    """Answers every call with ``events``; ``asked`` is the last request as it was read."""

    def __init__(self):
        self.events = []
        self.asked = None

    async def answer(self, request):
        body = await request.body()
        head, self.asked = openai_chat.head(body), openai_chat.read(body)
        answer = openai_chat.write(
            pieces([*self.events, USAGE]), head=head, answer_id="call_1", model="m", request=self.asked
        )
        kind = "text/event-stream" if head.stream else "application/json"
        return StreamingResponse(answer, media_type=kind)


@pytest.fixture(scope="module")
def teller():
    return Teller()


@pytest.fixture(scope="module")
def sdk(teller):
    app = Starlette(routes=[Route("/v1/chat/completions", teller.answer, methods=["POST"])])
    with serving(None, app=app) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="x") as client:
        yield client


def test_words(sdk, teller):
    teller.events = WORDS
    answer = sdk.chat.completions.create(model="m", messages=HELLO)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Grüße 🐈", "stop")
    assert (answer.usage.total_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (16, 4)


@pytest.mark.parametrize("stream", [True, False])
def test_tools_in_both_forms(sdk, teller, stream):
    teller.events = TOOLS
    if stream:
        asked = {"stream_options": {"include_usage": True}, "tools": [QUOTE]}
        with sdk.chat.completions.stream(model="m", messages=HELLO, **asked) as events:
            answer = events.get_final_completion()
    else:
        answer = sdk.chat.completions.create(model="m", messages=HELLO, tools=[QUOTE])
    message = answer.choices[0].message
    assert [call.function.arguments for call in message.tool_calls] == ['{"city":"Zürich"}', '{"city":"Genève"}']
    assert (message.content, message.reasoning_content) == ("Let me look.", "Two.")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2


def test_an_answer_goes_back_as_it_came(sdk, teller):
    teller.events = TOOLS
    message = sdk.chat.completions.create(model="m", messages=HELLO, tools=[QUOTE]).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "CHF 14"} for call in message.tool_calls]
    sdk.chat.completions.create(model="m", messages=[*HELLO, message, *results])
    thinking, text, *calls = teller.asked.messages[1].blocks
    assert (thinking.text, thinking.signature, text) == ("Two.", "s", Text(text="Let me look."))
    assert [call.id for call in calls] == ["c1", "c2"]
    assert teller.asked.messages[2].blocks == [
        ToolResult(call_id=name, content=[Text(text="CHF 14")]) for name in ("c1", "c2")
    ]


def test_a_refusal(sdk, teller):
    teller.events = [RefusalDelta(0, "I can"), RefusalDelta(0, "not."), End(0, "refusal")]
    with sdk.chat.completions.stream(model="m", messages=HELLO) as events:
        choice = events.get_final_completion().choices[0]
    assert (choice.message.refusal, choice.message.content, choice.finish_reason) == ("I cannot.", None, "stop")


def test_a_schema_is_asked_for_and_parsed(sdk, teller):
    teller.events = [Delta(0, '{"colours":["red"]}'), End(0, "stop")]
    answer = sdk.chat.completions.parse(model="m", messages=HELLO, response_format=Flag)
    assert answer.choices[0].message.parsed == Flag(colours=["red"])
    wanted = teller.asked.answer_format
    assert (wanted.name, wanted.strict, list(wanted.schema["properties"])) == ("Flag", True, ["colours"])
