"""Embeddings pass through: what is read of them on the way."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import BadInput
from doorstep.gateway.chat import Usage
from doorstep.gateway.dialects import openai_embeddings
from doorstep.gateway.dialects.base import ChatDialect, Dialect, Head


def body(given, **fields):
    return json.dumps({"input": given, "model": "text-embedding-3-small"} | fields).encode()


def test_it_is_a_dialect_and_none_of_chat():
    asked: Dialect = openai_embeddings
    assert (asked.PATH, isinstance(asked, ChatDialect)) == ("/v1/embeddings", False)


def test_the_head_says_that_nothing_is_written():
    assert openai_embeddings.head(body("x")) == Head(model="text-embedding-3-small", most_output=0)


@pytest.mark.parametrize("sent", [b"", b"[]", b'{"input":"x"}', b'{"model":' + b"[" * 100_000])
def test_a_bad_head_is_refused(sent):
    with pytest.raises(BadInput):
        openai_embeddings.head(sent)


@pytest.mark.parametrize(
    ("sent", "contents"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
def test_every_kind_of_input_is_kept(sent, contents):
    assert openai_embeddings.messages(body(sent)) == [{"role": "user", "content": content} for content in contents]


@pytest.mark.parametrize("vector", [[0.1, -0.2], "zczMPc3MTL4="])
def test_an_answer_is_understood_in_either_encoding(vector):
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    answer = {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    reading = openai_embeddings.understand(json.dumps(answer).encode())
    assert (reading.usage, reading.model, reading.complete) == (Usage(input_tokens=8, output_tokens=0), "m", True)


def test_the_form_of_the_vectors_is_recorded():
    asked = openai_embeddings.sampling(body("x", dimensions=256, encoding_format="base64", user="u"))
    assert asked == {"dimensions": 256, "encoding_format": "base64"}


@given(st.binary())
def test_any_answer_is_read(answer):
    assert openai_embeddings.understand(answer).usage.output_tokens is None
