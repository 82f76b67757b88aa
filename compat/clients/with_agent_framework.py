# /// script
# dependencies = ["agent-framework-openai==1.17.0", "agent-framework-anthropic==1.0.0b261022"]
# ///
"""Microsoft Agent Framework: an agent with a tool, streamed and not, over all three APIs."""

from typing import Annotated

from agent_framework import Agent
from agent_framework.anthropic import AnthropicClient
from agent_framework.openai import OpenAIChatClient, OpenAIChatCompletionClient
from anthropic import AsyncAnthropic
from checks import HELLO, URL, begin, of_chats, same
from pydantic import BaseModel


class Order(BaseModel):
    customer: str
    urgent: bool


def weather(city: Annotated[str, "where"]) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


def agent(model, **more) -> Agent:
    """Return an agent that sends the whole talk each time: without ``store`` it has responses refer to the last one."""
    options = {"store": False} if isinstance(model, OpenAIChatClient) else None
    return Agent(model, "be brief", default_options=options, **more)


async def answer(model) -> None:
    same((await agent(model).run(HELLO)).text, HELLO)


async def stream(model) -> None:
    updates = agent(model).run(HELLO, stream=True)
    parts = [update async for update in updates]
    same((await updates.get_final_response()).text, HELLO)
    if len(parts) < 3:
        raise AssertionError("it came in one piece")


async def tools(model) -> None:
    same((await agent(model, tools=[weather]).run(HELLO)).text, "sunny in text")


async def tools_streamed(model) -> None:
    updates = agent(model, tools=[weather]).run(HELLO, stream=True)
    same((await updates.get_final_response()).text, "sunny in text")


async def form(model) -> None:
    made = await agent(model).run(HELLO, options={"response_format": Order})
    same(made.value, Order(customer="text", urgent=True))


CHECKS = {
    "answer": answer, "stream": stream, "tools": tools, "tools, streamed": tools_streamed, "form": form,
    "thinks, then calls": tools, "thinks, then calls, streamed": tools_streamed,
}  # fmt: skip


def of_anthropic(name: str) -> AnthropicClient:
    return AnthropicClient(model=name, anthropic_client=AsyncAnthropic(base_url=URL, api_key="any", max_retries=0))


at_openai = {"base_url": f"{URL}/v1", "api_key": "any"}
begin("Microsoft Agent Framework", "agent-framework-core", "agent-framework-openai", "agent-framework-anthropic")
of_chats("chat", lambda name: OpenAIChatCompletionClient(name, **at_openai), CHECKS)
of_chats("responses", lambda name: OpenAIChatClient(name, **at_openai), CHECKS)
of_chats("messages", of_anthropic, CHECKS)
