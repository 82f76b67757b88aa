# /// script
# dependencies = ["openai-agents==0.24.0"]
# ///
"""OpenAI Agents SDK: an agent with a tool, streamed and not, over responses and chat."""

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checks import HELLO, URL, begin, of_chats, same
from openai import AsyncOpenAI
from pydantic import BaseModel


class Order(BaseModel):
    customer: str
    urgent: bool


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


def agent(model, **more) -> Agent:
    return Agent(name="helper", instructions="be brief", model=model, model_settings=ModelSettings(), **more)


async def answer(model) -> None:
    same((await Runner.run(agent(model), HELLO)).final_output, HELLO)


async def stream(model) -> None:
    result = Runner.run_streamed(agent(model), HELLO)
    events = [event async for event in result.stream_events()]
    parts = [
        event.data.delta
        for event in events
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    same("".join(parts), HELLO)
    same(result.final_output, HELLO)


async def tools(model) -> None:
    same((await Runner.run(agent(model, tools=[weather]), HELLO)).final_output, "sunny in text")


async def tools_streamed(model) -> None:
    result = Runner.run_streamed(agent(model, tools=[weather]), HELLO)
    async for _ in result.stream_events():
        pass
    same(result.final_output, "sunny in text")


async def form(model) -> None:
    same((await Runner.run(agent(model, output_type=Order), HELLO)).final_output, Order(customer="text", urgent=True))


CHECKS = {
    "answer": answer, "stream": stream, "tools": tools, "tools, streamed": tools_streamed, "form": form,
    "thinks, then calls": tools, "thinks, then calls, streamed": tools_streamed,
}  # fmt: skip


def client() -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{URL}/v1", api_key="any", max_retries=0)


set_tracing_disabled(True)  # traces go to OpenAI
begin("OpenAI Agents SDK", "openai-agents", "openai")
of_chats("responses", lambda name: OpenAIResponsesModel(model=name, openai_client=client()), CHECKS)
of_chats("chat", lambda name: OpenAIChatCompletionsModel(model=name, openai_client=client()), CHECKS)
