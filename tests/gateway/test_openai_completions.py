"""Legacy completions through the official SDK: text or token ids go on, without a chat template."""

import json

import openai
import pytest
from gateway_parts import END, wait_for

from doorstep.gateway.dialects import openai_completions
from doorstep.store import Store, views
from doorstep.types import Call


def test_a_text_goes_on(client, engine):
    answer = client.completions.create(model="tiny", prompt="hello<|end|>", max_tokens=9, temperature=0, top_p=0.5)
    [choice], [(_, prompt, params)] = answer.choices, engine.seen
    assert (choice.text, choice.finish_reason, answer.usage.completion_tokens) == ("hello world", "stop", 3)
    assert END not in prompt
    assert engine.tokenizer.decode(prompt) == "hello<|end|>"
    assert (params.max_tokens, params.temperature, params.top_p, params.stop) == (9, 0, 0.5, [[END]])


def test_token_ids_go_on_as_they_are(client, engine):
    client.completions.create(model="tiny", prompt=[7, END, 8])
    client.completions.create(model="tiny", prompt=[[7, END, 8]])
    assert [(prompt, params.max_tokens) for _, prompt, params in engine.seen] == [([7, END, 8], 16)] * 2


def test_a_stream_with_log_probabilities_is_the_same_answer(client):
    asked = {"model": "tiny", "prompt": "hello", "logprobs": 0, "n": 2}
    whole = client.completions.create(**asked)
    with client.completions.create(**asked, stream=True, stream_options={"include_usage": True}) as stream:
        *chunks, last = stream
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text == "hello world"
        shown = [part.logprobs for part in parts if part.logprobs]
        assert [value for each in shown for value in each.token_logprobs] == choice.logprobs.token_logprobs
        assert [value for each in shown for value in each.text_offset] == choice.logprobs.text_offset == [0, 5]
    assert last.usage == whole.usage


def test_a_stop_string(client):
    answer = client.completions.create(model="tiny", prompt="hello", stop=" wor")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello", "stop")


@pytest.mark.parametrize(
    ("field", "value"), [("prompt", ["a", "b"]), ("echo", True), ("suffix", "x"), ("best_of", 2), ("logprobs", 21)]
)
def test_what_our_models_do_not_serve_is_named(client, field, value):
    with pytest.raises(openai.BadRequestError, match=field):
        client.completions.create(model="tiny", **{"prompt": "hello", field: value})


def test_the_record_has_the_call_and_its_tokens(client, data, engine):
    client.completions.create(model="tiny", prompt="hello", temperature=0)
    with Store.open(data / "doorstep.db") as store:
        [call] = wait_for(lambda: store.select(Call))
        tokens = views.tokens_of(store, call.call_id)
    assert (call.dialect, call.finish_reason, call.output_tokens) == ("openai.completions", "stop", 3)
    assert tokens.ids == engine.seen[0][1] + engine.answer_ids
    assert (call.sampling, call.gaps) == ({"temperature": 0}, [])


@pytest.mark.parametrize(
    ("answer", "texts", "complete"),
    [
        ({"choices": [{"text": "a", "index": 0, "finish_reason": "stop"}]}, ["a"], True),
        ({"choices": [{"text": "a", "index": 0}]}, ["a"], False),
        ({"error": {"message": "no"}}, [], False),
    ],
)
def test_an_answer_is_understood_whole_or_as_a_stream(answer, texts, complete):
    data = json.dumps(answer).encode()
    for said in (data, b"data: " + data + b"\n\ndata: [DONE]\n\n"):
        reading = openai_completions.understand(said)
        assert (reading.texts, reading.complete) == (texts, complete)


@pytest.mark.parametrize(("prompt", "most"), [("x", 32), ([1, 2], 32), (["x", "y"], 64), ([[1], [2], [3]], 96)])
def test_the_most_that_an_answer_can_take(prompt, most):
    head = openai_completions.head(json.dumps({"model": "m", "prompt": prompt, "n": 2}).encode())
    assert head.most_output == most
