"""What goes wrong reaches the official SDKs as what they call it, and they try again where they should."""

import json

import anthropic
import openai
import pytest
from gateway_parts import serving, settings_for
from sdk_parts import HELLO

from doorstep.gateway.keys import Keys, Terms

# A model of the fake provider, and the error that its answer is.
FAILURES = [
    ("fake/nobody", openai.NotFoundError, anthropic.NotFoundError),
    ("nowhere/echo", openai.NotFoundError, anthropic.NotFoundError),
    ("fake/busy", openai.RateLimitError, anthropic.RateLimitError),
    ("chat/fake/busy", openai.RateLimitError, anthropic.RateLimitError),
    ("claude/fake/busy", openai.RateLimitError, anthropic.RateLimitError),
    ("gpt/fake/busy", openai.RateLimitError, anthropic.RateLimitError),
    ("fake/empty", openai.InternalServerError, anthropic.InternalServerError),
]


def by_chat(gpt, model, **asked):
    return gpt.chat.completions.create(model=model, messages=HELLO, **asked)


def by_responses(gpt, model, **asked):
    return gpt.responses.create(model=model, input=HELLO, **asked)


def by_messages(claude, model, **asked):
    return claude.messages.create(model=model, max_tokens=100, messages=HELLO, **asked)


@pytest.mark.parametrize("ask", [by_chat, by_responses])
@pytest.mark.parametrize(("model", "error"), [(model, error) for model, error, _ in FAILURES])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_for_openai(gpt, ask, model, error, stream):
    with pytest.raises(error):
        ask(gpt, model, stream=stream)


@pytest.mark.parametrize(("model", "error"), [(model, error) for model, _, error in FAILURES])
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_for_anthropic(claude, model, error, stream):
    with pytest.raises(error):
        by_messages(claude, model, stream=stream)


def test_a_wrong_field_is_named(gpt, claude):
    with pytest.raises(openai.BadRequestError) as caught:
        by_chat(gpt, "fake/echo", temperature="warm")
    assert caught.value.param == "temperature"
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences"):
        by_messages(claude, "fake/echo", stop_sequences="no list")


def test_it_is_told_when_to_come_again(gpt):
    with pytest.raises(openai.RateLimitError) as caught:
        by_chat(gpt, "chat/fake/busy")
    assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("way", ["fake/", "chat/fake/", "claude/fake/", "gpt/fake/"])
@pytest.mark.parametrize("script", ["broken", "error-after-200", "malformed"])
@pytest.mark.parametrize("ask", [by_chat, by_responses])
def test_a_broken_stream_is_no_answer_for_openai(gpt, ask, way, script):
    with pytest.raises((openai.APIError, json.JSONDecodeError)):  # the latter for what passes and is no JSON
        list(ask(gpt, f"{way}{script}", stream=True))


@pytest.mark.parametrize("way", ["fake/", "chat/fake/", "claude/fake/", "gpt/fake/"])
@pytest.mark.parametrize("script", ["broken", "error-after-200", "malformed"])
def test_a_broken_stream_is_no_answer_for_anthropic(claude, way, script):
    with pytest.raises(anthropic.APIError):
        list(by_messages(claude, f"{way}{script}", stream=True))


def test_the_gateway_tries_again_before_a_client_must(gpt):
    assert by_chat(gpt, "patient").choices[0].message.content == "hello there, world"


def test_the_sdks_try_again_where_the_gateway_does_not(gpt, claude):
    assert by_chat(gpt.with_options(max_retries=2), "unsteady/flaky").choices[0].message.content == "hello there, world"
    assert by_messages(claude.with_options(max_retries=2), "unsteady/flaky").content[0].text == "hello there, world"


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        ("claude/fake/echo", "n", 2),
        ("claude/fake/echo", "logprobs", True),
        ("claude/fake/echo", "seed", 7),
        ("gpt/fake/echo", "n", 2),
        ("gpt/fake/echo", "stop", ["there"]),
    ],
)
def test_what_the_models_service_has_no_word_for_is_refused_by_name(gpt, model, field, value):
    with pytest.raises(openai.BadRequestError, match=field) as caught:
        by_chat(gpt, model, **{field: value})
    assert caught.value.param == field


def test_a_wrong_key(tmp_path):
    Keys(tmp_path).create(Terms(name="anybody"))
    with (
        serving(settings_for(tmp_path, model=None)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong") as gpt,
        anthropic.Anthropic(base_url=address, api_key="wrong") as claude,
    ):
        with pytest.raises(openai.AuthenticationError):
            by_chat(gpt, "fake/echo")
        with pytest.raises(anthropic.AuthenticationError):
            by_messages(claude, "fake/echo")


def test_the_calls_of_a_run_have_an_address_of_their_own(address):
    with openai.OpenAI(base_url=f"{address}/runs/run_1/v1", api_key="any") as gpt:
        assert by_chat(gpt, "fake/echo").choices[0].message.content == "hello there, world"
    with anthropic.Anthropic(base_url=f"{address}/runs/run_1", api_key="any") as claude:
        assert by_messages(claude, "fake/echo").content[0].text == "hello there, world"
