# /// script
# dependencies = ["claude-agent-sdk==0.2.188"]
# ///
"""Claude Agent SDK, and in it the Claude Code that it ships: its own long request, and a tool of ours."""

import os
import tempfile

from checks import HELLO, URL, begin, of_chats, same
from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    ResultMessage,
    StreamEvent,
    ThinkingBlock,
    create_sdk_mcp_server,
    query,
    tool,
)

# It starts a program of its own, which is to talk to nobody but the gateway and to read no settings of this machine.
os.environ |= {
    "ANTHROPIC_BASE_URL": URL, "ANTHROPIC_API_KEY": "any", "HOME": tempfile.mkdtemp(),
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1",
}  # fmt: skip


@tool("weather", "Tell the weather in a city.", {"city": str})
async def weather(asked):
    return {"content": [{"type": "text", "text": f"sunny in {asked['city']}"}]}


OURS = create_sdk_mcp_server("ours", tools=[weather])


async def ask(model: str, **more) -> list:
    options = ClaudeAgentOptions(model=model, max_turns=3, setting_sources=[], cwd=os.environ["HOME"], **more)
    return [message async for message in query(prompt=HELLO, options=options)]


def result(messages: list) -> str:
    last = messages[-1]
    if not isinstance(last, ResultMessage) or last.is_error or not last.result:
        raise AssertionError(f"it ended with {getattr(last, 'result', last)!r}")
    return last.result


async def answer(model: str) -> None:
    said = result(await ask(model))  # the last that the client told the model of itself
    if "working directory" not in said:
        raise AssertionError(said)


async def stream(model: str) -> None:
    messages = await ask(model, include_partial_messages=True)
    deltas = [m.event for m in messages if isinstance(m, StreamEvent) and m.event["type"] == "content_block_delta"]
    same("".join(event["delta"].get("text", "") for event in deltas).strip(), result(messages).strip())


async def tools(model: str) -> None:
    ours = {"tools": [], "mcp_servers": {"ours": OURS}, "allowed_tools": ["mcp__ours__weather"]}
    same(result(await ask(model, **ours)), "sunny in text")


async def thinking(model: str) -> None:
    thought = [
        block.thinking
        for message in await ask(model)
        if isinstance(message, AssistantMessage)
        for block in message.content
        if isinstance(block, ThinkingBlock)
    ]
    same(thought, ["Let me think."])


begin("Claude Agent SDK", "claude-agent-sdk")
of_chats(
    "messages",
    str,
    {"answer": answer, "stream": stream, "tools": tools, "thinks, then calls": tools, "thinking": thinking},
)
