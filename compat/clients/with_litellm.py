# /// script
# dependencies = ["litellm==1.110.2"]
# ///
"""LiteLLM as a client: one function for all, over all three APIs."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch one

import litellm
from checks import HELLO, URL, begin, of_chats, one, same

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "order",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"customer": {"type": "string"}, "urgent": {"type": "boolean"}},
            "required": ["customer", "urgent"],
            "additionalProperties": False,
        },
    },
}
SAID = [{"role": "user", "content": HELLO}]


def answer(model) -> None:
    found = litellm.completion(messages=SAID, temperature=0.5, max_tokens=50, **model)
    same((found.choices[0].message.content, found.choices[0].finish_reason), (HELLO, "stop"))
    same((found.usage.prompt_tokens, found.usage.completion_tokens), (3, 3))


def stream(model) -> None:
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(messages=SAID, stream=True, **model)]
    same("".join(parts), HELLO)


def loop(model, ask) -> None:
    message = ask(SAID, model)
    (call,) = message.tool_calls
    same((call.function.name, json.loads(call.function.arguments)), ("weather", {"city": "text"}))
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    same(ask([*SAID, message, result], model).content, "sunny")


def tools(model) -> None:
    loop(model, lambda said, model: litellm.completion(messages=said, tools=[WEATHER], **model).choices[0].message)


def tools_streamed(model) -> None:
    def ask(said, model):
        chunks = list(litellm.completion(messages=said, tools=[WEATHER], stream=True, **model))
        return litellm.stream_chunk_builder(chunks).choices[0].message

    loop(model, ask)


def form(model) -> None:
    found = litellm.completion(messages=SAID, response_format=FORM, **model)
    same(json.loads(found.choices[0].message.content), {"customer": "text", "urgent": True})


def embeddings(model) -> None:
    same(len(litellm.embedding(input=["one"], **model).data[0]["embedding"]), 8)


CHECKS = {
    "answer": answer, "stream": stream, "tools": tools, "tools, streamed": tools_streamed, "form": form,
    "thinks, then calls": tools, "thinks, then calls, streamed": tools_streamed,
}  # fmt: skip

litellm.suppress_debug_info = True
litellm.telemetry = False


def of_openai(name: str) -> dict:
    return {"model": f"openai/{name}", "api_base": f"{URL}/v1", "api_key": "any", "max_retries": 0}


def of_anthropic(name: str) -> dict:
    return {"model": f"anthropic/{name}", "api_base": URL, "api_key": "any", "max_retries": 0}


begin("LiteLLM", "litellm", "openai")
of_chats("chat", of_openai, CHECKS)
of_chats("responses", lambda name: of_openai(f"responses/{name}"), CHECKS)
BY_A_TOOL = {what: check for what, check in CHECKS.items() if what != "form"} | {"form, by a tool": form}
of_chats("messages", of_anthropic, BY_A_TOOL)  # as it does for a model that it does not know
one("embeddings / itself / embeddings", embeddings, of_openai, "fake/echo")
one("embeddings / openai / embeddings", embeddings, of_openai, "openai/fake/echo")
