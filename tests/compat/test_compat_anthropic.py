"""The official ``anthropic`` SDK at ``/v1/messages``, whatever the model's service speaks."""

import anthropic
import pytest
from anthropic import beta_tool
from sdk_parts import CITY, HELLO, ORDER, PDF, PNG, Order, base64_of

WEATHER = {"name": "weather", "description": "The weather", "input_schema": CITY}
CLOCK = {"name": "clock", "description": "The time", "input_schema": CITY}


def ask(claude, **asked):
    return claude.messages.create(max_tokens=2000, **asked)


def streamed(claude, **asked):
    with claude.messages.stream(max_tokens=2000, **asked) as stream:
        return stream.get_final_message()


def said(answer) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


def calls_of(answer):
    return [block for block in answer.content if block.type == "tool_use"]


@pytest.mark.parametrize("get", [ask, streamed])
def test_an_answer(claude, way, get):
    answer = get(claude, model=f"{way}echo", messages=HELLO, system="be brief", extra_body={"temperature": 0.5})
    assert (said(answer), answer.stop_reason) == ("hello there, world", "end_turn")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 3)


def test_an_answer_that_is_cut(claude, way):
    answer = claude.messages.create(model=f"{way}echo", max_tokens=2, messages=HELLO)
    assert (said(answer), answer.stop_reason) == ("hello there,", "max_tokens")


def test_a_stream(claude, way):
    with claude.messages.stream(model=f"{way}echo", max_tokens=100, messages=HELLO) as stream:
        parts = list(stream.text_stream)
    assert len(parts) > 2
    assert "".join(parts) == "hello there, world"


async def test_an_asynchronous_stream(address, way):
    async with (
        anthropic.AsyncAnthropic(base_url=address, api_key="any", max_retries=0) as claude,
        claude.messages.stream(model=f"{way}echo", max_tokens=100, messages=HELLO) as stream,
    ):
        assert said(await stream.get_final_message()) == "hello there, world"


@pytest.mark.parametrize("get", [ask, streamed])
def test_a_tool_from_the_call_to_its_result(claude, way, get):
    asked = {"model": f"{way}tools", "tools": [WEATHER]}
    answer = get(claude, messages=HELLO, **asked)
    (call,) = calls_of(answer)
    assert (answer.stop_reason, call.name, call.input) == ("tool_use", "weather", {"city": "text"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    turns = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert said(get(claude, messages=turns, **asked)) == "sunny"


@pytest.mark.parametrize("get", [ask, streamed])
def test_two_tools_at_once(claude, way, get):
    asked = {"model": f"{way}tools", "tools": [WEATHER, CLOCK]}
    answer = get(claude, messages=HELLO, **asked)
    calls = calls_of(answer)
    assert [call.name for call in calls] == ["weather", "clock"]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": f"the {call.name}"} for call in calls]
    turns = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    assert said(get(claude, messages=turns, **asked)).endswith("the clock")


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "auto", "disable_parallel_tool_use": True}, ["weather"]),
        ({"type": "tool", "name": "clock"}, ["clock"]),
        ({"type": "none"}, []),
    ],
)
def test_a_choice_of_tools(claude, way, choice, names):
    answer = ask(claude, model=f"{way}tools", messages=HELLO, tools=[WEATHER, CLOCK], tool_choice=choice)
    assert [call.name for call in calls_of(answer)] == names


def test_the_sdk_runs_a_tool_by_itself(
    claude, way
):  # it would have the service hold the conversation, and does without
    @beta_tool
    def weather(city: str) -> str:
        """Tell the weather in a city."""
        return f"sunny in {city}"

    runner = claude.beta.messages.tool_runner(model=f"{way}tools", max_tokens=100, messages=HELLO, tools=[weather])
    assert said(runner.until_done()) == "sunny in text"


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64_of(PNG)}}, "[image]"),
        ({"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}}, "[image]"),
        (
            {
                "type": "document",
                "title": "a.pdf",
                "source": {"type": "base64", "media_type": "application/pdf", "data": base64_of(PDF)},
            },
            "[file]",
        ),
    ],
)
def test_pictures_and_documents(claude, way, block, shown):
    content = [{"type": "text", "text": "see"}, block]
    answer = ask(claude, model=f"{way}echo", messages=[{"role": "user", "content": content}])
    assert said(answer) == f"see {shown}"


def test_an_answer_of_a_given_form(claude, way):
    answer = claude.messages.parse(model=f"{way}json", max_tokens=100, messages=HELLO, output_format=Order)
    assert answer.parsed_output == ORDER


def test_an_answer_of_a_given_form_as_a_stream(claude, way):
    assert streamed(claude, model=f"{way}json", messages=HELLO, output_format=Order).parsed_output == ORDER


@pytest.mark.parametrize("get", [ask, streamed])
def test_thinking_comes_and_goes_back(claude, way, get):
    asked = {"model": f"{way}thinking", "thinking": {"type": "enabled", "budget_tokens": 1024}}
    answer = get(claude, messages=HELLO, **asked)
    thought = answer.content[0]
    assert (thought.type, thought.thinking) == ("thinking", "Let me think.")
    assert said(answer) == "hello there, world"
    turns = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": "and now?"}]
    assert said(get(claude, messages=turns, **asked)) == "and now?"


@pytest.mark.parametrize("get", [ask, streamed])
def test_thinking_before_a_tool_goes_back_with_its_signature(claude, way, get):
    asked = {"model": f"{way}agent", "tools": [WEATHER], "thinking": {"type": "enabled", "budget_tokens": 1024}}
    answer = get(claude, messages=HELLO, **asked)
    assert [block.type for block in answer.content] == ["thinking", "tool_use"]
    result = {"type": "tool_result", "tool_use_id": answer.content[1].id, "content": "sunny"}
    turns = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    again = get(claude, messages=turns, **asked)  # the fake provider knows its signature again
    assert (again.content[0].thinking, said(again)) == ("Let me think.", "sunny")


def test_a_thought_under_another_signature_is_refused(claude):
    thought = {"type": "thinking", "thinking": "Let me think.", "signature": "forged"}
    turns = [*HELLO, {"role": "assistant", "content": [thought]}, {"role": "user", "content": "and now?"}]
    with pytest.raises(anthropic.BadRequestError, match="signature"):
        ask(claude, model="claude/fake/thinking", messages=turns)


def test_a_prompt_that_is_cached_goes_to_every_service(claude, way):
    system = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    assert said(ask(claude, model=f"{way}echo", messages=HELLO, system=system)) == "hello there, world"


def test_a_refusal(claude, way):
    assert ask(claude, model=f"{way}refusal", messages=HELLO).stop_reason == "refusal"


@pytest.mark.parametrize("model", ["fake/echo", "claude/fake/echo", "tiny"])
def test_tokens_are_counted(claude, model):
    count = claude.messages.count_tokens(model=model, messages=HELLO).input_tokens
    assert count >= 3


def test_the_local_model(claude):
    assert said(ask(claude, model="tiny", messages=[{"role": "user", "content": "hi"}])) == "hello world"


def test_the_models_are_listed(claude):
    assert {"tiny", "patient"} <= {model.id for model in claude.models.list()}
    assert claude.models.retrieve("tiny").id == "tiny"
