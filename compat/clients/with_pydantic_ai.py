# /// script
# dependencies = ["pydantic-ai-slim[openai,anthropic]==2.68.0"]
# ///
"""Pydantic AI: an agent with a tool, streamed and not, over all three APIs."""

from checks import HELLO, URL, begin, of_chats, same
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Order(BaseModel):
    customer: str
    urgent: bool


def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


def answer(model) -> None:
    same(Agent(model, instructions="be brief").run_sync(HELLO).output, HELLO)


async def stream(model) -> None:
    async with Agent(model).run_stream(HELLO) as result:
        parts = [part async for part in result.stream_text(delta=True, debounce_by=None)]
    same("".join(parts), HELLO)
    if len(parts) < 3:
        raise AssertionError("it came in one piece")


def tools(model) -> None:
    same(Agent(model, tools=[weather]).run_sync(HELLO).output, "sunny in text")


async def tools_streamed(model) -> None:
    async with Agent(model, tools=[weather]).run_stream(HELLO) as result:
        same(await result.get_output(), "sunny in text")


def form(model) -> None:
    same(Agent(model, output_type=NativeOutput(Order)).run_sync(HELLO).output, Order(customer="text", urgent=True))


CHECKS = {
    "answer": answer, "stream": stream, "tools": tools, "tools, streamed": tools_streamed, "form": form,
    "thinks, then calls": tools, "thinks, then calls, streamed": tools_streamed,
}  # fmt: skip


# The client knows by a model's name whether it takes a schema; here it is told.
TAKES_A_SCHEMA = ModelProfile(supports_json_schema_output=True)


def of_anthropic(name: str) -> AnthropicModel:
    return AnthropicModel(name, provider=AnthropicProvider(base_url=URL, api_key="any"), profile=TAKES_A_SCHEMA)


def at_openai() -> OpenAIProvider:
    return OpenAIProvider(base_url=f"{URL}/v1", api_key="any")


begin("Pydantic AI", "pydantic-ai-slim", "openai", "anthropic")
of_chats("chat", lambda name: OpenAIChatModel(name, provider=at_openai()), CHECKS)
of_chats("responses", lambda name: OpenAIResponsesModel(name, provider=at_openai()), CHECKS)
of_chats("messages", of_anthropic, CHECKS)
