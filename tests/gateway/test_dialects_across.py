"""The same answer through any two dialects: what a provider says in one, a client hears in another."""

import itertools

import msgspec
import pytest
from dialect_tools import collect, cut, merged, pieces
from hypothesis import given, settings
from hypothesis import strategies as st

from doorstep.gateway.chat import (
    Begin,
    ChatRequest,
    Delta,
    End,
    Message,
    RefusalDelta,
    Text,
    ThinkingDelta,
    ToolCallBegin,
    ToolCallDelta,
    Usage,
)
from doorstep.gateway.dialects import anthropic_messages, openai_chat, openai_responses
from doorstep.gateway.dialects.base import Head

DIALECTS = [openai_chat, openai_responses, anthropic_messages]
PAIRS = list(itertools.product(DIALECTS, DIALECTS))
REQUEST = ChatRequest(messages=[Message(role="user", blocks=[Text(text="x")])], max_tokens=50)
USAGE = Usage(input_tokens=9, output_tokens=5, cached_tokens=4, cache_write_tokens=0, reasoning_tokens=1)

TEXTS = st.text(min_size=1, max_size=6)
THINKING = st.tuples(TEXTS, TEXTS).map(lambda pair: [ThinkingDelta(0, pair[0]), ThinkingDelta(0, signature=pair[1])])
WORDS = st.lists(TEXTS.map(lambda text: Delta(0, text)), min_size=1, max_size=3)


@st.composite
def tools(draw):
    """Return the events of one to three tool calls, whose arguments may come mixed."""
    count = draw(st.integers(1, 3))
    begun = [ToolCallBegin(0, call, f"call_{call}", f"tool_{call}") for call in range(count)]
    argued = [ToolCallDelta(0, call, part) for call in range(count) for part in ('{"a":', '"ü 🐈"}')]
    mixed = draw(st.booleans())
    order = [*begun, *sorted(argued, key=lambda event: event.arguments, reverse=True)] if mixed else []
    return order or [event for call in range(count) for event in (begun[call], *argued[2 * call : 2 * call + 2])]


@st.composite
def answers(draw):
    """Return the events of an answer: thinking, words and tools, or a refusal."""
    if draw(st.integers(0, 5)) == 0:
        return [Begin("up", "m"), RefusalDelta(0, draw(TEXTS)), End(0, "refusal"), USAGE]
    thinking, called = draw(st.just([]) | THINKING), draw(st.just([]) | tools())
    words = draw(WORDS)
    reason = "tool_calls" if called else draw(st.sampled_from(["stop", "length"]))
    return [Begin("up", "m"), *thinking, *words, *called, End(0, reason), USAGE]


def heard(events):
    """Return events as they are to be compared: a call's arguments in one piece, items without the provider's ids."""
    found, calls = [], {}
    for event in merged(events):
        if isinstance(event, ToolCallBegin):
            calls[event.call] = [event, ""]
        elif isinstance(event, ToolCallDelta):
            calls[event.call][1] += event.arguments
        elif isinstance(event, ThinkingDelta):
            found.append(msgspec.structs.replace(event, id=None))
        else:
            found.append(event)
    return found, calls


async def through(dialect, events, stream, places=()):
    head = Head(model="m", stream=stream)
    written = dialect.write(pieces(events), head=head, answer_id="call_1", model="m", request=REQUEST)
    sent = b"".join(await collect(written))
    return await collect(dialect.read_answer(pieces(cut(sent, places)), stream=stream))


@pytest.mark.parametrize(("provider", "client"), PAIRS, ids=lambda dialect: dialect.NAME)
@given(answers(), st.booleans(), st.booleans(), st.lists(st.integers(0, 5000), max_size=8))
@settings(max_examples=40)
async def test_an_answer_is_heard_as_it_was_said(provider, client, events, said_stream, heard_stream, places):
    said = await through(provider, events, said_stream, places)
    assert heard(await through(client, said, heard_stream, places)) == heard(events)
