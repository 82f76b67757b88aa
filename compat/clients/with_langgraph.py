# /// script
# dependencies = ["langgraph==1.2.24", "langchain-openai==1.7.4", "langchain-anthropic==1.7.10"]
# ///
"""LangGraph on LangChain's models: a graph with a node of tools, streamed and not, over all three APIs."""

from checks import HELLO, URL, begin, of_chats, same
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel


class Order(BaseModel):
    """An order."""

    customer: str
    urgent: bool


@tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"sunny in {city}"


def graph(model):
    built = StateGraph(MessagesState)
    built.add_node("model", lambda state: {"messages": [model.bind_tools([weather]).invoke(state["messages"])]})
    built.add_node("tools", ToolNode([weather]))
    built.add_edge(START, "model")
    built.add_conditional_edges("model", tools_condition)
    built.add_edge("tools", "model")
    return built.compile()


def answer(model) -> None:
    said = model.invoke([("system", "be brief"), ("user", HELLO)])
    same(said.text, HELLO)
    same((said.usage_metadata["input_tokens"], said.usage_metadata["output_tokens"]), (5, 3))


def stream(model) -> None:
    parts = [chunk.text for chunk in model.stream(HELLO)]
    same("".join(parts), HELLO)
    if len(parts) < 3:
        raise AssertionError("it came in one piece")


def tools(model) -> None:
    same(graph(model).invoke({"messages": [("user", HELLO)]})["messages"][-1].text, "sunny in text")


def tools_streamed(model) -> None:
    pieces = graph(model).stream({"messages": [("user", HELLO)]}, stream_mode="messages")
    same("".join(chunk.text for chunk, told in pieces if told["langgraph_node"] == "model"), "sunny in text")


def form(model) -> None:
    made = model.with_structured_output(Order, method="json_schema").invoke(HELLO)
    same(made, Order(customer="text", urgent=True))


CHECKS = {
    "answer": answer, "stream": stream, "tools": tools, "tools, streamed": tools_streamed, "form": form,
    "thinks, then calls": tools, "thinks, then calls, streamed": tools_streamed,
}  # fmt: skip


def of_openai(name: str, *, responses: bool) -> ChatOpenAI:
    return ChatOpenAI(
        model=name, base_url=f"{URL}/v1", api_key="any", use_responses_api=responses, stream_usage=True, max_retries=0
    )


begin("LangGraph", "langgraph", "langchain-openai", "langchain-anthropic", "openai", "anthropic")
of_chats("chat", lambda name: of_openai(name, responses=False), CHECKS)
of_chats("responses", lambda name: of_openai(name, responses=True), CHECKS)
of_chats("messages", lambda name: ChatAnthropic(model=name, base_url=URL, api_key="any", max_retries=0), CHECKS)
