"""Our own engine as a provider, asked in every dialect of chat; without HTTP."""

import json

import pytest
from dialect_tools import collect
from gateway_parts import END, TellingEngine

from doorstep.errors import BadInput, EngineError
from doorstep.gateway.chat import Delta, End, Usage
from doorstep.gateway.dialects import (
    anthropic_count,
    anthropic_messages,
    openai_chat,
    openai_embeddings,
    openai_responses,
)
from doorstep.gateway.providers.base import Ask, pieces_of
from doorstep.gateway.providers.engine import EngineProvider
from doorstep.renderers.chat import ChatRenderer

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
RESPONSES = {"input": "hello", "max_output_tokens": 20}
DIALECTS = [(openai_chat, CHAT), (openai_responses, RESPONSES), (anthropic_messages, CHAT)]
every_dialect = pytest.mark.parametrize(("dialect", "asked"), DIALECTS, ids=lambda value: getattr(value, "NAME", ""))


@pytest.fixture
def engine(tmp_path):
    return TellingEngine(tmp_path / "model")


async def provider(engine, cpu=None):
    async def adapter_for(path, key_id):
        return f"{path} of {key_id}"

    return EngineProvider(engine, await engine.info(), ChatRenderer(engine.folder), adapter_for, cpu)


def ask(dialect, adapter=None, **fields):
    body = json.dumps({"model": "tiny"} | fields).encode()
    head = dialect.head(body)
    return Ask(dialect=dialect, head=head, body=body, call_id="call_1", model="tiny", adapter=adapter, key_id="key_1")


async def events_of(answer, ask):
    read = ask.dialect.read_answer(pieces_of(answer.body), stream=ask.head.stream)
    return [event for event in await collect(read) if isinstance(event, Delta | End | Usage)]


@every_dialect
@pytest.mark.parametrize("stream", [True, False])
async def test_the_same_answer_in_every_dialect(engine, dialect, asked, stream):
    with_usage = {"stream_options": {"include_usage": True}} if dialect is openai_chat else {}
    call = ask(dialect, **asked, **with_usage, stream=stream)
    answer = await (await provider(engine)).answer(call)
    *deltas, end, usage = await events_of(answer, call)
    assert "".join(delta.text for delta in deltas) == "hello world"
    assert (end.reason, usage.input_tokens, usage.output_tokens) == ("stop", 4, 3)
    assert answer.trace.samples[0].ids == engine.answer_ids
    assert answer.trace.samples[0].logprobs == [-0.5, -1.0, -1.5]


@every_dialect
async def test_the_prompt_is_the_same(engine, dialect, asked):
    answer = await (await provider(engine)).answer(ask(dialect, **asked))
    await answer.body.next()
    [(adapter, prompt, params)] = engine.seen
    assert prompt == answer.trace.prompt == ChatRenderer(engine.folder).prompt(CHAT["messages"])
    assert (adapter, params.max_tokens, params.stop) == (None, 20, [[END]])


@pytest.mark.parametrize(("named", "who"), [("tinker://run/weights/1", "key_1"), ("workflow/orders", None)])
async def test_whose_a_checkpoint_is_counts_where_the_client_named_it(engine, named, who):
    call = ask(openai_chat, "tinker://run/weights/1", **CHAT, model=named)
    await (await (await provider(engine)).answer(call)).body.next()
    assert engine.seen[0][0] == f"tinker://run/weights/1 of {who}"


async def test_the_k_of_the_likeliest_reaches_the_engine(engine):
    answer = await (await provider(engine)).answer(ask(anthropic_messages, **CHAT, top_k=5))
    await answer.body.next()
    assert engine.seen[0][2].top_k == 5


PNG = "iVBORw0KGgo="


@pytest.mark.parametrize(
    ("dialect", "fields", "where"),
    [
        (openai_chat, CHAT | {"tool_choice": "required"}, "tool_choice"),
        (openai_chat, CHAT | {"verbosity": "high"}, "verbosity"),
        (openai_responses, RESPONSES | {"reasoning": {"effort": "high"}}, "reasoning"),
        (openai_responses, RESPONSES | {"input": "x" * 200}, "input"),
        (anthropic_messages, CHAT | {"thinking": {"type": "enabled", "budget_tokens": 2048}}, "thinking"),
        (
            anthropic_messages,
            CHAT
            | {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
                        ],
                    }
                ]
            },
            "messages",
        ),
    ],
)
async def test_what_our_models_do_not_serve_is_named_as_the_client_wrote_it(engine, dialect, fields, where):
    with pytest.raises(BadInput) as caught:
        await (await provider(engine)).answer(ask(dialect, **fields))
    assert caught.value.where == where


async def test_a_prompt_is_counted_as_it_would_be_rendered(engine):
    ours = await provider(engine)
    counted = await ours.answer(ask(anthropic_count, messages=CHAT["messages"]))
    assert (json.loads(counted.body), engine.seen) == ({"input_tokens": 4}, [])


async def test_a_stop_string_that_was_cut_by_the_limit_is_no_stop(engine):
    call = ask(openai_chat, messages=CHAT["messages"], max_tokens=1, stop="hello!")
    answer = await (await provider(engine)).answer(call)
    delta, end, _usage = await events_of(answer, call)
    assert (delta.text, end) == ("hello", End(0, "length"))


async def test_it_answers_chat_only(engine):
    with pytest.raises(BadInput, match=r"openai\.embeddings"):
        await (await provider(engine)).answer(ask(openai_embeddings, input="x"))


async def test_the_stop_string_is_told(engine):
    call = ask(anthropic_messages, **CHAT, stop_sequences=["never", " wor"])
    answer = await (await provider(engine)).answer(call)
    *_, end, _usage = await events_of(answer, call)
    assert (end.reason, end.stop_sequence) == ("stop", " wor")


async def test_closing_the_body_stops_the_engine(engine):
    answer = await (await provider(engine)).answer(ask(openai_chat, **CHAT, stream=True))
    await answer.body.next()
    await answer.body.close()
    assert (engine.closed, len(answer.trace.samples[0].ids)) == (1, 1)


async def test_cpu_time_is_booked_since_the_call_before_at_most_the_calls_own(engine):
    used = iter([100.0, 100.000001, 100.000003, 900.0])

    async def cpu():
        return next(used)

    ours = await provider(engine, cpu)
    booked = []
    for _ in range(3):
        answer = await ours.answer(ask(openai_chat, **CHAT))
        await collect(pieces_of(answer.body))
        booked.append(answer.trace.cpu_seconds)
    assert booked[:2] == pytest.approx([1e-6, 2e-6])
    assert 0 < booked[2] < 800


async def test_an_engine_that_is_gone_at_the_end_leaves_the_cost_unknown(engine):
    async def cpu():
        if engine.closed:
            raise EngineError("gone")
        return 1.0

    answer = await (await provider(engine, cpu)).answer(ask(openai_chat, **CHAT))
    assert b"hello world" in b"".join(await collect(pieces_of(answer.body)))
    assert answer.trace.cpu_seconds is None
