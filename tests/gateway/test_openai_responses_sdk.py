"""OpenAI's own SDK against what the dialect writes, through a small real server."""

import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pydantic
import pytest
import uvicorn
from dialect_tools import pieces
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from doorstep.errors import BadInput, ProviderError
from doorstep.gateway.chat import (
    AnswerFormat,
    Begin,
    ChatRequest,
    Delta,
    End,
    RefusalDelta,
    SampledText,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolCallBegin,
    ToolCallDelta,
    ToolResult,
    Usage,
)
from doorstep.gateway.dialects import openai_responses

WRITTEN = Path(__file__).parent / "golden" / "openai_responses" / "written"
USAGE = Usage(input_tokens=20, output_tokens=7, cached_tokens=16, reasoning_tokens=4)
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALLING = [
    Begin("up_1", "m"),
    ThinkingDelta(0, "They want "),
    ThinkingDelta(0, "the weather."),
    ThinkingDelta(0, signature="ErUBCkYI"),
    Delta(0, "I look "),
    Delta(0, "it up."),
    ToolCallBegin(0, 0, "call_a", "weather"),
    ToolCallDelta(0, 0, '{"city":'),
    ToolCallBegin(0, 1, "call_b", "weather"),
    ToolCallDelta(0, 0, '"Zürich"}'),
    ToolCallDelta(0, 1, '{"city":"Genève"}'),
    End(0, "tool_calls"),
    USAGE,
]


class ResponsesDoor:
    """Gives ``events`` to every request; an error among them breaks the answer off. ``asked`` is what was read."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.asked: list[ChatRequest] = []
        self.app = Starlette(routes=[Route("/v1/responses", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        try:
            self.asked.append(openai_responses.read(body))
        except BadInput as error:
            return Response(openai_responses.error(400, error.why, param=error.where), 400)
        head = openai_responses.head(body)
        pieces_of_it = self._write(head, self.asked[-1])
        return StreamingResponse(pieces_of_it, media_type="text/event-stream" if head.stream else "application/json")

    async def _write(self, head: openai_responses.Head, request: ChatRequest) -> AsyncIterator[bytes]:
        events = self._told()
        try:
            async for piece in openai_responses.write(events, head=head, answer_id="1", model="m", request=request):
                yield piece
        except ProviderError as error:
            yield openai_responses.stream_error(error.status, str(error))

    async def _told(self) -> AsyncIterator[object]:
        async for event in pieces(self.events):
            if isinstance(event, ProviderError):
                raise event
            yield event


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, ResponsesDoor]]:
    door = ResponsesDoor()
    server = uvicorn.Server(uvicorn.Config(door.app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1", door
    server.should_exit = True
    thread.join()


@pytest.fixture
def door(address) -> ResponsesDoor:
    address[1].events, address[1].asked = [], []
    return address[1]


@pytest.fixture
def client(address) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address[0], api_key="any", max_retries=0) as made:
        yield made


def test_a_whole_answer(client, door):
    door.events = [Delta(0, "Grüezi "), Delta(0, "mitenand"), End(0, "stop"), USAGE]
    answer = client.responses.create(
        model="m", input="Hello", instructions="Be brief.", temperature=0.5, max_output_tokens=50, tools=[WEATHER]
    )
    assert (answer.output_text, answer.status, answer.error) == ("Grüezi mitenand", "completed", None)
    assert (answer.usage.total_tokens, answer.usage.input_tokens_details.cached_tokens) == (27, 16)
    assert (answer.instructions, answer.temperature, answer.max_output_tokens) == ("Be brief.", 0.5, 50)
    assert answer.tools[0].to_dict() == WEATHER
    assert [message.role for message in door.asked[0].messages] == ["system", "user"]


def test_an_answer_that_was_cut_by_length(client, door):
    door.events = [Delta(0, "On and"), End(0, "length"), USAGE]
    answer = client.responses.create(model="m", input="Hello")
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_stream_with_thinking_words_and_two_calls(client, door):
    door.events = CALLING
    with client.responses.stream(model="m", input="Weather?", tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        answer = stream.get_final_response()
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    assert answer.output[0].summary[0].text == "They want the weather."
    assert [call.parsed_arguments for call in answer.output[2:]] == [{"city": "Zürich"}, {"city": "Genève"}]
    assert answer.usage.output_tokens_details.reasoning_tokens == 4


def test_a_stream_of_text_as_a_client_prints_it(client, door):
    door.events = [Delta(0, "a"), Delta(0, "b"), End(0, "stop"), USAGE]
    events = list(client.responses.create(model="m", input="Hello", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "ab"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == "ab"


def test_a_refusal(client, door):
    door.events = [RefusalDelta(0, "I can't "), RefusalDelta(0, "do that."), End(0, "refusal"), USAGE]
    with client.responses.stream(model="m", input="Hello") as stream:
        answer = stream.get_final_response()
    assert (answer.status, answer.output[0].content[0].refusal) == ("completed", "I can't do that.")


def test_log_probabilities(client, door):
    tokens = [SampledText("ü", "ü".encode(), -0.5, [SampledText("u", b"u", -1.5)])]
    door.events = [Delta(0, "ü", tokens), End(0, "stop"), USAGE]
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    told = client.responses.create(model="m", input="Hello", **asked).output[0].content[0].logprobs[0]
    assert (told.token, told.bytes, told.logprob) == ("ü", [195, 188], -0.5)
    assert told.top_logprobs[0].token == "u"
    assert (door.asked[0].logprobs, door.asked[0].top_logprobs) == (True, 1)


class Order(pydantic.BaseModel):
    number: int
    urgent: bool


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_a_given_form(client, door, stream):
    door.events = [Delta(0, '{"number":7,'), Delta(0, '"urgent":true}'), End(0, "stop"), USAGE]
    if stream:
        with client.responses.stream(model="m", input="Order 7, now!", text_format=Order) as answers:
            answer = answers.get_final_response()
    else:
        answer = client.responses.parse(model="m", input="Order 7, now!", text_format=Order)
    assert answer.output_parsed == Order(number=7, urgent=True)
    form = door.asked[0].answer_format
    assert isinstance(form, AnswerFormat)
    assert (form.name, form.strict, form.schema["required"]) == ("Order", True, ["number", "urgent"])


def test_an_agent_sends_back_what_it_was_given(client, door):
    door.events = CALLING
    talk = [{"role": "user", "content": "Weather?"}]
    answer = client.responses.create(model="m", input=talk, tools=[WEATHER], store=False)
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
        for item in answer.output
        if item.type == "function_call"
    ]
    client.responses.create(model="m", input=[*talk, *answer.output, *results], tools=[WEATHER], store=False)
    _, said, given = door.asked[1].messages
    thought, words, *calls = said.blocks
    assert isinstance(thought, Thinking)
    assert (thought.text, thought.signature, words.text) == ("They want the weather.", "ErUBCkYI", "I look it up.")
    assert [(type(call), call.id) for call in calls] == [(ToolCall, "call_a"), (ToolCall, "call_b")]
    assert [(type(result), result.call_id) for result in given.blocks] == [
        (ToolResult, "call_a"),
        (ToolResult, "call_b"),
    ]


def test_a_refused_request_names_its_field(client, door):
    with pytest.raises(openai.BadRequestError, match="send the whole conversation") as caught:
        client.responses.create(model="m", input="Hello", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


def test_a_stream_that_breaks_off_raises(client, door):
    door.events = [Delta(0, "Hel"), ProviderError("the model went away")]
    with pytest.raises(openai.APIError, match="the model went away"):
        list(client.responses.create(model="m", input="Hello", stream=True))


@pytest.mark.parametrize("name", sorted(path.name for path in WRITTEN.glob("*.sse")))
def test_every_event_has_all_that_the_sdk_describes(name):
    described = pydantic.TypeAdapter(ResponseStreamEvent)
    lines = (WRITTEN / name).read_text("utf-8").splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    for event in events:
        assert described.validate_python(event).type == event["type"]


@pytest.mark.parametrize("name", ["tools.json", "logprobs.json"])
def test_a_response_has_all_that_the_sdk_describes(name):
    answer = OpenAIResponse.model_validate_json((WRITTEN / name).read_bytes())
    assert answer.status == "completed"
