"""Anthropic's counting of tokens as a dialect."""

import json

import pytest

from doorstep.errors import BadInput
from doorstep.gateway.chat import Text, Usage
from doorstep.gateway.dialects import anthropic_count
from doorstep.gateway.dialects.base import ChatDialect, Dialect, Head

ASKED = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def test_it_is_a_dialect_but_not_of_chat():
    dialect: Dialect = anthropic_count
    assert (dialect.NAME, dialect.PATH) == ("anthropic.count_tokens", "/v1/messages/count_tokens")
    assert not isinstance(anthropic_count, ChatDialect)


def test_a_count_asks_for_no_output():
    body = json.dumps(ASKED).encode()
    assert anthropic_count.head(body) == Head(model="m", usage=False, most_output=0)
    assert anthropic_count.sampling(body) == {}
    assert json.loads(anthropic_count.with_model(body, "n")) == ASKED | {"model": "n"}


def test_the_prompt_is_what_is_counted():
    prompt = anthropic_count.count(json.dumps(ASKED | {"system": "Be brief."}).encode())
    assert [message.role for message in prompt.messages] == ["system", "user"]
    assert prompt.messages[1].blocks == [Text(text="Hello")]


@pytest.mark.parametrize(("field", "value"), [("max_tokens", 5), ("stream", True), ("temperature", 1)])
def test_a_count_says_nothing_of_sampling(field, value):
    with pytest.raises(BadInput) as caught:
        anthropic_count.count(json.dumps(ASKED | {field: value}).encode())
    assert caught.value.where == field


def test_a_count_takes_no_tokens_whatever_it_says():
    answer = anthropic_count.write(2095)
    assert json.loads(answer) == {"input_tokens": 2095}
    assert anthropic_count.understand(answer).usage == Usage(input_tokens=0, output_tokens=0)
    assert not anthropic_count.is_last(answer)
