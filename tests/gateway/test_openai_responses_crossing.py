"""Conversations that cross between Responses and other dialects, with nothing lost but what is documented."""

import json
from pathlib import Path

import msgspec
import pytest
from dialect_tools import collect, pieces

from doorstep.gateway.chat import Audio, Block, ChatRequest, Message, Thinking, ThinkingDelta
from doorstep.gateway.dialects import anthropic_messages, openai_chat, openai_responses
from doorstep.gateway.dialects.base import ChatDialect, Head

GOLDEN = Path(__file__).parent / "golden"
HEAD = Head(model="m")


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def across(request: ChatRequest, dialect: ChatDialect) -> ChatRequest:
    """What is read of a request that was written in a dialect."""
    return dialect.read(dialect.write_request(request, head=HEAD, model="m"))


def blocks(request: ChatRequest) -> list[Block]:
    """All that is said, without cache marks, which are hints, and ids of reasoning, which only OpenAI knows."""
    return [_bare(block) for message in request.messages for block in message.blocks]


def _bare(block: Block) -> Block:
    if isinstance(block, Thinking):
        return msgspec.structs.replace(block, id=None)
    return msgspec.structs.replace(block, cache=None) if hasattr(block, "cache") else block


def _is_sealed(block: Block) -> bool:
    return isinstance(block, Thinking) and any(
        (seal or "").startswith("openai:") for seal in (block.signature, block.redacted)
    )


async def answer(body: bytes, read: ChatDialect, write: ChatDialect) -> dict:
    """What a client of one dialect is given of an answer of another."""
    events = read.read_answer(pieces([body]), stream=True)
    asked = ChatRequest(messages=[])
    written = write.write(events, head=HEAD, answer_id="call_1", model="m", request=asked)
    return json.loads(b"".join(await collect(written)))


@pytest.mark.parametrize("name", ["agent", "media", "settings"])
def test_a_conversation_of_chat_crosses(name):
    request = openai_chat.read(golden(f"openai_chat/requests/{name}.json"))
    turns = [
        Message(role=turn.role, blocks=[b for b in turn.blocks if not isinstance(b, Audio)])
        for turn in request.messages
    ]
    asked = ChatRequest(messages=turns, tools=request.tools, tool_choice=request.tool_choice)
    assert blocks(across(asked, openai_responses)) == blocks(asked)


@pytest.mark.parametrize("dialect", [openai_chat, anthropic_messages])
def test_a_conversation_of_responses_crosses(dialect):
    body = golden("openai_responses/requests/agent.json").replace(b'"detail": "high"', b'"detail": "auto"')  # a hint
    request = openai_responses.read(body)
    asked = ChatRequest(messages=request.messages, tools=request.tools, reasoning=request.reasoning)
    crossed = across(asked, dialect)
    seals_too = dialect is openai_chat  # Anthropic refuses OpenAI's seals, so they are not sent there
    assert blocks(crossed) == [block for block in blocks(asked) if seals_too or not _is_sealed(block)]
    assert crossed.tools == asked.tools


async def test_signed_thinking_goes_from_anthropic_through_a_client_and_back():
    output = (await answer(golden("anthropic/stream_interleaved.sse"), anthropic_messages, openai_responses))["output"]
    asked = {"model": "m", "input": [{"role": "user", "content": "Go"}, *output]}
    request = openai_responses.read(json.dumps(asked).encode())
    back = across(request, anthropic_messages)
    events = await collect(
        anthropic_messages.read_answer(pieces([golden("anthropic/stream_interleaved.sse")]), stream=True)
    )
    signatures = [event.signature for event in events if isinstance(event, ThinkingDelta) and event.signature]
    assert signatures
    assert [block.signature for block in blocks(back) if isinstance(block, Thinking) and block.signature] == signatures


@pytest.mark.parametrize(("dialect", "message"), [(anthropic_messages, "content"), (openai_chat, "choices")])
async def test_the_seal_of_openai_goes_through_a_client_of_another_dialect_and_back(dialect, message):
    given = (await answer(golden("openai_responses/answers/tools.sse"), openai_responses, dialect))[message]
    said = given[0]["message"] if dialect is openai_chat else {"role": "assistant", "content": given}
    body = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Go"}, said]}
    request = dialect.read(json.dumps(body).encode())
    sent = json.loads(openai_responses.write_request(request, head=HEAD, model="m"))
    [reasoning] = [item for item in sent["input"] if item["type"] == "reasoning"]
    assert (reasoning["id"], reasoning["encrypted_content"]) == ("rs_0b1c01", "gAAAAABpLx==")
