"""What the scripts share: a check runs, and a line of JSON says what came of it. Knows nothing of any client."""

import asyncio
import inspect
import json
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

URL = os.environ["DOORSTEP_URL"]
HELLO = "hello there, world"

# How the gateway reaches the model: it answers itself, or asks a service that speaks one of these.
WAYS = {"itself": "fake/", "chat": "chat/fake/", "responses": "gpt/fake/", "anthropic": "claude/fake/"}
# What is asked of the fake provider for each check.
SCRIPTS = {
    "answer": "echo", "stream": "echo", "tools": "tools", "tools, streamed": "tools", "form": "json",
    "form, by a tool": "tools", "thinking": "thinking", "thinks, then calls": "agent",
    "thinks, then calls, streamed": "agent",
}  # fmt: skip

Check = Callable[[Any], Any]


def begin(client: str, *packages: str) -> None:
    """Say which client this is, in which versions."""
    print(json.dumps({"client": client, "versions": {name: version(name) for name in packages}}), flush=True)


def of_chats(api: str, make: Callable[[str], Any], checks: Mapping[str, Check]) -> None:
    """Make each check with a model of every kind of service; ``make`` gives the client's model of a name."""
    for way, prefix in WAYS.items():
        for what, check in checks.items():
            one(f"{api} / {way} / {what}", check, make, f"{prefix}{SCRIPTS[what]}")


def one(name: str, check: Check, make: Callable[[str], Any], model: str) -> None:
    """Make one check: it passes unless it raises."""
    ok, detail = True, ""
    try:
        made = check(make(model))
        if inspect.isawaitable(made):
            asyncio.run(asyncio.wait_for(_whole(made), 30))
    except Exception as error:
        ok, detail = False, f"{type(error).__name__}: {error}"[:300]
    print(json.dumps({"check": name, "ok": ok, "detail": detail}), flush=True)


def same(found: object, expected: object) -> None:
    """Fail unless these are equal."""
    if found != expected:
        raise AssertionError(f"{found!r} is not {expected!r}")


async def _whole(made: Any) -> None:
    await made
