"""Constrained decoding on the shipped base: what comes out always fits, and what cannot be followed is refused."""

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest
from tokenizers import Tokenizer

from doorstep.config import TINY
from doorstep.engine.api import Finished, Grammar, SampleParams, Token
from doorstep.engine.local import LocalEngine
from doorstep.errors import EngineError

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
PROMPT = TOKENIZER.encode("Who is it?").ids


@pytest.fixture
async def engine() -> AsyncIterator[LocalEngine]:
    engine = await LocalEngine.start(TINY, "tiny")
    yield engine
    await engine.close()


def schema(text: dict) -> Grammar:
    return Grammar(kind="json_schema", text=json.dumps(text))


async def answer(engine: LocalEngine, grammar: Grammar, seed: int = 1, **params) -> tuple[str, str]:
    """Return an answer's text and why it ended."""
    wanted = SampleParams(max_tokens=200, seed=seed, temperature=1.5, grammar=grammar, **params)
    events = [event async for event in engine.sample(None, PROMPT, wanted)]
    assert isinstance(events[-1], Finished)
    ids = [event.id for event in events if isinstance(event, Token)]
    return TOKENIZER.decode(ids, skip_special_tokens=True), events[-1].reason


async def test_answers_fit_a_json_schema_and_stop_when_complete(engine):
    for text, reason in await asyncio.gather(*(answer(engine, schema(SCHEMA), seed) for seed in range(6))):
        found = json.loads(text)
        assert set(found) == {"name", "age"}
        assert 0 <= found["age"] <= 99
        assert reason == "stop"


async def test_answers_fit_a_regular_expression_and_a_lark_grammar(engine):
    text, _ = await answer(engine, Grammar(kind="regex", text="(yes|no), [0-9]{3}"))
    assert re.fullmatch("(yes|no), [0-9]{3}", text)
    text, _ = await answer(engine, Grammar(kind="lark", text='start: "<" WORD ">"\nWORD: /[a-z]{2,5}/'))
    assert re.fullmatch("<[a-z]{2,5}>", text)


async def test_the_end_token_comes_only_where_the_grammar_may_end(engine):
    biased = {5: 100.0}  # the end token, wherever it is allowed
    text, reason = await answer(engine, Grammar(kind="regex", text="[ab]{3,9}"), logit_bias=biased)
    assert re.fullmatch("[ab]{3,5}", text)
    assert reason == "stop"


async def test_a_grammar_changes_nothing_for_others(engine):
    async def free() -> list[int]:
        params = SampleParams(max_tokens=30, seed=3, stop=[])
        return [event.id async for event in engine.sample(None, PROMPT, params) if isinstance(event, Token)]

    alone, constrained = await free(), await answer(engine, schema(SCHEMA))
    together = await asyncio.gather(free(), answer(engine, schema(SCHEMA)))
    assert together == [alone, constrained]


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (Grammar(kind="json_schema", text='{"type":'), "the JSON schema cannot be read.*line 1 column 9"),
        (schema({"type": "objec"}), "the JSON schema cannot be followed: Invalid type: objec"),
        (
            schema({"properties": {"a": {"items": {"minimum": "x"}}}}),
            "at properties.a.items: Expected f64 for 'minimum'",
        ),
        (Grammar(kind="regex", text="a(b"), "the regular expression cannot be followed.*unclosed group"),
        (Grammar(kind="lark", text="start: word"), 'the Lark grammar cannot be followed.*unknown name: "word"'),
    ],
)
async def test_what_cannot_be_followed_is_refused_with_its_place(engine, grammar, says):
    with pytest.raises(EngineError, match=f"(?s){says}"):
        await answer(engine, grammar)


async def test_a_grammar_that_no_token_can_write_fails_its_own_request_alone(engine):
    beside = asyncio.create_task(answer(engine, schema(SCHEMA)))
    with pytest.raises(EngineError, match="grammar"):
        await answer(engine, Grammar(kind="lark", text="start: <[1536]>"))
    assert (await beside)[1] == "stop"
