"""Tools, thoughts and formats on our own engine: what the sampler is asked, and what its answer comes out as."""

import json

import pytest
from chat_families import FAMILIES, HARMONY, QWEN, SCHEMAS, WEATHER
from dialect_tools import collect, merged
from gateway_parts import TellingEngine
from llguidance import LLMatcher, LLTokenizer

from doorstep.engine.api import Finished, Token
from doorstep.errors import BadInput
from doorstep.gateway.chat import Delta, End, ThinkingDelta, ToolCallBegin, ToolCallDelta, Usage
from doorstep.gateway.dialects import anthropic_messages, openai_chat, openai_responses
from doorstep.gateway.providers.base import Ask, pieces_of
from doorstep.gateway.providers.engine import EngineProvider
from doorstep.renderers.chat import ChatRenderer

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"messages": HELLO, "tools": [WEATHER]}
FUNCTION = WEATHER["function"]
MESSAGES = {
    "messages": HELLO,
    "max_tokens": 400,
    "tools": [{"name": "weather", "input_schema": FUNCTION["parameters"]}],
}
RESPONSES = {"input": "hello", "tools": [{**FUNCTION, "type": "function", "strict": False}]}
DIALECTS = [(openai_chat, CHAT), (openai_responses, RESPONSES), (anthropic_messages, MESSAGES)]
every_dialect = pytest.mark.parametrize(("dialect", "asked"), DIALECTS, ids=lambda value: getattr(value, "NAME", ""))
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@pytest.fixture
def family():
    return QWEN


@pytest.fixture
def engine(tmp_path, family):
    return TellingEngine(tmp_path, family.said, family.template, family.words, context=2000)


async def answered(engine, dialect, **fields):
    """Return the events of an answer, read back from the dialect's bytes, and the call's trace."""

    async def adapter_for(path, _key_id):
        return path

    provider = EngineProvider(engine, await engine.info(), ChatRenderer(engine.folder), adapter_for)
    body = json.dumps({"model": "tiny"} | fields).encode()
    head = dialect.head(body)
    answer = await provider.answer(Ask(dialect=dialect, head=head, body=body, call_id="c", model="tiny"))
    read = dialect.read_answer(pieces_of(answer.body), stream=head.stream)
    return merged(await collect(read)), answer.trace


def words_of(events):
    return "".join(event.text for event in events if isinstance(event, Delta))


def calls_of(events):
    names = [event.name for event in events if isinstance(event, ToolCallBegin)]
    arguments = [json.loads(event.arguments) for event in events if isinstance(event, ToolCallDelta)]
    return list(zip(names, arguments, strict=True))


@every_family
@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_comes_out_of_every_family(engine, stream):
    events, trace = await answered(engine, openai_chat, **CHAT, stream=stream)
    [end] = [event for event in events if isinstance(event, End)]
    assert calls_of(events) == [("weather", {"city": "Oslo", "days": 2})]
    assert end.reason == "tool_calls"
    assert trace.samples[0].ids == engine.answer_ids


@every_dialect
@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_goes_out_in_every_dialect(engine, dialect, asked, stream):
    events, _ = await answered(engine, dialect, **asked, stream=stream)
    assert words_of(events) == "Let me see."
    assert calls_of(events) == [("weather", {"city": "Oslo", "days": 2})]
    assert [event.reason for event in events if isinstance(event, End)] == ["tool_calls"]


async def test_what_looks_like_a_call_is_text_where_there_are_no_tools(engine):
    events, _ = await answered(engine, openai_chat, messages=HELLO)
    assert (words_of(events), calls_of(events)) == (engine.text, [])


async def test_tools_that_may_not_be_used_are_not_told(engine):
    await answered(engine, openai_chat, **CHAT, tool_choice="none")
    await answered(engine, openai_chat, messages=HELLO)
    [(_, with_none, params), (_, without, _)] = engine.seen
    assert (with_none, params.grammar) == (without, None)


async def test_one_call_is_enough_where_only_one_may_be(engine):
    engine.text = QWEN.said + QWEN.said
    events, trace = await answered(engine, openai_chat, **CHAT, parallel_tool_calls=False)
    assert len(calls_of(events)) == 1
    assert len(trace.samples[0].ids) < len(engine.answer_ids)


def fits(engine, text):
    grammar = engine.seen[-1][2].grammar
    tokenizer = LLTokenizer((engine.folder / "tokenizer.json").read_text())
    made = {"lark": LLMatcher.grammar_from_lark, "json_schema": LLMatcher.grammar_from_json_schema}[grammar.kind]
    matcher = LLMatcher(tokenizer, made(grammar.text))
    ids = engine.tokenizer.encode(text).ids
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_call_that_must_be_is_held_to_its_schema(engine, choice):
    await answered(engine, openai_chat, **CHAT, tool_choice=choice)
    call = QWEN.said.removeprefix("Let me see.\n")
    assert fits(engine, call)
    assert fits(engine, f"<think>\nHm.</think>\n\n{call}\n{call}")
    assert not fits(engine, QWEN.said)
    assert not fits(engine, call.replace("2", '"2"'))


async def test_a_strict_tool_is_held_to_its_schema_where_words_may_come_too(engine):
    strict = {"type": "function", "function": {**FUNCTION, "strict": True}}
    await answered(engine, openai_chat, messages=HELLO, tools=[strict])
    assert fits(engine, "It rains.")
    assert fits(engine, QWEN.said)
    assert not fits(engine, QWEN.said.replace("days", "weeks"))


@every_family
async def test_words_or_a_strict_call_in_every_family(engine, family):
    strict = {"type": "function", "function": {**FUNCTION, "strict": True}}
    await answered(engine, openai_chat, messages=HELLO, tools=[strict])
    call = family.said[family.said.find("Let me see.") + 11 :].lstrip("\n") if "Let me" in family.said else family.said
    call = call.removeprefix("<|end|><|start|>assistant")
    assert fits(engine, "<|channel|>final<|message|>It rains." if family is HARMONY else "It rains.")
    assert fits(engine, call)
    assert not fits(engine, call.replace("2", "two"))


async def test_words_that_wait_for_a_stop_string_come_before_a_call(engine):
    events, _ = await answered(engine, openai_chat, **CHAT, stop="see.!")
    assert (words_of(events), len(calls_of(events))) == ("Let me see.", 1)


async def test_a_stop_string_ends_an_answer_before_its_call(engine):
    events, _ = await answered(engine, openai_chat, **CHAT, stop="me")
    assert (words_of(events), calls_of(events)) == ("Let ", [])


LOOSE = [
    ("qwen", '{"name": "wetter_für", "arguments": {"city": "Oslo", "x": 1}}\n'),
    ("glm", 'wetter_für\n<arg_key>city</arg_key>\n<arg_value>"Oslo"</arg_value>\n'),
]


@pytest.mark.parametrize(("family", "call"), [(FAMILIES[name], call) for name, call in LOOSE])
async def test_a_tool_may_say_little_of_its_arguments(engine, family, call):
    loose = {"type": "function", "function": {"name": "wetter_für", "parameters": {"properties": {"city": True}}}}
    await answered(engine, openai_chat, messages=HELLO, tools=[loose], tool_choice="required")
    assert fits(engine, f"<tool_call>{'' if family is FAMILIES['glm'] else chr(10)}{call}</tool_call>")


async def test_a_tool_that_is_not_there_cannot_be_chosen(engine):
    with pytest.raises(BadInput, match="tool_choice"):
        await answered(engine, openai_chat, **CHAT, tool_choice={"type": "function", "function": {"name": "f"}})


FORMAT = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMAS["weather"], "strict": True}}


@pytest.mark.parametrize("family", [QWEN, FAMILIES["taught"], HARMONY], ids=["qwen", "taught", "harmony"])
async def test_an_answers_format_is_held(engine, family):
    await answered(engine, openai_chat, messages=HELLO, response_format=FORMAT)
    begin = "<|channel|>final<|message|>" if family is HARMONY else ""
    assert fits(engine, begin + '{"city": "Oslo", "days": 2}')
    assert not fits(engine, begin + '{"city": "Oslo"}')
    assert not fits(engine, begin + "Oslo")


async def test_a_call_may_come_in_the_place_of_a_formatted_answer(engine):
    await answered(engine, openai_chat, **CHAT, response_format={"type": "json_object"})
    assert fits(engine, '{"any": 1}')
    assert fits(engine, QWEN.said.removeprefix("Let me see.\n"))
    assert not fits(engine, "[1]")


THOUGHT = "<think>\nHm.\n</think>\n\nhello"


@every_dialect
@pytest.mark.parametrize("stream", [True, False])
async def test_thoughts_are_apart_from_words(engine, dialect, asked, stream):
    engine.text = THOUGHT
    usage = {"stream_options": {"include_usage": True}} if dialect is openai_chat and stream else {}
    events, trace = await answered(engine, dialect, **asked, **usage, stream=stream)
    thought = "".join(event.text for event in events if isinstance(event, ThinkingDelta))
    [counts] = [event for event in events if isinstance(event, Usage)]
    assert (thought.strip(), words_of(events)) == ("Hm.", "hello")
    assert counts.output_tokens == len(trace.samples[0].ids)
    assert counts.reasoning_tokens == 6


async def test_thinking_can_be_switched_off(engine):
    await answered(engine, openai_chat, messages=HELLO, reasoning_effort="none")
    await answered(engine, openai_chat, messages=HELLO, reasoning_effort="high")
    off, on = (engine.tokenizer.decode(prompt, skip_special_tokens=False) for _, prompt, _ in engine.seen)
    assert (off.endswith("<think>\n\n</think>\n\n"), on.endswith("<|assistant|>")) == (True, True)


@pytest.mark.parametrize("family", [HARMONY], ids=["harmony"])
async def test_a_model_that_always_thinks_says_so(engine):
    with pytest.raises(BadInput, match="always thinks"):
        await answered(engine, openai_chat, messages=HELLO, reasoning_effort="none")
    await answered(engine, openai_chat, messages=HELLO, reasoning_effort="high")
    assert "Reasoning: high" in engine.tokenizer.decode(engine.seen[0][1])


async def test_log_probabilities_are_those_of_the_words(engine):
    engine.text = "<think>\nHm.</think>\n\nhello" + QWEN.said
    events, trace = await answered(engine, openai_chat, **CHAT, logprobs=True)
    shown = b"".join(token.bytes for event in events if isinstance(event, Delta) for token in event.tokens)
    assert shown.decode().strip() == "helloLet me see."
    assert len(trace.samples[0].logprobs) == len(engine.answer_ids)


async def test_the_settings_of_sampling_reach_the_engine(engine):
    asks = {"presence_penalty": 0.5, "frequency_penalty": -1, "logit_bias": {"7": -100}, "min_p": 0.1, "top_k": 4}
    await answered(engine, openai_chat, messages=HELLO, **asks, logprobs=True, top_logprobs=3)
    params = engine.seen[0][2]
    assert (params.presence_penalty, params.frequency_penalty, params.logit_bias) == (0.5, -1, {7: -100})
    assert (params.min_p, params.top_k, params.top_logprobs) == (0.1, 4, 3)


async def test_the_likeliest_tokens_are_shown(engine):
    hello, world = engine.tokenizer.encode("hello world").ids

    async def sample(*_):
        yield Token(0, hello, -0.5, [(hello, -0.5), (world, -1.5)])
        yield Finished(0, "stop")

    engine.sample = sample
    events, _ = await answered(engine, openai_chat, messages=HELLO, logprobs=True, top_logprobs=2)
    [token] = [token for event in events if isinstance(event, Delta) for token in event.tokens]
    assert [(other.text, other.logprob) for other in token.top] == [("hello", -0.5), (" world", -1.5)]


ARGUMENTS = {"city": "Oslo"}
FUNCTION_CALL = {"name": "weather", "arguments": json.dumps(ARGUMENTS)}
TALKS = [
    (
        openai_chat,
        "messages",
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION_CALL}]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ),
    (
        openai_responses,
        "input",
        {"type": "function_call", "call_id": "c1", **FUNCTION_CALL},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ),
    (
        anthropic_messages,
        "messages",
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": ARGUMENTS}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "rain"}]},
    ),
]


@pytest.mark.parametrize(("dialect", "field", "call", "result"), TALKS)
async def test_calls_and_results_come_back_into_the_prompt(engine, dialect, field, call, result):
    most = {"max_tokens": 400} if dialect is anthropic_messages else {}
    await answered(engine, dialect, **most, **{field: [*HELLO, call, result]})
    text = engine.tokenizer.decode(engine.seen[0][1], skip_special_tokens=False)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert text == f"<|user|>hello<|end|><|assistant|>{call}<|end|><|tool|>rain<|end|><|assistant|>"
