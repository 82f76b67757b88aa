"""The real ``anthropic`` SDK reads what the dialect writes, and the dialect reads what the SDK sends."""

import threading
import time
from collections.abc import Iterator

import anthropic
import pytest
import uvicorn
from anthropic_parts import golden, read, write
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from doorstep.gateway.chat import (
    Begin,
    Delta,
    End,
    RefusalDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolCallBegin,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from doorstep.gateway.dialects import anthropic_count, anthropic_messages, openai_chat

ANSWER = [
    Begin("x", "y"),
    ThinkingDelta(0, "Two "),
    ThinkingDelta(0, "calls."),
    ThinkingDelta(0, signature="EqQB"),
    Delta(0, "I "),
    Delta(0, "look."),
    ToolCallBegin(0, 0, "toolu_a", "weather"),
    ToolCallDelta(0, 0, '{"city":'),
    ToolCallBegin(0, 1, "toolu_b", "now"),
    ToolCallDelta(0, 0, ' "Oslo"}'),
    ThinkingDelta(0, redacted="EmwK"),
    Delta(0, "Done."),
    End(0, "tool_calls"),
    Usage(input_tokens=30, output_tokens=9, cached_tokens=20),
]
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


class Door:
    """Answers every call with ``events``, or with ``failure`` after them."""

    def __init__(self) -> None:
        self.events = ANSWER
        self.failure: tuple[int, str] | None = None
        self.requests = []
        routes = [
            Route(anthropic_messages.PATH, self._answer, methods=["POST"]),
            Route(anthropic_count.PATH, self._count, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        self.requests.append(anthropic_messages.read(body))
        stream = anthropic_messages.head(body).stream
        if self.failure and not stream:
            return Response(anthropic_messages.error(*self.failure, code="busy"), self.failure[0])
        out = await write(self.events, stream=stream)
        if self.failure:
            out = out[: out.index(b"event: message_delta")] + anthropic_messages.stream_error(*self.failure)
        return Response(out, media_type="text/event-stream" if stream else "application/json")

    async def _count(self, request: Request) -> Response:
        prompt = anthropic_count.count(await request.body())
        return Response(anthropic_count.write(len(prompt.messages)), media_type="application/json")


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[Door, str]]:
    door = Door()
    server = uvicorn.Server(uvicorn.Config(door.app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield door, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def door(address: tuple[Door, str]) -> Door:
    door, _ = address
    door.events, door.failure, door.requests = ANSWER, None, []
    return door


@pytest.fixture
def client(address: tuple[Door, str], door: Door) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address[1], api_key="any", max_retries=0) as made:
        yield made


def ask(client, **fields):
    return client.messages.create(model="claude", max_tokens=100, messages=HELLO, **fields)


def streamed(client, **fields):
    with client.messages.stream(model="claude", max_tokens=100, messages=HELLO, **fields) as stream:
        return stream.get_final_message()


def plain(message):
    return message.model_dump(exclude={"content": {"__all__": {"parsed_output"}}})


@pytest.mark.parametrize("get", [ask, streamed])
def test_an_answer_with_everything_in_it(client, get):
    message = get(client)
    thinking, text, weather, now, redacted, done = message.content
    assert (thinking.thinking, thinking.signature, redacted.data) == ("Two calls.", "EqQB", "EmwK")
    assert (text.text, done.text, message.stop_reason) == ("I look.", "Done.", "tool_use")
    assert [(call.id, call.name, call.input) for call in (weather, now)] == [
        ("toolu_a", "weather", {"city": "Oslo"}),
        ("toolu_b", "now", {}),
    ]
    assert (message.id, message.model, message.role) == ("msg_call_1", "claude", "assistant")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens, message.usage.output_tokens) == (
        10,
        20,
        9,
    )


@pytest.mark.parametrize("get", [ask, streamed])
def test_a_refusal(client, door, get):
    door.events = [RefusalDelta(0, "I won't."), End(0, "stop"), Usage()]
    message = get(client)
    assert (message.stop_reason, message.stop_details.explanation) == ("refusal", "I won't.")


def test_the_text_comes_piece_by_piece(client):
    with client.messages.stream(model="claude", max_tokens=100, messages=HELLO) as stream:
        assert list(stream.text_stream) == ["I ", "look.", "Done."]


@pytest.mark.parametrize("name", ["stream_interleaved.sse", "chat_stream.sse"])
async def test_a_providers_stream_reaches_the_client_whole(client, door, name):
    door.events = await read(golden(name), stream=True, dialect=openai_chat if "chat" in name else anthropic_messages)
    by_piece, whole = streamed(client), ask(client)
    assert plain(by_piece) == plain(whole)
    assert [block.type for block in whole.content][-2:] == ["tool_use", "tool_use"]


def test_what_the_sdk_sends_back_is_read(client, door):
    content = ask(client).content
    result = {"type": "tool_result", "tool_use_id": "toolu_a", "content": "3 degrees", "is_error": True}
    turns = [*HELLO, {"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
    client.messages.create(model="claude", max_tokens=100, messages=turns, tools=[WEATHER])
    asked = door.requests[-1]
    assert asked.messages[1].blocks[0] == Thinking(text="Two calls.", signature="EqQB")
    assert isinstance(asked.messages[1].blocks[2], ToolCall)
    assert isinstance(asked.messages[2].blocks[0], ToolResult)
    assert asked.tools[0].parameters == WEATHER["input_schema"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (404, anthropic.NotFoundError),
        (429, anthropic.RateLimitError),
        (502, anthropic.InternalServerError),
    ],
)
def test_an_error_is_what_the_sdk_calls_it(client, door, status, error):
    door.failure = status, "model: there is none of this name"
    with pytest.raises(error, match="none of this name"):
        ask(client)


def test_an_error_in_the_middle_of_a_stream_reaches_the_client(client, door):
    door.failure = 529, "Overloaded"
    with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
        streamed(client)


def test_a_schema_for_the_answer_is_read(client, door):
    schema = {"type": "object", "properties": {"total": {"type": "integer"}}, "additionalProperties": False}
    ask(client, output_config={"effort": "low", "format": {"type": "json_schema", "schema": schema}})
    assert door.requests[-1].answer_format.schema == schema
    assert door.requests[-1].reasoning.effort == "low"


def test_tokens_are_counted(client):
    counted = client.messages.count_tokens(model="claude", messages=HELLO, system="Be brief.", tools=[WEATHER])
    assert counted.input_tokens == 2
